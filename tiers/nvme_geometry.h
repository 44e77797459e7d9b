#ifndef TERRACE_TIERS_NVME_GEOMETRY_H_
#define TERRACE_TIERS_NVME_GEOMETRY_H_

#include <cstddef>
#include <cstdint>

#include "absl/status/statusor.h"
#include "io/aligned_buffer.h"

namespace terrace {

enum class SegmentIndex : uint32_t {};

inline constexpr uint32_t kSuperblockPages = 2;
inline constexpr uint32_t kManifestCopies = 2;

// How the bytes of an NVMe tier are divided; nvme_format.h says what is in them. All page counts
// are of kPageBytes.
//
//   superblock     one page, twice
//   manifest       manifest_pages for each segment, twice
//   segments       segment_pages each: data_pages() of groups, then footer_pages
struct NvmeGeometry {
  uint32_t pages_per_block = 0;
  uint32_t segment_pages = 0;
  uint32_t segment_count = 0;
  uint32_t group_blocks = 0;    // blocks in a full group
  uint32_t header_pages = 0;    // of a group, full or not
  uint32_t footer_pages = 0;    // of a segment
  uint32_t manifest_pages = 0;  // of one copy of a segment's record

  uint64_t log_start() const {
    return kSuperblockPages + uint64_t{kManifestCopies} * manifest_pages * segment_count;
  }
  uint64_t total_pages() const { return log_start() + uint64_t{segment_pages} * segment_count; }
  uint64_t total_bytes() const { return total_pages() * kPageBytes; }
  uint32_t data_pages() const { return segment_pages - footer_pages; }
  uint32_t group_pages(uint32_t blocks) const { return header_pages + blocks * pages_per_block; }
  uint32_t blocks_per_segment() const;  // when every group is full
  // Block-sized stretches in the data of a segment, the last one perhaps cut. No two blocks start
  // in the same one.
  uint32_t stretches() const { return (data_pages() + pages_per_block - 1) / pages_per_block; }

  uint64_t ManifestPage(SegmentIndex segment, uint32_t copy) const {
    const uint64_t record = uint64_t{static_cast<uint32_t>(segment)} * kManifestCopies + copy;
    return kSuperblockPages + record * manifest_pages;
  }
  uint64_t SegmentPage(SegmentIndex segment) const {
    return log_start() + uint64_t{static_cast<uint32_t>(segment)} * segment_pages;
  }
  uint64_t FooterPage(SegmentIndex segment) const { return SegmentPage(segment) + data_pages(); }
  // REQUIRES: log_start() <= page < total_pages().
  SegmentIndex SegmentOf(uint64_t page) const {
    return SegmentIndex{static_cast<uint32_t>((page - log_start()) / segment_pages)};
  }

  friend bool operator==(const NvmeGeometry&, const NvmeGeometry&) = default;
};

// Segments of min(64 MiB, capacity / 32), larger where one block needs it, at least two of them.
// kInvalidArgument naming the smallest capacity that would do, or the largest (16 TiB).
absl::StatusOr<NvmeGeometry> PlanNvmeGeometry(uint64_t capacity_bytes, size_t block_bytes);

// All of a geometry follows from these; kInvalidArgument where they make none that holds a block,
// or one beyond 16 TiB.
absl::StatusOr<NvmeGeometry> DeriveNvmeGeometry(uint64_t block_bytes, uint32_t segment_pages,
                                                uint32_t segment_count);

}  // namespace terrace

#endif  // TERRACE_TIERS_NVME_GEOMETRY_H_
