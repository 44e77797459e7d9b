#include "tiers/nvme_check.h"

#include <algorithm>
#include <utility>

#include "absl/container/flat_hash_map.h"
#include "absl/strings/str_cat.h"
#include "io/aligned_buffer.h"
#include "tiers/nvme_check_repair.h"
#include "tiers/nvme_check_segment.h"
#include "tiers/nvme_survey.h"
#include "tiers/tier_file.h"

namespace terrace {
namespace {

bool Blank(absl::Span<const std::byte> bytes) {
  return std::all_of(bytes.begin(), bytes.end(),
                     [](std::byte byte) { return byte == std::byte{}; });
}

bool FooterIsDamaged(const NvmeGeometry& geometry, SegmentIndex segment,
                     absl::Span<const std::byte> footer) {
  if (footer.empty()) return true;
  return !DecodeFooter(geometry, EpochOf(footer), segment, footer) && !Blank(footer);
}

class Checker {
 public:
  Checker(BlockDevice& device, absl::FunctionRef<bool(const CheckProgress&)> go_on)
      : device_(device),
        go_on_(go_on),
        reader_([&device](absl::Span<IoRequest* const> batch) { return RunBatch(device, batch); }) {
  }

  absl::StatusOr<CheckReport> Run() {
    for (const auto step :
         {&Checker::ReadTier, &Checker::CheckSuperblocks, &Checker::CheckSegments}) {
      if (absl::Status status = (this->*step)(); !status.ok()) return status;
    }
    DescribeBlocks();
    std::stable_sort(report_.damage.begin(), report_.damage.end(),
                     [](const Damage& a, const Damage& b) { return a.offset < b.offset; });
    return std::move(report_);
  }

 private:
  struct Segment {
    SegmentSurvey survey;
    SegmentFaults faults;
  };
  // What the newer segments said about an id.
  struct Known {
    bool live = false;     // the newest copy counts
    bool whole = false;    // and is whole
    bool dropped = false;  // a copy is marked dead, which hides older ones
  };

  bool sealed(const Segment& segment) const {
    return segment.survey.use == SegmentSurvey::Use::kSealed;
  }
  uint32_t PagesToRead(const Segment& segment) const {
    return sealed(segment) ? segment.survey.durable_pages + geometry_.footer_pages
                           : geometry_.data_pages();
  }

  absl::Status ReadTier();
  absl::Status CheckSuperblocks();
  void TakeSurvey(const SegmentSurvey& survey, const SegmentBytes& bytes);
  absl::Status CheckSegments();
  absl::Status CheckSegment(Segment& segment);
  absl::StatusOr<SegmentGroups> FindGroups(Segment& segment);
  void CheckGroup(Segment& segment, const GroupView& group);
  void CheckBlock(Segment& segment, const GroupHeader& group, const GroupRecord& record,
                  uint64_t page);
  void AddBlockDamage(const DamagedBlock& block, SegmentIndex segment, uint64_t page);
  void DescribeBlocks();
  void Add(DamageKind kind, std::optional<SegmentIndex> segment, uint64_t page, std::string detail);

  BlockDevice& device_;
  const absl::FunctionRef<bool(const CheckProgress&)> go_on_;
  NvmeReader reader_;
  NvmeGeometry geometry_;
  uint64_t epoch_ = 0;
  std::vector<Segment> in_use_;
  bool ever_used_ = false;  // some segment was
  std::optional<SegmentImage> image_;
  absl::flat_hash_map<BlockId, Known> known_;
  absl::flat_hash_map<BlockId, std::vector<size_t>> damaged_;  // indices of report_.damage
  CheckProgress progress_;
  CheckReport report_;
};

void Checker::Add(DamageKind kind, std::optional<SegmentIndex> segment, uint64_t page,
                  std::string detail) {
  report_.damage.push_back({.kind = kind,
                            .segment = segment,
                            .offset = page * kPageBytes,
                            .detail = std::move(detail),
                            .block = std::nullopt});
}

// Finds out what the tier is, and what state its segments are in.
absl::Status Checker::ReadTier() {
  const std::string& path = device_.info().path;
  const absl::string_view name = path.empty() ? "the device" : absl::string_view(path);
  const absl::StatusOr<std::optional<Superblock>> found = ReadSuperblock(
      [this](absl::Span<IoRequest* const> batch) { return RunBatch(device_, batch); }, name);
  if (!found.ok()) return found.status();
  if (!*found) return absl::InvalidArgumentError(absl::StrCat(name, " is blank, and no tier"));
  report_.superblock = **found;
  geometry_ = report_.superblock.geometry;
  epoch_ = report_.superblock.epoch;
  const uint64_t has = device_.info().size_bytes;
  const uint64_t needs = geometry_.total_bytes();
  if (has != needs) {
    Add(DamageKind::kFile, std::nullopt, std::min(has, needs) / kPageBytes,
        absl::StrCat(name, " has ", has, " bytes, and the tier ", needs));
  }
  return SurveySegments(reader_, geometry_, epoch_,
                        [this](const SegmentSurvey& survey, const SegmentBytes& bytes) {
                          TakeSurvey(survey, bytes);
                        });
}

absl::Status Checker::CheckSuperblocks() {
  absl::StatusOr<AlignedBuffer> bytes = AlignedBuffer::Create((kSuperblockPages + 1) * kPageBytes);
  if (!bytes.ok()) return bytes.status();
  const absl::Span<std::byte> wanted = bytes->span().first(kPageBytes);
  EncodeSuperblock(report_.superblock, wanted);
  for (uint32_t copy = 0; copy < kSuperblockPages; ++copy) {
    NvmeReader::Piece piece = {.page = copy,
                               .bytes = bytes->span().subspan((copy + 1) * kPageBytes, kPageBytes)};
    if (absl::Status read = reader_.Read(absl::MakeSpan(&piece, 1)); !read.ok()) return read;
    if (piece.readable && piece.bytes == wanted) continue;
    const bool left = piece.readable && (Blank(piece.bytes) || DecodeSuperblock(piece.bytes).ok());
    if (left && !ever_used_) {
      report_.unfinished_start = true;
      continue;
    }
    Add(DamageKind::kSuperblock, std::nullopt, copy,
        absl::StrCat("copy ", copy, " of the superblock is damaged; the other one serves"));
    PlanSuperblock(report_.superblock, copy, report_.repairs);
  }
  return absl::OkStatus();
}

void Checker::TakeSurvey(const SegmentSurvey& survey, const SegmentBytes& bytes) {
  Segment segment = {.survey = survey, .faults = {}};
  const SegmentIndex index = survey.segment;
  ever_used_ = ever_used_ || segment.survey.newest_generation > 0;
  for (uint32_t copy = 0; copy < kManifestCopies; ++copy) {
    if (!ManifestIsDamaged(geometry_, index, bytes.manifest[copy])) continue;
    segment.faults.manifest_damaged[copy] = true;
    Add(DamageKind::kManifest, index, geometry_.ManifestPage(index, copy),
        absl::StrCat("copy ", copy, " of the segment's record is damaged; ",
                     segment.survey.manifest.version > 0
                         ? "the other one serves"
                         : "there is no other one, so blocks that were dropped may come back"));
  }
  if (segment.survey.use == SegmentSurvey::Use::kFree) {
    ++report_.segments.free;
    PlanSegment(geometry_, epoch_, segment.survey, segment.faults, {}, report_.repairs);
    return;
  }
  ++(sealed(segment) ? report_.segments.sealed : report_.segments.unsealed);
  segment.faults.footer_damaged =
      !sealed(segment) && FooterIsDamaged(geometry_, index, bytes.footer);
  progress_.bytes_to_read += uint64_t{PagesToRead(segment)} * kPageBytes;
  in_use_.push_back(std::move(segment));
}

// The newest segment first: of each block the first copy that is met counts.
absl::Status Checker::CheckSegments() {
  absl::StatusOr<SegmentImage> image = SegmentImage::Create(geometry_);
  if (!image.ok()) return image.status();
  image_ = *std::move(image);
  std::sort(in_use_.begin(), in_use_.end(), [](const Segment& a, const Segment& b) {
    return a.survey.generation > b.survey.generation;
  });
  for (Segment& segment : in_use_) {
    if (absl::Status status = CheckSegment(segment); !status.ok()) return status;
  }
  return absl::OkStatus();
}

absl::StatusOr<SegmentGroups> Checker::FindGroups(Segment& segment) {
  const SegmentIndex index = segment.survey.segment;
  const auto go_on = [this](uint64_t bytes) {
    progress_.bytes_read += bytes;
    return go_on_(progress_);
  };
  image_->Begin(index);
  const uint32_t data_pages =
      sealed(segment) ? segment.survey.durable_pages : geometry_.data_pages();
  absl::Status read = image_->Read(reader_, geometry_.SegmentPage(index), data_pages, go_on);
  if (!read.ok()) return read;
  if (sealed(segment)) {
    const uint64_t page = geometry_.FooterPage(index);
    read = image_->Read(reader_, page, geometry_.footer_pages, go_on);
    if (!read.ok()) return read;
    const std::optional<FooterView> footer =
        DecodeFooter(geometry_, epoch_, index, image_->Pages(page, geometry_.footer_pages));
    if (footer) return GroupsOfFooter(*image_, geometry_, *footer);
    segment.faults.footer_damaged = true;  // it was whole a moment ago
  }
  // A footer is only written once all groups are durable.
  return WalkGroups(*image_, geometry_, epoch_, segment.survey, segment.faults.footer_damaged);
}

absl::Status Checker::CheckSegment(Segment& segment) {
  const SegmentIndex index = segment.survey.segment;
  const absl::StatusOr<SegmentGroups> groups = FindGroups(segment);
  if (!groups.ok()) return groups.status();
  if (segment.faults.footer_damaged) {
    Add(DamageKind::kFooter, index, geometry_.FooterPage(index),
        absl::StrCat("the footer is damaged; the headers of ", groups->groups.size(),
                     " groups serve"));
  }
  for (const size_t header : groups->damaged_headers) {
    const GroupHeader& group = groups->groups[header].group();
    Add(DamageKind::kHeader, index, group.base_page,
        absl::StrCat("the header of a group of ", group.block_count,
                     " blocks is damaged; the footer serves"));
  }
  for (const SegmentGroups::Gap& gap : groups->missing) {
    Add(DamageKind::kGroups, index, gap.page,
        absl::StrCat("no group that can be read is where ", gap.count,
                     " pages were durable; the blocks in them are lost"));
  }
  report_.unfinished_groups += groups->unfinished;
  for (size_t i = groups->groups.size(); i > 0; --i) CheckGroup(segment, groups->groups[i - 1]);
  PlanSegment(geometry_, epoch_, segment.survey, segment.faults, *groups, report_.repairs);
  return absl::OkStatus();
}

void Checker::CheckGroup(Segment& segment, const GroupView& group) {
  for (uint32_t i = group.group().block_count; i > 0; --i) {
    const GroupRecord record = group.record(i - 1);
    if (record.valid)
      CheckBlock(segment, group.group(), record, group.block_page(geometry_, i - 1));
  }
}

void Checker::CheckBlock(Segment& segment, const GroupHeader& group, const GroupRecord& record,
                         uint64_t page) {
  Known& known = known_[record.id];
  if (segment.survey.Dead(geometry_, group, page)) {
    ++report_.blocks.dead;
    known.dropped = true;
    return;
  }
  const Retention retention = segment.survey.RetentionOf(geometry_, group, page, record);
  const bool first = !known.live && !known.dropped;
  if (first) {
    known.live = true;
    ++(retention == Retention::kOwned ? report_.blocks.owned : report_.blocks.cached);
    if (record.key) ++report_.blocks.encrypted;
  } else {
    ++report_.blocks.stale_copies;
  }
  report_.bytes_checked += report_.superblock.block_bytes;
  const std::optional<uint32_t> damaged = image_->FirstDamagedPage(page, record);
  if (damaged) {
    segment.faults.damaged_blocks.push_back(page);
    AddBlockDamage({.id = record.id,
                    .first_damaged_page = *damaged,
                    .retention = retention,
                    .encrypted = record.key.has_value(),
                    .newer_copy = known.whole},
                   segment.survey.segment, page);
    return;
  }
  if (first) known.whole = true;
  const auto older_of = damaged_.find(record.id);
  if (older_of == damaged_.end() || known.dropped) return;
  for (const size_t index : older_of->second) report_.damage[index].block->older_copy = true;
}

void Checker::AddBlockDamage(const DamagedBlock& block, SegmentIndex segment, uint64_t page) {
  damaged_[block.id].push_back(report_.damage.size());
  ++report_.damaged_blocks;
  Add(DamageKind::kBlock, segment, page, "");
  report_.damage.back().block = block;
}

void Checker::DescribeBlocks() {
  for (Damage& damage : report_.damage) {
    if (!damage.block) continue;
    damage.detail =
        absl::StrCat("page ", damage.block->first_damaged_page, " of the block is damaged",
                     damage.block->newer_copy ? "; a newer whole copy is served" : "",
                     damage.block->older_copy ? "; an older whole copy is hidden by it" : "");
  }
}

}  // namespace

const char* DamageKindName(DamageKind kind) {
  switch (kind) {
    case DamageKind::kFile:
      return "file";
    case DamageKind::kSuperblock:
      return "superblock";
    case DamageKind::kManifest:
      return "manifest";
    case DamageKind::kFooter:
      return "footer";
    case DamageKind::kHeader:
      return "header";
    case DamageKind::kGroups:
      return "groups";
    case DamageKind::kBlock:
      return "block";
  }
  return "?";
}

absl::StatusOr<CheckReport> CheckNvmeTier(BlockDevice& device,
                                          absl::FunctionRef<bool(const CheckProgress&)> go_on) {
  return Checker(device, go_on).Run();
}

}  // namespace terrace
