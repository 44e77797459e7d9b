#include "tiers/nvme_format.h"

#include <algorithm>
#include <bit>
#include <cstring>

#include "absl/strings/str_cat.h"
#include "io/check.h"

namespace terrace {
namespace {

static_assert(std::endian::native == std::endian::little, "the file format is little-endian");

constexpr uint64_t kSuperblockMagic = 0x3145434152524554;  // "TERRACE1"
constexpr uint64_t kGroupMagic = 0x50554f5247525254;       // "TRRGROUP"
constexpr uint64_t kMaxSegmentBytes = uint64_t{64} << 20;
constexpr uint64_t kGroupTargetBytes = uint64_t{1} << 20;

// Both records start with the checksum of everything that follows it, to the end of their pages.
struct SuperblockBytes {
  uint64_t checksum;
  uint64_t magic;
  uint32_t version;
  uint32_t page_bytes;
  uint64_t block_bytes;
  uint64_t model_fingerprint;
  uint64_t epoch;
  uint32_t segment_pages;
  uint32_t segment_count;
  uint32_t group_blocks;
  uint32_t header_pages;
};
static_assert(sizeof(SuperblockBytes) == 64);

struct GroupHeaderBytes {
  uint64_t checksum;
  uint64_t magic;
  uint64_t epoch;
  uint64_t generation;
  uint32_t base_page;
  uint32_t block_count;
  uint32_t pages_per_block;
  uint32_t reserved;
};
static_assert(sizeof(GroupHeaderBytes) == 48);

// Followed by the checksums of the block's pages.
struct RecordBytes {
  uint64_t id_high;
  uint64_t id_low;
  uint32_t stored_pages;  // 0 when the place is void
  uint32_t flags;
};
static_assert(sizeof(RecordBytes) == 24);
constexpr uint32_t kFlagOwned = 1;

size_t RecordBytesFor(uint32_t pages_per_block) {
  return sizeof(RecordBytes) + size_t{pages_per_block} * sizeof(PageChecksum);
}

uint64_t ChecksumAfterField(absl::Span<const std::byte> bytes) {
  return Checksum64(bytes.subspan(sizeof(uint64_t)));
}

}  // namespace

uint32_t NvmeGeometry::blocks_per_segment() const {
  const uint32_t group_pages = header_pages + group_blocks * pages_per_block;
  const uint32_t rest = segment_pages % group_pages;
  const uint32_t last = rest > header_pages ? (rest - header_pages) / pages_per_block : 0;
  return segment_pages / group_pages * group_blocks + last;
}

absl::StatusOr<NvmeGeometry> PlanNvmeGeometry(uint64_t capacity_bytes, size_t block_bytes) {
  TERRACE_CHECK(block_bytes > 0 && IsPageAligned(block_bytes));
  constexpr uint64_t kMaxBytes = uint64_t{UINT32_MAX} * kPageBytes;
  if (capacity_bytes > kMaxBytes) {
    return absl::InvalidArgumentError(absl::StrCat("an NVMe tier of ", capacity_bytes,
                                                   " bytes is over the limit of ", kMaxBytes));
  }
  NvmeGeometry geometry;
  geometry.pages_per_block = static_cast<uint32_t>(block_bytes / kPageBytes);
  const size_t record = RecordBytesFor(geometry.pages_per_block);
  // As many blocks as make a good sequential write, while one header page can name them.
  const size_t nameable = (kPageBytes - sizeof(GroupHeaderBytes)) / record;
  geometry.group_blocks = static_cast<uint32_t>(
      std::max<size_t>(1, std::min<size_t>(kGroupTargetBytes / block_bytes, nameable)));
  geometry.header_pages = static_cast<uint32_t>(
      PageAlignUp(sizeof(GroupHeaderBytes) + geometry.group_blocks * record) / kPageBytes);

  const uint64_t smallest_segment = geometry.header_pages + geometry.pages_per_block;
  const uint64_t smallest_bytes = (kSuperblockPages + 2 * smallest_segment) * kPageBytes;
  if (capacity_bytes < smallest_bytes) {
    return absl::InvalidArgumentError(
        absl::StrCat("an NVMe tier of ", capacity_bytes, " bytes is too small for blocks of ",
                     block_bytes, " bytes: it needs at least ", smallest_bytes));
  }
  const uint64_t pages = capacity_bytes / kPageBytes - kSuperblockPages;
  const uint64_t wanted = std::min(kMaxSegmentBytes / kPageBytes, pages / 32);
  geometry.segment_pages = static_cast<uint32_t>(std::max(wanted, smallest_segment));
  geometry.segment_count = static_cast<uint32_t>(pages / geometry.segment_pages);
  return geometry;
}

void EncodeSuperblock(const Superblock& superblock, absl::Span<std::byte> page) {
  TERRACE_CHECK(page.size() == kPageBytes);
  std::memset(page.data(), 0, page.size());
  SuperblockBytes bytes = {};
  bytes.magic = kSuperblockMagic;
  bytes.version = kNvmeFormatVersion;
  bytes.page_bytes = kPageBytes;
  bytes.block_bytes = superblock.block_bytes;
  bytes.model_fingerprint = superblock.model_fingerprint;
  bytes.epoch = superblock.epoch;
  bytes.segment_pages = superblock.geometry.segment_pages;
  bytes.segment_count = superblock.geometry.segment_count;
  bytes.group_blocks = superblock.geometry.group_blocks;
  bytes.header_pages = superblock.geometry.header_pages;
  std::memcpy(page.data(), &bytes, sizeof(bytes));
  bytes.checksum = ChecksumAfterField(page);
  std::memcpy(page.data(), &bytes, sizeof(bytes));
}

absl::StatusOr<Superblock> DecodeSuperblock(absl::Span<const std::byte> page) {
  TERRACE_CHECK(page.size() == kPageBytes);
  SuperblockBytes bytes;
  std::memcpy(&bytes, page.data(), sizeof(bytes));
  if (bytes.magic != kSuperblockMagic) {
    return absl::NotFoundError("no Terrace superblock (wrong magic number)");
  }
  if (bytes.checksum != ChecksumAfterField(page)) {
    return absl::DataLossError("superblock checksum is wrong");
  }
  if (bytes.version != kNvmeFormatVersion) {
    return absl::InvalidArgumentError(
        absl::StrCat("format version ", bytes.version, ", this build reads ", kNvmeFormatVersion));
  }
  if (bytes.block_bytes == 0 || bytes.block_bytes % kPageBytes != 0 ||
      bytes.page_bytes != kPageBytes || bytes.block_bytes / kPageBytes > UINT32_MAX) {
    return absl::DataLossError("superblock holds an impossible block size");
  }
  Superblock superblock;
  superblock.geometry = {.pages_per_block = static_cast<uint32_t>(bytes.block_bytes / kPageBytes),
                         .segment_pages = bytes.segment_pages,
                         .segment_count = bytes.segment_count,
                         .group_blocks = bytes.group_blocks,
                         .header_pages = bytes.header_pages};
  superblock.block_bytes = bytes.block_bytes;
  superblock.model_fingerprint = bytes.model_fingerprint;
  superblock.epoch = bytes.epoch;
  return superblock;
}

void EncodeGroupHeader(const NvmeGeometry& geometry, const GroupHeader& group,
                       absl::Span<const GroupRecord> records, absl::Span<std::byte> header) {
  const size_t stride = RecordBytesFor(geometry.pages_per_block);
  TERRACE_CHECK(header.size() == size_t{geometry.header_pages} * kPageBytes);
  TERRACE_CHECK(records.size() == group.block_count && group.block_count <= geometry.group_blocks);
  std::memset(header.data(), 0, header.size());
  std::byte* out = header.data() + sizeof(GroupHeaderBytes);
  for (const GroupRecord& record : records) {
    const RecordBytes bytes = {.id_high = record.id.high,
                               .id_low = record.id.low,
                               .stored_pages = record.valid ? geometry.pages_per_block : 0,
                               .flags = record.retention == Retention::kOwned ? kFlagOwned : 0};
    std::memcpy(out, &bytes, sizeof(bytes));
    if (record.valid) {
      std::memcpy(out + sizeof(bytes), record.checksums.data(),
                  record.checksums.size() * sizeof(PageChecksum));
    }
    out += stride;
  }
  GroupHeaderBytes bytes = {};
  bytes.magic = kGroupMagic;
  bytes.epoch = group.epoch;
  bytes.generation = group.generation;
  bytes.base_page = group.base_page;
  bytes.block_count = group.block_count;
  bytes.pages_per_block = geometry.pages_per_block;
  std::memcpy(header.data(), &bytes, sizeof(bytes));
  bytes.checksum = ChecksumAfterField(header);
  std::memcpy(header.data(), &bytes, sizeof(bytes));
}

std::optional<GroupView> GroupView::Decode(const NvmeGeometry& geometry, uint64_t epoch,
                                           uint32_t base_page, absl::Span<const std::byte> header) {
  TERRACE_CHECK(header.size() == size_t{geometry.header_pages} * kPageBytes);
  GroupHeaderBytes bytes;
  std::memcpy(&bytes, header.data(), sizeof(bytes));
  if (bytes.magic != kGroupMagic || bytes.epoch != epoch || bytes.base_page != base_page ||
      bytes.pages_per_block != geometry.pages_per_block || bytes.block_count == 0 ||
      bytes.block_count > geometry.group_blocks || bytes.checksum != ChecksumAfterField(header)) {
    return std::nullopt;
  }
  return GroupView({.epoch = bytes.epoch,
                    .generation = bytes.generation,
                    .base_page = bytes.base_page,
                    .block_count = bytes.block_count},
                   geometry.pages_per_block, header.data() + sizeof(bytes));
}

GroupRecord GroupView::record(uint32_t index) const {
  TERRACE_CHECK(index < group_.block_count);
  const std::byte* at = records_ + index * RecordBytesFor(pages_per_block_);
  RecordBytes bytes;
  std::memcpy(&bytes, at, sizeof(bytes));
  // Records start at a multiple of four inside page-aligned memory.
  const auto* checksums = reinterpret_cast<const PageChecksum*>(at + sizeof(bytes));
  return {.id = {bytes.id_high, bytes.id_low},
          .valid = bytes.stored_pages == pages_per_block_,
          .retention = (bytes.flags & kFlagOwned) != 0 ? Retention::kOwned : Retention::kCached,
          .checksums = absl::MakeConstSpan(checksums, pages_per_block_)};
}

}  // namespace terrace
