#ifndef TERRACE_TIERS_NVME_FORMAT_H_
#define TERRACE_TIERS_NVME_FORMAT_H_

#include <cstddef>
#include <cstdint>
#include <optional>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "io/aligned_buffer.h"
#include "io/checksum.h"
#include "tiers/block_id.h"
#include "tiers/tier.h"

namespace terrace {

// The bytes of an NVMe tier, all integers little-endian:
//
//   page 0, 1            superblock, twice
//   segment 0 .. n-1     segment_pages each: a run of groups, in the order they were appended
//   group                header_pages of header, then the blocks it names, one after the other
//
// A segment is written front to back and reused as a whole. Generations grow by one a group over
// the life of a tier, so whatever an older use left behind the last group is told apart by its
// lower generation, and a tier that was started afresh by its epoch.
inline constexpr uint32_t kNvmeFormatVersion = 1;
inline constexpr uint32_t kSuperblockPages = 2;

// How a capacity is divided. All page counts are of kPageBytes.
struct NvmeGeometry {
  uint32_t pages_per_block = 0;
  uint32_t segment_pages = 0;
  uint32_t segment_count = 0;
  uint32_t group_blocks = 0;  // blocks in a full group
  uint32_t header_pages = 0;  // of a full group; smaller groups use as many
  uint64_t total_bytes() const {
    return (kSuperblockPages + uint64_t{segment_pages} * segment_count) * kPageBytes;
  }
  uint32_t blocks_per_segment() const;  // when every group is full
  friend bool operator==(const NvmeGeometry&, const NvmeGeometry&) = default;
};

// Segments of min(64 MiB, capacity / 32), larger where one block needs it, at least two of them.
// kInvalidArgument naming the smallest capacity that would do, or the largest (16 TiB).
absl::StatusOr<NvmeGeometry> PlanNvmeGeometry(uint64_t capacity_bytes, size_t block_bytes);

struct Superblock {
  NvmeGeometry geometry;
  uint64_t block_bytes = 0;
  uint64_t model_fingerprint = 0;
  uint64_t epoch = 0;  // drawn anew whenever a tier starts empty
};

// `page`: [kPageBytes].
void EncodeSuperblock(const Superblock& superblock, absl::Span<std::byte> page);
// kNotFound when the page does not hold a Terrace superblock at all, kInvalidArgument for another
// format version, kDataLoss when its checksum is wrong.
absl::StatusOr<Superblock> DecodeSuperblock(absl::Span<const std::byte> page);

struct GroupRecord {
  BlockId id;
  // False for a place whose block was dropped before the group was written.
  bool valid = true;
  Retention retention = Retention::kCached;
  absl::Span<const PageChecksum> checksums;  // [pages_per_block]
};

struct GroupHeader {
  uint64_t epoch = 0;
  uint64_t generation = 0;
  uint32_t base_page = 0;  // of the header itself
  uint32_t block_count = 0;
};

// `header`: [geometry.header_pages * kPageBytes]; `records`: [group.block_count].
void EncodeGroupHeader(const NvmeGeometry& geometry, const GroupHeader& group,
                       absl::Span<const GroupRecord> records, absl::Span<std::byte> header);

// A decoded header borrows from the bytes it was decoded from.
class GroupView {
 public:
  // nullopt when the bytes are not a whole group header of this tier: another epoch, another place,
  // a torn write or stale content.
  static std::optional<GroupView> Decode(const NvmeGeometry& geometry, uint64_t epoch,
                                         uint32_t base_page, absl::Span<const std::byte> header);

  const GroupHeader& group() const { return group_; }
  // REQUIRES: index < group().block_count.
  GroupRecord record(uint32_t index) const;

 private:
  GroupView(GroupHeader group, uint32_t pages_per_block, const std::byte* records)
      : group_(group), pages_per_block_(pages_per_block), records_(records) {}

  GroupHeader group_;
  uint32_t pages_per_block_;
  const std::byte* records_;
};

}  // namespace terrace

#endif  // TERRACE_TIERS_NVME_FORMAT_H_
