#include "tiers/nvme_geometry.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "io/check.h"
#include "tiers/nvme_format.h"

namespace terrace {
namespace {

constexpr uint64_t kMaxSegmentBytes = uint64_t{64} << 20;
constexpr uint64_t kGroupTargetBytes = uint64_t{1} << 20;
// A header names as many blocks as fit in so many pages, or one block where that needs more.
constexpr uint32_t kHeaderPagesLimit = 4;
constexpr uint64_t kMaxBytes = uint64_t{UINT32_MAX} * kPageBytes;

uint32_t Pages(size_t bytes) { return static_cast<uint32_t>(PageAlignUp(bytes) / kPageBytes); }

// All but the number of segments. `pages_per_block` is at least 1.
NvmeGeometry Derive(uint32_t pages_per_block, uint32_t segment_pages) {
  NvmeGeometry geometry;
  geometry.pages_per_block = pages_per_block;
  geometry.segment_pages = segment_pages;
  const uint64_t wanted =
      std::max<uint64_t>(1, kGroupTargetBytes / (uint64_t{pages_per_block} * kPageBytes));
  geometry.group_blocks =
      std::min(static_cast<uint32_t>(wanted), std::max(1u, segment_pages / pages_per_block));
  while (geometry.group_blocks > 1 && MaxGroupHeaderBytes(pages_per_block, geometry.group_blocks) >
                                          kHeaderPagesLimit * kPageBytes) {
    --geometry.group_blocks;
  }
  geometry.header_pages = Pages(MaxGroupHeaderBytes(pages_per_block, geometry.group_blocks));
  // As if all of the segment were data, which is a little more than it needs.
  geometry.footer_pages = Pages(
      MaxFooterBytes(pages_per_block, geometry.header_pages, geometry.group_blocks, segment_pages));
  const uint32_t stretches = (segment_pages + pages_per_block - 1) / pages_per_block;
  geometry.manifest_pages = Pages(ManifestRecordBytes(stretches));
  return geometry;
}

// Pages of the smallest segment that holds a block.
uint64_t SmallestSegment(uint32_t pages_per_block) {
  uint64_t pages = uint64_t{pages_per_block} + 1;
  for (;;) {
    const NvmeGeometry geometry = Derive(pages_per_block, static_cast<uint32_t>(pages));
    const uint64_t needed = uint64_t{geometry.group_pages(1)} + geometry.footer_pages;
    if (pages >= needed) return pages;
    pages = needed;
  }
}

}  // namespace

uint32_t NvmeGeometry::blocks_per_segment() const {
  const uint32_t full = group_pages(group_blocks);
  const uint32_t rest = data_pages() % full;
  const uint32_t last = rest > header_pages ? (rest - header_pages) / pages_per_block : 0;
  return data_pages() / full * group_blocks + last;
}

absl::StatusOr<NvmeGeometry> PlanNvmeGeometry(uint64_t capacity_bytes, size_t block_bytes) {
  TERRACE_CHECK(block_bytes > 0 && IsPageAligned(block_bytes));
  if (capacity_bytes > kMaxBytes) {
    return absl::InvalidArgumentError(absl::StrCat("an NVMe tier of ", capacity_bytes,
                                                   " bytes is over the limit of ", kMaxBytes));
  }
  const uint32_t pages_per_block = static_cast<uint32_t>(block_bytes / kPageBytes);
  const uint64_t smallest_segment = SmallestSegment(pages_per_block);
  const uint64_t manifest =
      uint64_t{kManifestCopies} *
      Derive(pages_per_block, static_cast<uint32_t>(smallest_segment)).manifest_pages;
  const uint64_t smallest_bytes =
      (kSuperblockPages + 2 * (smallest_segment + manifest)) * kPageBytes;
  if (capacity_bytes < smallest_bytes) {
    return absl::InvalidArgumentError(
        absl::StrCat("an NVMe tier of ", capacity_bytes, " bytes is too small for blocks of ",
                     block_bytes, " bytes: it needs at least ", smallest_bytes));
  }
  const uint64_t pages = capacity_bytes / kPageBytes - kSuperblockPages;
  const uint64_t wanted = std::min(kMaxSegmentBytes / kPageBytes, pages / 32);
  const uint32_t segment_pages = static_cast<uint32_t>(std::max(wanted, smallest_segment));
  NvmeGeometry geometry = Derive(pages_per_block, segment_pages);
  geometry.segment_count = static_cast<uint32_t>(
      pages / (segment_pages + uint64_t{kManifestCopies} * geometry.manifest_pages));
  return geometry;
}

absl::StatusOr<NvmeGeometry> DeriveNvmeGeometry(uint64_t block_bytes, uint32_t segment_pages,
                                                uint32_t segment_count) {
  const uint64_t pages_per_block = block_bytes / kPageBytes;
  const bool possible = block_bytes % kPageBytes == 0 && pages_per_block > 0 &&
                        pages_per_block < segment_pages && segment_count >= 2 &&
                        (uint64_t{segment_pages} * segment_count) < UINT32_MAX;
  if (!possible) return absl::InvalidArgumentError("impossible sizes of blocks and segments");
  NvmeGeometry geometry = Derive(static_cast<uint32_t>(pages_per_block), segment_pages);
  geometry.segment_count = segment_count;
  if (uint64_t{geometry.footer_pages} + geometry.group_pages(1) > segment_pages ||
      geometry.total_pages() > UINT32_MAX) {
    return absl::InvalidArgumentError("impossible sizes of blocks and segments");
  }
  return geometry;
}

}  // namespace terrace
