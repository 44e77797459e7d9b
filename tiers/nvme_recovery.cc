#include "tiers/nvme_recovery.h"

#include <algorithm>
#include <vector>

#include "absl/container/flat_hash_set.h"
#include "io/aligned_buffer.h"
#include "io/check.h"

namespace terrace {
namespace {

class Recovery {
 public:
  Recovery(NvmeReader& reader, absl::FunctionRef<KeyNumber(const KeyName&)> key_index,
           Placement& placement)
      : reader_(reader),
        key_index_(key_index),
        placement_(placement),
        nvme_(*placement.nvme()),
        geometry_(nvme_.geometry()) {}

  absl::StatusOr<RecoveryReport> Run() {
    const absl::Status surveyed = SurveySegments(
        reader_, geometry_, nvme_.epoch(),
        [this](const SegmentSurvey& survey, const SegmentBytes&) {
          newest_generation_ = std::max(newest_generation_, survey.newest_generation);
          report_.damaged_manifests += survey.damaged_copies;
          if (survey.marks_in_one_copy) nvme_.RestoreInOneCopy(survey.segment);
          if (survey.use == SegmentSurvey::Use::kFree) {
            nvme_.RestoreFree(survey.segment, survey.generation, survey.manifest.version);
          } else {
            surveys_.push_back(survey);
          }
        });
    if (!surveyed.ok()) return surveyed;
    // Segments first, because blocks are placed in them; the newest first among blocks, because of
    // each block the first copy that is met counts.
    std::sort(surveys_.begin(), surveys_.end(), [](const SegmentSurvey& a, const SegmentSurvey& b) {
      return a.generation < b.generation;
    });
    walks_.resize(surveys_.size());
    for (size_t i = 0; i < surveys_.size(); ++i) {
      if (absl::Status status = RestoreSegment(surveys_[i], walks_[i]); !status.ok()) return status;
    }
    for (size_t i = surveys_.size(); i > 0; --i) {
      if (absl::Status status = TakeBlocks(surveys_[i - 1], walks_[i - 1]); !status.ok()) {
        return status;
      }
    }
    nvme_.RestoreGeneration(newest_generation_);
    nvme_.ReopenNewest();
    return report_;
  }

 private:
  absl::Status RestoreSegment(const SegmentSurvey& survey, SegmentWalk& walk) {
    NvmeTier::Restored restored;
    restored.segment = survey.segment;
    restored.generation = survey.generation;
    restored.sealed = survey.use == SegmentSurvey::Use::kSealed;
    restored.used_pages = survey.durable_pages;
    restored.durable_pages = survey.durable_pages;
    restored.manifest_version = survey.manifest.version;
    restored.newest_generation = survey.newest_generation;
    if (survey.manifest.segment_generation == survey.generation) {
      restored.dead = survey.manifest.dead;
      restored.reversed = survey.manifest.reversed;
    }
    if (restored.sealed) {
      ++report_.sealed_segments;
      nvme_.Restore(restored);
      return absl::OkStatus();
    }
    absl::StatusOr<SegmentWalk> walked = WalkSegment(reader_, geometry_, nvme_.epoch(), survey);
    if (!walked.ok()) return walked.status();
    walk = *std::move(walked);
    ++report_.unsealed_segments;
    report_.torn_groups += walk.torn_groups;
    report_.damaged_pages += walk.damaged_pages;
    report_.verified_bytes += walk.verified_bytes;
    restored.used_pages = std::max(walk.used_pages, survey.durable_pages);
    restored.newest_generation = std::max(survey.newest_generation, walk.newest_generation);
    restored.last_stamp = walk.last_stamp;
    nvme_.Restore(restored);
    std::vector<absl::Span<const std::byte>> headers;
    std::vector<PageIndex> bases;
    for (const SegmentWalk::Group& group : walk.groups) {
      headers.push_back(group.header);
      bases.push_back(PageIndex{static_cast<uint32_t>(group.page)});
    }
    // Without room for its headers it stays as it is, and is walked again the next time.
    static_cast<void>(nvme_.RestoreHeaders(survey.segment, headers, bases));
    return absl::OkStatus();
  }

  absl::Status TakeBlocks(const SegmentSurvey& survey, SegmentWalk& walk) {
    if (survey.use == SegmentSurvey::Use::kUnsealed) {
      for (size_t i = walk.groups.size(); i > 0; --i) {
        const std::optional<GroupView> group =
            GroupView::Decode(geometry_, nvme_.epoch(), walk.groups[i - 1].header);
        if (group) TakeGroup(survey, *group);
      }
      walk = SegmentWalk();
      return absl::OkStatus();
    }
    const size_t footer_bytes = size_t{geometry_.footer_pages} * kPageBytes;
    if (footer_.size() == 0) {
      absl::StatusOr<AlignedBuffer> buffer = AlignedBuffer::Create(footer_bytes);
      if (!buffer.ok()) return buffer.status();
      footer_ = *std::move(buffer);
    }
    NvmeReader::Piece piece = {.page = geometry_.FooterPage(survey.segment),
                               .bytes = footer_.span()};
    if (absl::Status status = reader_.Read(absl::MakeSpan(&piece, 1)); !status.ok()) return status;
    if (!piece.readable) return absl::OkStatus();  // it was, a moment ago
    const std::optional<FooterView> footer =
        DecodeFooter(geometry_, nvme_.epoch(), survey.segment, footer_.span());
    if (!footer) return absl::OkStatus();
    for (size_t i = footer->groups.size(); i > 0; --i) TakeGroup(survey, footer->groups[i - 1]);
    return absl::OkStatus();
  }

  void TakeGroup(const SegmentSurvey& survey, const GroupView& group) {
    newest_generation_ = std::max(newest_generation_, group.group().generation);
    for (uint32_t i = group.group().block_count; i > 0; --i) {
      const GroupRecord record = group.record(i - 1);
      if (!record.valid) continue;
      const uint64_t page = group.block_page(geometry_, i - 1);
      const PageIndex place{static_cast<uint32_t>(page)};
      if (!survey.MarksHold(group.group())) nvme_.ForgetMarks(place);
      // A block that was dropped hides the older copies of it.
      if (survey.Dead(geometry_, group.group(), page)) {
        dropped_.insert(record.id);
        continue;
      }
      // What a newer copy or its drop hides must stay so when the segment of that one is gone.
      if (dropped_.contains(record.id) || placement_.directory().Find(record.id) != kNoEntry) {
        nvme_.MarkDead(place);
        continue;
      }
      const KeyNumber key = record.key ? key_index_(*record.key) : kNoKey;
      if (record.key && key == kNoKey) {  // there are too many keys
        dropped_.insert(record.id);
        continue;
      }
      const Retention retention = survey.RetentionOf(geometry_, group.group(), page, record);
      TERRACE_CHECK(placement_.RecoverBlock(record.id, place, retention, key));
      std::copy(record.checksums.begin(), record.checksums.end(),
                nvme_.checksums(place, geometry_.pages_per_block).begin());
      if (record.key) nvme_.seal(place) = record.seal;
      ++report_.blocks;
    }
  }

  NvmeReader& reader_;
  const absl::FunctionRef<KeyNumber(const KeyName&)> key_index_;
  Placement& placement_;
  NvmeTier& nvme_;
  const NvmeGeometry geometry_;
  std::vector<SegmentSurvey> surveys_;  // of segments in use
  std::vector<SegmentWalk> walks_;      // of those that are not sealed
  absl::flat_hash_set<BlockId> dropped_;
  AlignedBuffer footer_;
  uint64_t newest_generation_ = 0;
  RecoveryReport report_;
};

}  // namespace

absl::StatusOr<RecoveryReport> RecoverNvme(NvmeReader& reader,
                                           absl::FunctionRef<KeyNumber(const KeyName&)> key_index,
                                           Placement& placement) {
  return Recovery(reader, key_index, placement).Run();
}

}  // namespace terrace
