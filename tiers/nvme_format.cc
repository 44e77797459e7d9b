#include "tiers/nvme_format.h"

#include <algorithm>
#include <bit>
#include <cstring>

#include "absl/algorithm/container.h"
#include "absl/strings/str_cat.h"
#include "io/check.h"

namespace terrace {
namespace {

static_assert(std::endian::native == std::endian::little, "the file format is little-endian");

constexpr uint64_t kSuperblockMagic = 0x3145434152524554;  // "TERRACE1"
constexpr uint64_t kGroupMagic = 0x50554f5247525254;       // "TRRGROUP"
constexpr uint64_t kFooterMagic = 0x544f4f4647525254;      // "TRRGFOOT"
constexpr uint64_t kManifestMagic = 0x464e414d47525254;    // "TRRGMANF"

// What every record starts with. The checksum is of everything behind it, to the record's end.
struct Preamble {
  uint64_t checksum;
  uint64_t magic;
  uint64_t epoch;
};

struct SuperblockBytes {
  Preamble preamble;
  uint32_t version;
  uint32_t page_bytes;
  uint64_t block_bytes;
  uint64_t model_fingerprint;
  uint32_t segment_pages;
  uint32_t segment_count;
  uint32_t group_blocks;
  uint32_t header_pages;
  uint32_t footer_pages;
  uint32_t manifest_pages;
};
static_assert(sizeof(SuperblockBytes) == 72);

struct HeaderBytes {
  Preamble preamble;
  uint64_t generation;
  uint64_t segment_generation;
  uint32_t base_page;
  uint32_t block_count;
  uint32_t pages_per_block;
  uint32_t reserved;
  uint64_t stamp;
  uint64_t previous_stamp;
};
static_assert(sizeof(HeaderBytes) == 72);

// Followed by the checksums of the block's pages.
struct RecordBytes {
  uint64_t id_high;
  uint64_t id_low;
  uint32_t stored_pages;  // 0 when the place is void
  uint32_t flags;
  uint64_t key_space;
  uint64_t key_check;
  std::byte nonce[12];
  std::byte tag[16];
  uint32_t reserved;
};
static_assert(sizeof(RecordBytes) == 72);
constexpr uint32_t kFlagOwned = 1;
constexpr uint32_t kFlagEncrypted = 2;

struct FooterBytes {
  Preamble preamble;
  uint64_t segment_generation;
  uint32_t segment;
  uint32_t group_count;
  uint32_t used_pages;
  uint32_t header_bytes;  // of all headers that follow
};
static_assert(sizeof(FooterBytes) == 48);

// Followed by the two bit maps.
struct ManifestBytes {
  Preamble preamble;
  uint64_t segment_generation;
  uint64_t version;
  uint32_t segment;
  uint32_t flags;
  uint32_t durable_pages;
  uint32_t stretches;
  uint64_t newest_generation;
};
static_assert(sizeof(ManifestBytes) == 64);
constexpr uint32_t kFlagFreed = 1;

size_t RecordStride(uint32_t pages_per_block) {
  // A multiple of eight, so that the headers in a footer and their records stay aligned.
  const size_t bytes = sizeof(RecordBytes) + size_t{pages_per_block} * sizeof(PageChecksum);
  return (bytes + 7) / 8 * 8;
}

size_t BitmapBytes(uint32_t bits) { return (size_t{bits} + 7) / 8; }

uint64_t ChecksumAfterField(absl::Span<const std::byte> bytes) {
  return Checksum64(bytes.subspan(sizeof(uint64_t)));
}

// Completes a record of which all but the checksum is in place.
void Stamp(absl::Span<std::byte> record) {
  const uint64_t checksum = ChecksumAfterField(record);
  std::memcpy(record.data(), &checksum, sizeof(checksum));
}

bool StampIsRight(absl::Span<const std::byte> record) {
  uint64_t checksum = 0;
  std::memcpy(&checksum, record.data(), sizeof(checksum));
  return checksum == ChecksumAfterField(record);
}

void PutBits(const std::vector<bool>& bits, std::byte* out) {
  for (size_t i = 0; i < bits.size(); ++i) {
    if (bits[i]) out[i / 8] |= std::byte{1} << (i % 8);
  }
}

std::vector<bool> GetBits(uint32_t count, const std::byte* in) {
  std::vector<bool> bits(count);
  for (size_t i = 0; i < count; ++i)
    bits[i] = ((in[i / 8] >> (i % 8)) & std::byte{1}) != std::byte{};
  return bits;
}

}  // namespace

// --- Superblock ---

void EncodeSuperblock(const Superblock& superblock, absl::Span<std::byte> page) {
  TERRACE_CHECK(page.size() == kPageBytes);
  std::memset(page.data(), 0, page.size());
  SuperblockBytes bytes = {};
  bytes.preamble.magic = kSuperblockMagic;
  bytes.preamble.epoch = superblock.epoch;
  bytes.version = kNvmeFormatVersion;
  bytes.page_bytes = kPageBytes;
  bytes.block_bytes = superblock.block_bytes;
  bytes.model_fingerprint = superblock.model_fingerprint;
  bytes.segment_pages = superblock.geometry.segment_pages;
  bytes.segment_count = superblock.geometry.segment_count;
  bytes.group_blocks = superblock.geometry.group_blocks;
  bytes.header_pages = superblock.geometry.header_pages;
  bytes.footer_pages = superblock.geometry.footer_pages;
  bytes.manifest_pages = superblock.geometry.manifest_pages;
  std::memcpy(page.data(), &bytes, sizeof(bytes));
  Stamp(page);
}

absl::StatusOr<Superblock> DecodeSuperblock(absl::Span<const std::byte> page) {
  TERRACE_CHECK(page.size() == kPageBytes);
  SuperblockBytes bytes;
  std::memcpy(&bytes, page.data(), sizeof(bytes));
  if (bytes.preamble.magic != kSuperblockMagic) {
    return absl::NotFoundError("no Terrace superblock (wrong magic number)");
  }
  if (!StampIsRight(page)) return absl::DataLossError("superblock checksum is wrong");
  // Version 1 had other fields before its version, but the same checksum and magic number.
  if (bytes.version != kNvmeFormatVersion) {
    return absl::InvalidArgumentError(
        absl::StrCat("another format version, this build reads ", kNvmeFormatVersion));
  }
  absl::StatusOr<NvmeGeometry> geometry =
      DeriveNvmeGeometry(bytes.block_bytes, bytes.segment_pages, bytes.segment_count);
  if (!geometry.ok()) return absl::DataLossError("superblock holds an impossible geometry");
  if (bytes.page_bytes != kPageBytes || bytes.group_blocks != geometry->group_blocks ||
      bytes.header_pages != geometry->header_pages ||
      bytes.footer_pages != geometry->footer_pages ||
      bytes.manifest_pages != geometry->manifest_pages) {
    return absl::DataLossError("superblock holds an impossible geometry");
  }
  Superblock superblock;
  superblock.geometry = *geometry;
  superblock.block_bytes = bytes.block_bytes;
  superblock.model_fingerprint = bytes.model_fingerprint;
  superblock.epoch = bytes.preamble.epoch;
  return superblock;
}

// --- Group headers ---

size_t GroupHeaderBytes(const NvmeGeometry& geometry, uint32_t block_count) {
  return MaxGroupHeaderBytes(geometry.pages_per_block, block_count);
}

size_t MaxGroupHeaderBytes(uint32_t pages_per_block, uint32_t blocks) {
  return sizeof(HeaderBytes) + blocks * RecordStride(pages_per_block);
}

void EncodeGroupHeader(const NvmeGeometry& geometry, const GroupHeader& group,
                       absl::Span<const GroupRecord> records, absl::Span<std::byte> header) {
  TERRACE_CHECK(header.size() == size_t{geometry.header_pages} * kPageBytes);
  TERRACE_CHECK(records.size() == group.block_count && group.block_count <= geometry.group_blocks);
  std::memset(header.data(), 0, header.size());
  HeaderBytes bytes = {};
  bytes.preamble.magic = kGroupMagic;
  bytes.preamble.epoch = group.epoch;
  bytes.generation = group.generation;
  bytes.segment_generation = group.segment_generation;
  bytes.base_page = group.base_page;
  bytes.block_count = group.block_count;
  bytes.pages_per_block = geometry.pages_per_block;
  bytes.stamp = group.stamp;
  bytes.previous_stamp = group.previous_stamp;
  std::memcpy(header.data(), &bytes, sizeof(bytes));
  std::byte* out = header.data() + sizeof(bytes);
  for (const GroupRecord& record : records) {
    RecordBytes at = {};
    if (record.valid) {
      at.id_high = record.id.high;
      at.id_low = record.id.low;
      at.stored_pages = geometry.pages_per_block;
      at.flags = record.retention == Retention::kOwned ? kFlagOwned : 0;
      if (record.key) {
        at.flags |= kFlagEncrypted;
        at.key_space = record.key->space;
        at.key_check = record.key->check;
        std::memcpy(at.nonce, record.seal.nonce.data(), sizeof(at.nonce));
        std::memcpy(at.tag, record.seal.tag.data(), sizeof(at.tag));
      }
      std::memcpy(out + sizeof(at), record.checksums.data(),
                  record.checksums.size() * sizeof(PageChecksum));
    }
    std::memcpy(out, &at, sizeof(at));
    out += RecordStride(geometry.pages_per_block);
  }
  Stamp(header.first(GroupHeaderBytes(geometry, group.block_count)));
}

std::optional<GroupView> GroupView::Decode(const NvmeGeometry& geometry, uint64_t epoch,
                                           absl::Span<const std::byte> bytes) {
  HeaderBytes at;
  if (bytes.size() < sizeof(at)) return std::nullopt;
  std::memcpy(&at, bytes.data(), sizeof(at));
  if (at.preamble.magic != kGroupMagic || at.preamble.epoch != epoch ||
      at.pages_per_block != geometry.pages_per_block || at.block_count == 0 ||
      at.block_count > geometry.group_blocks) {
    return std::nullopt;
  }
  const size_t size = GroupHeaderBytes(geometry, at.block_count);
  if (size > bytes.size() || !StampIsRight(bytes.first(size))) return std::nullopt;
  // The checksum is no proof against an author of malice, so the place is checked as well.
  const uint64_t end = uint64_t{at.base_page} + geometry.group_pages(at.block_count);
  if (at.base_page < geometry.log_start() || end > geometry.total_pages()) return std::nullopt;
  const SegmentIndex segment = geometry.SegmentOf(at.base_page);
  if (end > geometry.FooterPage(segment) || at.segment_generation > at.generation) {
    return std::nullopt;
  }
  return GroupView({.epoch = at.preamble.epoch,
                    .generation = at.generation,
                    .segment_generation = at.segment_generation,
                    .base_page = at.base_page,
                    .block_count = at.block_count,
                    .stamp = at.stamp,
                    .previous_stamp = at.previous_stamp},
                   geometry.pages_per_block, bytes.first(size));
}

GroupRecord GroupView::record(uint32_t index) const {
  TERRACE_CHECK(index < group_.block_count);
  const std::byte* at =
      bytes_.data() + sizeof(HeaderBytes) + index * RecordStride(pages_per_block_);
  RecordBytes bytes;
  std::memcpy(&bytes, at, sizeof(bytes));
  GroupRecord record;
  record.id = {bytes.id_high, bytes.id_low};
  record.valid = bytes.stored_pages == pages_per_block_;
  record.retention = (bytes.flags & kFlagOwned) != 0 ? Retention::kOwned : Retention::kCached;
  if ((bytes.flags & kFlagEncrypted) != 0) {
    record.key = KeyName{bytes.key_space, bytes.key_check};
    std::memcpy(record.seal.nonce.data(), bytes.nonce, sizeof(bytes.nonce));
    std::memcpy(record.seal.tag.data(), bytes.tag, sizeof(bytes.tag));
  }
  // Headers start at a multiple of eight, and all their parts are multiples of four.
  record.checksums = absl::MakeConstSpan(reinterpret_cast<const PageChecksum*>(at + sizeof(bytes)),
                                         pages_per_block_);
  return record;
}

// --- Footers ---

size_t MaxFooterBytes(uint32_t pages_per_block, uint32_t header_pages, uint32_t group_blocks,
                      uint32_t data_pages) {
  const auto bytes_of = [&](uint32_t blocks) {
    const uint64_t group_pages = uint64_t{header_pages} + uint64_t{blocks} * pages_per_block;
    const uint64_t groups = (data_pages + group_pages - 1) / group_pages;
    return groups * MaxGroupHeaderBytes(pages_per_block, blocks);
  };
  // Bytes a page grow or shrink with the size of groups, so the largest are at one of the ends.
  return sizeof(FooterBytes) + std::max(bytes_of(1), bytes_of(group_blocks));
}

void EncodeFooter(const NvmeGeometry& geometry, const FooterHeader& footer,
                  absl::Span<const std::byte> headers, absl::Span<std::byte> bytes) {
  TERRACE_CHECK(bytes.size() == size_t{geometry.footer_pages} * kPageBytes);
  TERRACE_CHECK(sizeof(FooterBytes) + headers.size() <= bytes.size());
  std::memset(bytes.data(), 0, bytes.size());
  FooterBytes at = {};
  at.preamble.magic = kFooterMagic;
  at.preamble.epoch = footer.epoch;
  at.segment_generation = footer.segment_generation;
  at.segment = static_cast<uint32_t>(footer.segment);
  at.group_count = footer.group_count;
  at.used_pages = footer.used_pages;
  at.header_bytes = static_cast<uint32_t>(headers.size());
  std::memcpy(bytes.data(), &at, sizeof(at));
  absl::c_copy(headers, bytes.begin() + sizeof(at));
  Stamp(bytes.first(sizeof(at) + headers.size()));
}

std::optional<FooterView> DecodeFooter(const NvmeGeometry& geometry, uint64_t epoch,
                                       SegmentIndex segment, absl::Span<const std::byte> bytes) {
  FooterBytes at;
  if (bytes.size() < sizeof(at)) return std::nullopt;
  std::memcpy(&at, bytes.data(), sizeof(at));
  if (at.preamble.magic != kFooterMagic || at.preamble.epoch != epoch ||
      at.segment != static_cast<uint32_t>(segment) || at.used_pages > geometry.data_pages() ||
      sizeof(at) + uint64_t{at.header_bytes} > bytes.size() ||
      !StampIsRight(bytes.first(sizeof(at) + at.header_bytes))) {
    return std::nullopt;
  }
  FooterView view;
  view.footer = {.epoch = epoch,
                 .segment_generation = at.segment_generation,
                 .segment = segment,
                 .group_count = at.group_count,
                 .used_pages = at.used_pages};
  absl::Span<const std::byte> headers = bytes.subspan(sizeof(at), at.header_bytes);
  uint64_t page = geometry.SegmentPage(segment);
  while (!headers.empty()) {
    const std::optional<GroupView> group = GroupView::Decode(geometry, epoch, headers);
    if (!group || group->group().segment_generation != at.segment_generation ||
        group->group().base_page < page ||
        geometry.SegmentOf(group->group().base_page) != segment) {
      return std::nullopt;
    }
    page = uint64_t{group->group().base_page} + geometry.group_pages(group->group().block_count);
    headers.remove_prefix(group->bytes().size());
    view.groups.push_back(*group);
  }
  if (view.groups.size() != at.group_count ||
      page > geometry.SegmentPage(segment) + at.used_pages) {
    return std::nullopt;
  }
  return view;
}

// --- The manifest ---

size_t ManifestRecordBytes(uint32_t stretches) {
  return sizeof(ManifestBytes) + 2 * BitmapBytes(stretches);
}

void EncodeManifestRecord(const NvmeGeometry& geometry, const ManifestRecord& record,
                          absl::Span<std::byte> bytes) {
  const uint32_t stretches = geometry.stretches();
  TERRACE_CHECK(bytes.size() == size_t{geometry.manifest_pages} * kPageBytes);
  TERRACE_CHECK(record.dead.size() == stretches && record.reversed.size() == stretches);
  std::memset(bytes.data(), 0, bytes.size());
  ManifestBytes at = {};
  at.preamble.magic = kManifestMagic;
  at.preamble.epoch = record.epoch;
  at.segment_generation = record.segment_generation;
  at.version = record.version;
  at.segment = static_cast<uint32_t>(record.segment);
  at.flags = record.freed ? kFlagFreed : 0;
  at.durable_pages = record.durable_pages;
  at.stretches = stretches;
  at.newest_generation = record.newest_generation;
  std::memcpy(bytes.data(), &at, sizeof(at));
  PutBits(record.dead, bytes.data() + sizeof(at));
  PutBits(record.reversed, bytes.data() + sizeof(at) + BitmapBytes(stretches));
  Stamp(bytes.first(ManifestRecordBytes(stretches)));
}

std::optional<ManifestRecord> DecodeManifestRecord(const NvmeGeometry& geometry, uint64_t epoch,
                                                   SegmentIndex segment,
                                                   absl::Span<const std::byte> bytes) {
  const uint32_t stretches = geometry.stretches();
  ManifestBytes at;
  if (bytes.size() < ManifestRecordBytes(stretches)) return std::nullopt;
  std::memcpy(&at, bytes.data(), sizeof(at));
  if (at.preamble.magic != kManifestMagic || at.preamble.epoch != epoch ||
      at.segment != static_cast<uint32_t>(segment) || at.stretches != stretches ||
      at.durable_pages > geometry.data_pages() ||
      !StampIsRight(bytes.first(ManifestRecordBytes(stretches)))) {
    return std::nullopt;
  }
  ManifestRecord record;
  record.epoch = epoch;
  record.segment_generation = at.segment_generation;
  record.version = at.version;
  record.segment = segment;
  record.freed = (at.flags & kFlagFreed) != 0;
  record.durable_pages = at.durable_pages;
  record.newest_generation = at.newest_generation;
  record.dead = GetBits(stretches, bytes.data() + sizeof(at));
  record.reversed = GetBits(stretches, bytes.data() + sizeof(at) + BitmapBytes(stretches));
  return record;
}

}  // namespace terrace
