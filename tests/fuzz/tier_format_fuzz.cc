// Feeds arbitrary bytes to the parsers of an NVMe tier: its superblock, group headers, footers and
// manifest records. The first byte chooses one of them, whether the checksum is repaired first, so
// that what lies behind it is reached, and which geometry the tier has.

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <optional>
#include <vector>

#include "tiers/nvme_format.h"

namespace terrace {
namespace {

constexpr uint64_t kEpoch = 0x45504f4348;
constexpr SegmentIndex kSegment{1};

enum class Kind : uint8_t { kSuperblock, kGroup, kFooter, kManifest };

// The first byte of an input.
struct Choice {
  explicit Choice(uint8_t byte)
      : kind(static_cast<Kind>(byte & 3)), repair((byte & 4) != 0), large((byte & 8) != 0) {}
  Kind kind;
  bool repair;
  bool large;  // blocks of many pages, else of one
};

void CheckThat(bool condition, const char* promise) {
  if (condition) return;
  std::fprintf(stderr, "broken promise: %s\n", promise);
  std::abort();
}

uint32_t ReadNumber(absl::Span<const std::byte> bytes, size_t at) {
  uint32_t number = 0;
  if (at + sizeof(number) <= bytes.size()) std::memcpy(&number, &bytes[at], sizeof(number));
  return number;
}

// The bytes that the checksum of a record covers, itself included, where they are all there.
absl::Span<std::byte> Stamped(const NvmeGeometry& geometry, Kind kind,
                              absl::Span<std::byte> bytes) {
  uint64_t size = bytes.size();
  if (kind == Kind::kGroup) size = GroupHeaderBytes(geometry, ReadNumber(bytes, 44));
  if (kind == Kind::kFooter) {
    size = MaxFooterBytes(1, 1, 1, /*data_pages=*/0) + uint64_t{ReadNumber(bytes, 44)};
  }
  if (kind == Kind::kManifest) size = ManifestRecordBytes(geometry.stretches());
  return bytes.first(std::min<uint64_t>(size, bytes.size()));
}

void Repair(absl::Span<std::byte> record) {
  if (record.size() < sizeof(uint64_t)) return;
  const uint64_t checksum = Checksum64(record.subspan(sizeof(uint64_t)));
  std::memcpy(record.data(), &checksum, sizeof(checksum));
}

void CheckGroup(const NvmeGeometry& geometry, const GroupView& view) {
  const GroupHeader& group = view.group();
  CheckThat(group.epoch == kEpoch, "groups are of this tier");
  CheckThat(group.segment_generation <= group.generation, "uses start with their first group");
  CheckThat(group.block_count > 0 && group.block_count <= geometry.group_blocks,
            "groups have as many blocks as a group can");
  CheckThat(group.base_page >= geometry.log_start() && group.base_page < geometry.total_pages(),
            "groups are in the log");
  const SegmentIndex segment = geometry.SegmentOf(group.base_page);
  uint64_t sum = 0;
  for (uint32_t i = 0; i < group.block_count; ++i) {
    const GroupRecord record = view.record(i);
    CheckThat(record.checksums.size() == geometry.pages_per_block, "every page has a checksum");
    for (const PageChecksum checksum : record.checksums) sum += checksum;
    CheckThat(
        view.block_page(geometry, i) + geometry.pages_per_block <= geometry.FooterPage(segment),
        "blocks are in the data of one segment");
  }
  CheckThat(sum <= uint64_t{UINT32_MAX} * geometry.pages_per_block * group.block_count,
            "checksums can be read");
}

void FuzzSuperblock(absl::Span<const std::byte> page) {
  const absl::StatusOr<Superblock> decoded = DecodeSuperblock(page);
  if (!decoded.ok()) {
    CheckThat(!decoded.status().message().empty(), "errors say what is wrong");
    return;
  }
  CheckThat(decoded->geometry.total_pages() <= UINT32_MAX, "pages can be counted");
  CheckThat(decoded->geometry.blocks_per_segment() > 0, "segments hold blocks");
  std::vector<std::byte> again(kPageBytes);
  EncodeSuperblock(*decoded, absl::MakeSpan(again));
  const absl::StatusOr<Superblock> same = DecodeSuperblock(again);
  CheckThat(same.ok() && same->geometry == decoded->geometry && same->epoch == decoded->epoch &&
                same->block_bytes == decoded->block_bytes &&
                same->model_fingerprint == decoded->model_fingerprint,
            "superblocks survive writing");
}

void FuzzFooter(const NvmeGeometry& geometry, absl::Span<const std::byte> bytes) {
  const std::optional<FooterView> view = DecodeFooter(geometry, kEpoch, kSegment, bytes);
  if (!view) return;
  CheckThat(view->groups.size() == view->footer.group_count, "all groups are there");
  uint64_t page = geometry.SegmentPage(kSegment);
  for (const GroupView& group : view->groups) {
    CheckGroup(geometry, group);
    CheckThat(group.group().base_page >= page, "groups do not overlap");
    CheckThat(group.group().segment_generation == view->footer.segment_generation,
              "groups are of one use");
    page = group.block_page(geometry, group.group().block_count);
  }
  CheckThat(page <= geometry.SegmentPage(kSegment) + view->footer.used_pages &&
                view->footer.used_pages <= geometry.data_pages(),
            "groups are in the used pages");
}

void FuzzManifest(const NvmeGeometry& geometry, absl::Span<const std::byte> bytes) {
  const std::optional<ManifestRecord> record =
      DecodeManifestRecord(geometry, kEpoch, kSegment, bytes);
  if (!record) return;
  CheckThat(record->durable_pages <= geometry.data_pages(), "no more is durable than there is");
  CheckThat(record->dead.size() == geometry.stretches(), "each stretch has its mark");
  CheckThat(record->reversed.size() == geometry.stretches(), "each stretch has its other mark");
}

void Fuzz(const Choice& choice, const NvmeGeometry& geometry, std::vector<std::byte>& bytes) {
  if (choice.kind == Kind::kSuperblock) bytes.resize(kPageBytes);
  if (choice.repair) Repair(Stamped(geometry, choice.kind, absl::MakeSpan(bytes)));
  switch (choice.kind) {
    case Kind::kSuperblock:
      FuzzSuperblock(bytes);
      break;
    case Kind::kGroup:
      if (const auto view = GroupView::Decode(geometry, kEpoch, bytes)) {
        CheckGroup(geometry, *view);
      }
      break;
    case Kind::kFooter:
      FuzzFooter(geometry, bytes);
      break;
    case Kind::kManifest:
      FuzzManifest(geometry, bytes);
      break;
  }
}

// Headers in a footer have checksums of their own.
void RepairHeaders(const NvmeGeometry& geometry, absl::Span<std::byte> footer) {
  const size_t start = MaxFooterBytes(1, 1, 1, /*data_pages=*/0);
  if (footer.size() < start) return;
  for (footer.remove_prefix(start); !footer.empty();) {
    const absl::Span<std::byte> header = Stamped(geometry, Kind::kGroup, footer);
    Repair(header);
    footer.remove_prefix(header.size());
  }
}

}  // namespace
}  // namespace terrace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using terrace::NvmeGeometry;
  if (size == 0) return 0;
  const terrace::Choice choice(data[0]);
  static const NvmeGeometry geometries[] = {
      *terrace::PlanNvmeGeometry(uint64_t{1} << 20, terrace::kPageBytes),
      *terrace::PlanNvmeGeometry(uint64_t{64} << 20, size_t{64} << 10)};
  const NvmeGeometry& geometry = geometries[choice.large ? 1 : 0];
  // Records start at a multiple of eight, as they do in the buffers that they are read into.
  std::vector<std::byte> bytes(size - 1);
  if (size > 1) std::memcpy(bytes.data(), data + 1, size - 1);
  if (choice.kind == terrace::Kind::kFooter && choice.repair) {
    terrace::RepairHeaders(geometry, absl::MakeSpan(bytes));
  }
  terrace::Fuzz(choice, geometry, bytes);
  return 0;
}
