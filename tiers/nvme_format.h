#ifndef TERRACE_TIERS_NVME_FORMAT_H_
#define TERRACE_TIERS_NVME_FORMAT_H_

#include <cstddef>
#include <cstdint>
#include <optional>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "io/block_cipher.h"
#include "io/checksum.h"
#include "tiers/block_id.h"
#include "tiers/nvme_geometry.h"
#include "tiers/tier.h"

namespace terrace {

// The records of an NVMe tier, all integers little-endian. Each starts with the checksum of the
// rest of it, its kind and the tier's epoch.
//
//   superblock       what the tier is; twice, on a page each
//   manifest record  what happened to a segment after its groups were written: blocks that were
//                    dropped, changes of retention, that it is free; two copies, written in turn
//   group header     leads the blocks that were appended with it and names them
//   footer           the headers of all groups of a sealed segment, without their padding
//
// A segment is written front to back and reused as a whole. Generations grow by one a group over
// the life of a tier; the generation of its first group names one use of a segment, so whatever an
// older use left behind is told apart, and what a tier that was started afresh left by its epoch.
// A process that died may have left groups that nobody saw since, under generations that are given
// out again. They are told apart by stamps: each group names the one before it, and what follows
// another group than it did when it was written is not taken.
inline constexpr uint32_t kNvmeFormatVersion = 2;

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

// --- Group headers ---

// Which key a block was sealed with. Zero for a block that is not encrypted.
struct KeyName {
  uint64_t space = 0;  // the embedder's namespace
  uint64_t check = 0;  // KeyCheck of the key
  friend bool operator==(const KeyName&, const KeyName&) = default;
};

// What a sealed block is bound to, so that it opens in no other's place.
struct BlockAssociation {
  BlockId id;
  uint64_t space = 0;
  uint64_t epoch = 0;
  absl::Span<const std::byte> bytes() const {
    return absl::MakeConstSpan(reinterpret_cast<const std::byte*>(this), sizeof(*this));
  }
};
static_assert(sizeof(BlockAssociation) == 32);  // no padding

struct GroupRecord {
  BlockId id;
  // False for a place whose block was dropped before the group was written.
  bool valid = true;
  Retention retention = Retention::kCached;
  std::optional<KeyName> key;  // nullopt: not encrypted
  BlockSeal seal = {};
  absl::Span<const PageChecksum> checksums;  // [pages_per_block], of the bytes on the device
};

struct GroupHeader {
  uint64_t epoch = 0;
  uint64_t generation = 0;
  uint64_t segment_generation = 0;  // of the first group in this use of the segment
  uint32_t base_page = 0;           // of the header itself
  uint32_t block_count = 0;
  uint64_t stamp = 0;           // unlike that of any other group that was ever written
  uint64_t previous_stamp = 0;  // of the group before it in this use of the segment; 0: the first
};

// Bytes of a header without its padding.
size_t GroupHeaderBytes(const NvmeGeometry& geometry, uint32_t block_count);

// `header`: [geometry.header_pages * kPageBytes]; `records`: [group.block_count].
void EncodeGroupHeader(const NvmeGeometry& geometry, const GroupHeader& group,
                       absl::Span<const GroupRecord> records, absl::Span<std::byte> header);

// A decoded header borrows from the bytes it was decoded from.
class GroupView {
 public:
  // nullopt when the bytes do not start with a whole group header of this tier: another epoch,
  // impossible numbers, a torn write. Where the group lies is for the caller to compare.
  static std::optional<GroupView> Decode(const NvmeGeometry& geometry, uint64_t epoch,
                                         absl::Span<const std::byte> bytes);

  const GroupHeader& group() const { return group_; }
  // REQUIRES: index < group().block_count.
  GroupRecord record(uint32_t index) const;
  uint64_t block_page(const NvmeGeometry& geometry, uint32_t index) const {
    return uint64_t{group_.base_page} + geometry.group_pages(index);
  }
  // The header without its padding.
  absl::Span<const std::byte> bytes() const { return bytes_; }

 private:
  GroupView(const GroupHeader& group, uint32_t pages_per_block, absl::Span<const std::byte> bytes)
      : group_(group), pages_per_block_(pages_per_block), bytes_(bytes) {}

  GroupHeader group_;
  uint32_t pages_per_block_;
  absl::Span<const std::byte> bytes_;
};

// --- Footers ---

struct FooterHeader {
  uint64_t epoch = 0;
  uint64_t segment_generation = 0;
  SegmentIndex segment{};
  uint32_t group_count = 0;
  uint32_t used_pages = 0;  // of the segment's data
};

// `headers`: those of all groups, one after the other, without their padding.
// `footer`: [geometry.footer_pages * kPageBytes].
void EncodeFooter(const NvmeGeometry& geometry, const FooterHeader& footer,
                  absl::Span<const std::byte> headers, absl::Span<std::byte> bytes);

struct FooterView {
  FooterHeader footer;
  std::vector<GroupView> groups;  // in the order of their pages
};
// nullopt when the bytes are not a whole footer of this segment, or one of its headers is not of
// this segment and use.
std::optional<FooterView> DecodeFooter(const NvmeGeometry& geometry, uint64_t epoch,
                                       SegmentIndex segment, absl::Span<const std::byte> bytes);

// --- The manifest ---

struct ManifestRecord {
  uint64_t epoch = 0;
  uint64_t segment_generation = 0;  // the use it speaks of
  uint64_t version = 0;             // the larger one of two valid copies counts
  SegmentIndex segment{};
  bool freed = false;          // nothing of this use is live
  uint32_t durable_pages = 0;  // so much of the data is known to have been synced
  // The newest group that the marks speak of. Later ones may lie where marked ones were lost.
  uint64_t newest_generation = 0;
  // [geometry.stretches()], by the stretch where the block starts.
  std::vector<bool> dead;      // the block was dropped or lost
  std::vector<bool> reversed;  // its retention is the other one than in its group record
};

// `bytes`: [geometry.manifest_pages * kPageBytes].
void EncodeManifestRecord(const NvmeGeometry& geometry, const ManifestRecord& record,
                          absl::Span<std::byte> bytes);
// nullopt when the bytes are not a whole record of this segment.
std::optional<ManifestRecord> DecodeManifestRecord(const NvmeGeometry& geometry, uint64_t epoch,
                                                   SegmentIndex segment,
                                                   absl::Span<const std::byte> bytes);

// --- Sizes of records, for the geometry ---

size_t MaxGroupHeaderBytes(uint32_t pages_per_block, uint32_t blocks);
// The largest footer that `data_pages` of groups can have.
size_t MaxFooterBytes(uint32_t pages_per_block, uint32_t header_pages, uint32_t group_blocks,
                      uint32_t data_pages);
size_t ManifestRecordBytes(uint32_t stretches);

}  // namespace terrace

#endif  // TERRACE_TIERS_NVME_FORMAT_H_
