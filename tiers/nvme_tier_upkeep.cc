// NvmeTier: manifest records, footers and syncs.

#include <algorithm>

#include "io/check.h"
#include "tiers/nvme_tier.h"

namespace terrace {

// What is written now is covered by the next sync that starts. `hurry`: it is to start soon.
void NvmeTier::AwaitSync(SegmentIndex index, SegmentPhase phase, bool hurry) {
  At(index).phase = phase;
  At(index).sync = syncs_started_ + 1;
  awaiting_.push_back(index);
  if (hurry) sync_wanted_ = std::max(sync_wanted_, At(index).sync);
}

void NvmeTier::Written(SegmentIndex segment) {
  AwaitSync(segment, SegmentPhase::kSealSync, /*hurry=*/true);
  RequestManifest();  // the same sync makes it durable, or the one after it
}

// The record that a segment is free must not become durable before those of all that were evicted
// before it. A block that was moved from one of these to this one and was dropped here would come
// back with its old place, which only the mark here hides.
void NvmeTier::Drained(SegmentIndex index) {
  At(index).phase = SegmentPhase::kDrained;
  FreeDrained();
}

// Segments were evicted in the order of the free list; those that were opened since were free.
void NvmeTier::FreeDrained() {
  const auto first = std::find_if(free_.begin(), free_.end(), [this](SegmentIndex segment) {
    return At(segment).phase != SegmentPhase::kFree;
  });
  if (first == free_.end()) return;
  Segment& segment = At(*first);
  if (segment.phase == SegmentPhase::kDrained) {
    segment.phase = SegmentPhase::kFreeing;
    ++segment.changes;
    QueueManifest(*first);
  } else if (segment.phase == SegmentPhase::kFreeSync) {
    const bool others_wait = std::any_of(first, free_.end(), [this](SegmentIndex waiting) {
      return At(waiting).phase == SegmentPhase::kDrained;
    });
    if (others_wait) sync_wanted_ = std::max(sync_wanted_, segment.sync);
  }
}

void NvmeTier::QueueManifest(SegmentIndex index) {
  Segment& segment = At(index);
  segment.manifest_stale = true;
  if (segment.manifest_queued || segment.manifest_writing) return;
  segment.manifest_queued = true;
  ++manifest_pending_;
  due_.push_back({.kind = UpkeepTask::Kind::kManifest, .segment = index});
}

void NvmeTier::ManifestChanged(SegmentIndex index) {
  Segment& segment = At(index);
  if (segment.manifest_stale || segment.phase == SegmentPhase::kFree ||
      segment.phase >= SegmentPhase::kFreeing) {
    return;
  }
  segment.manifest_stale = true;
  if (!segment.manifest_queued && !segment.manifest_writing) changed_.push_back(index);
}

void NvmeTier::RequestManifest() {
  for (SegmentIndex segment : changed_) {
    // Unless a record that was begun since has it.
    if (At(segment).manifest_stale) QueueManifest(segment);
  }
  changed_.clear();
}

uint64_t NvmeTier::RequestSync() {
  sync_wanted_ = syncs_started_ + 1;
  return sync_wanted_;
}

void NvmeTier::RequestMark() {
  if (open_ && At(*open_).durable_pages != At(*open_).marked_pages) QueueManifest(*open_);
}

void NvmeTier::RequestCopies() {
  for (SegmentIndex index : one_copy_) {
    Segment& segment = At(index);
    segment.in_one_copy = false;
    if (segment.recorded != segment.recorded_before) QueueManifest(index);
  }
  one_copy_.clear();
}

bool NvmeTier::FooterPending(uint64_t generation) const {
  return std::any_of(drafts_.begin(), drafts_.end(), [&](const Draft& draft) {
    return draft.segment && draft.segment != open_ && At(*draft.segment).generation <= generation;
  });
}

bool NvmeTier::upkeep_pending() const {
  return !due_.empty() || upkeep_in_flight_ > 0 || sync_wanted_ > syncs_started_;
}

// A record that may tear goes over the older copy, so the other one has to be durable by then.
bool NvmeTier::MayStart(const UpkeepTask& task) const {
  return task.kind != UpkeepTask::Kind::kManifest || !manifest_tears_ ||
         At(task.segment).manifest_sync <= syncs_done_;
}

std::optional<UpkeepTask> NvmeTier::NextUpkeep(absl::FunctionRef<uint32_t(SegmentIndex)> written) {
  const auto due = std::find_if(due_.begin(), due_.end(),
                                [this](const UpkeepTask& task) { return MayStart(task); });
  if (due != due_.end()) {
    UpkeepTask task = *due;
    due_.erase(due);
    if (task.kind == UpkeepTask::Kind::kManifest) {
      Segment& segment = At(task.segment);
      segment.manifest_queued = false;
      segment.manifest_stale = false;
      segment.manifest_writing = true;
      segment.marked_pages = segment.durable_pages;
      task.number = ++segment.manifest_version;
      segment.recorded_before = segment.recorded;
      segment.recorded = segment.changes;
      if (segment.recorded != segment.recorded_before && !segment.in_one_copy) {
        segment.in_one_copy = true;
        one_copy_.push_back(task.segment);
      }
    }
    ++upkeep_in_flight_;
    return task;
  }
  for (const UpkeepTask& task : due_) {
    sync_wanted_ = std::max(sync_wanted_, At(task.segment).manifest_sync);
  }
  const bool sync_in_flight = syncs_started_ > syncs_done_;
  if (sync_wanted_ <= syncs_started_ || sync_in_flight) return std::nullopt;
  for (const Draft& draft : drafts_) {
    if (draft.segment) At(*draft.segment).syncing_pages = written(*draft.segment);
  }
  ++upkeep_in_flight_;
  return UpkeepTask{.kind = UpkeepTask::Kind::kSync, .segment = {}, .number = ++syncs_started_};
}

void NvmeTier::UpkeepDone(const UpkeepTask& task) {
  --upkeep_in_flight_;
  switch (task.kind) {
    case UpkeepTask::Kind::kManifest:
      ManifestDone(task.segment);
      break;
    case UpkeepTask::Kind::kFooter:
      At(task.segment).phase = SegmentPhase::kSealed;
      DraftOf(task.segment)->segment.reset();
      break;
    case UpkeepTask::Kind::kSync:
      SyncDone(task.number);
      break;
  }
}

void NvmeTier::ManifestDone(SegmentIndex index) {
  Segment& segment = At(index);
  segment.manifest_writing = false;
  segment.manifest_sync = syncs_started_ + 1;
  --manifest_pending_;
  if (segment.manifest_stale) {
    QueueManifest(index);
  } else if (segment.phase == SegmentPhase::kFreeing) {
    AwaitSync(index, SegmentPhase::kFreeSync, /*hurry=*/false);
    FreeDrained();
  }
}

void NvmeTier::SyncDone(uint64_t number) {
  syncs_done_ = number;
  for (const Draft& draft : drafts_) {
    if (!draft.segment) continue;
    Segment& segment = At(*draft.segment);
    segment.durable_pages = std::max(segment.durable_pages, segment.syncing_pages);
    segment.syncing_pages = 0;
  }
  std::vector<SegmentIndex> still;
  for (SegmentIndex segment : awaiting_) {
    if (At(segment).sync > number) {
      still.push_back(segment);
    } else {
      AfterSync(segment);
    }
  }
  awaiting_ = std::move(still);
}

void NvmeTier::AfterSync(SegmentIndex index) {
  Segment& segment = At(index);
  switch (segment.phase) {
    case SegmentPhase::kSealSync:
      segment.phase = SegmentPhase::kFooter;
      segment.durable_pages = segment.used_pages;
      due_.push_back({.kind = UpkeepTask::Kind::kFooter, .segment = index});
      break;
    case SegmentPhase::kDrainSync:
      Drained(index);
      break;
    case SegmentPhase::kFreeSync:
      segment.phase = SegmentPhase::kFree;
      FreeDrained();
      break;
    default:
      TERRACE_CHECK(false);
  }
}

ManifestRecord NvmeTier::manifest_record(SegmentIndex index) const {
  const Segment& segment = At(index);
  const size_t first = FirstStretch(index);
  ManifestRecord record;
  record.epoch = epoch_;
  record.segment_generation = segment.generation;
  record.version = segment.manifest_version;
  record.segment = index;
  record.freed = segment.phase >= SegmentPhase::kFreeing || segment.phase == SegmentPhase::kFree;
  record.durable_pages = segment.marked_pages;
  record.newest_generation = segment.newest_generation;
  record.dead.assign(dead_.begin() + first, dead_.begin() + first + stretches_);
  record.reversed.assign(reversed_.begin() + first, reversed_.begin() + first + stretches_);
  return record;
}

FooterHeader NvmeTier::footer_header(SegmentIndex index) const {
  const Draft* const draft = DraftOf(index);
  TERRACE_CHECK(draft != nullptr);
  return {.epoch = epoch_,
          .segment_generation = At(index).generation,
          .segment = index,
          .group_count = static_cast<uint32_t>(draft->headers.size()),
          .used_pages = At(index).used_pages};
}

absl::Span<const std::byte> NvmeTier::footer_headers(SegmentIndex index) const {
  return DraftOf(index)->bytes;
}

}  // namespace terrace
