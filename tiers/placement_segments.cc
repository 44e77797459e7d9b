// Placement: which segment of the NVMe log is opened, which is evicted, and what is rewritten.

#include <algorithm>
#include <array>

#include "io/check.h"
#include "tiers/placement.h"

namespace terrace {

// Opens the next free segment, and sees to it that the reserve stays free: rewriting needs it, and
// its readers have the time of a whole segment to finish.
Room Placement::NextSegment() {
  nvme_->SealOpenSegment();
  const size_t reserve = nvme_->reserve_segments();
  std::array<SegmentIndex, 2> victims;
  size_t count = 0;
  while (nvme_->free_segments() + count < 1 + reserve) {
    const std::optional<SegmentIndex> victim = Victim(absl::MakeSpan(victims).first(count));
    if (!victim) break;
    victims[count++] = *victim;
  }
  // All of them or none yet: a caller that waits may not come back for the rest. Which ones they
  // are must not depend on how fast they are sealed.
  for (size_t i = 0; i < count; ++i) {
    if (nvme_->phase(victims[i]) != SegmentPhase::kSealed) return Room::kWait;
  }
  if (nvme_->free_segments() + count < 1 + reserve) return Room::kFull;
  for (size_t i = 0; i < count; ++i) EvictSegment(victims[i]);
  // What room is wanted for may be gone. Whoever wants it starts over, whether the next segment can
  // be opened at once or not, so that what is decided does not depend on that.
  if (count > 0) return Room::kWait;
  return nvme_->OpenNextSegment() ? Room::kOk : Room::kWait;
}

// A crash leaves a segment that was being drained as it was, its successor partly full, and none
// free. What has not moved yet moves on, before anything else takes the room for it.
Room Placement::RefillReserve() {
  if (!nvme_->has_open_segment()) return Room::kOk;
  if (nvme_->free_segments() >= nvme_->reserve_segments()) return Room::kOk;
  const std::deque<SegmentIndex>& sealed = nvme_->sealed();
  const auto fewest =
      std::min_element(sealed.begin(), sealed.end(), [this](SegmentIndex a, SegmentIndex b) {
        return nvme_->owned_blocks(a) < nvme_->owned_blocks(b);
      });
  // Even where each block has a group of its own.
  const uint32_t fit = nvme_->open_pages_left() / nvme_->geometry().group_pages(1);
  if (fewest == sealed.end() || nvme_->owned_blocks(*fewest) > fit) return Room::kOk;
  if (nvme_->phase(*fewest) == SegmentPhase::kSealed) EvictSegment(*fewest);
  return Room::kWait;  // to start over, as after NextSegment
}

// The oldest sealed segment that has at most the share of owned blocks that hot ones may have too;
// else the one with the fewest. Without a reserve nothing can be rewritten, nor while nothing is
// free: then only a segment without owned blocks falls free.
std::optional<SegmentIndex> Placement::Victim(absl::Span<const SegmentIndex> but) const {
  const bool room = nvme_->free_segments() + but.size() > 0;
  const uint32_t few = room ? MostRewritten(hot_share_) : 0;
  const uint32_t most = room ? MostRewritten(kMaxOwnedShare) : 0;
  std::optional<SegmentIndex> best;
  for (SegmentIndex segment : nvme_->sealed()) {
    if (std::find(but.begin(), but.end(), segment) != but.end()) continue;
    const uint32_t owned = nvme_->owned_blocks(segment);
    if (owned <= few) return segment;
    if (owned <= most && (!best || owned < nvme_->owned_blocks(*best))) best = segment;
  }
  return best;
}

// How many blocks of a segment may be rewritten, if they are to be `share` of it at most. They
// leave room for another block in the next segment, even where each has a group of its own.
uint32_t Placement::MostRewritten(double share) const {
  if (nvme_->reserve_segments() == 0) return 0;
  const NvmeGeometry& geometry = nvme_->geometry();
  const uint32_t single = geometry.data_pages() / geometry.group_pages(1);
  return std::min(static_cast<uint32_t>(geometry.blocks_per_segment() * share), single - 1);
}

// REQUIRES: the victim is in kSealed.
void Placement::EvictSegment(SegmentIndex victim) {
  const bool keep_hot = offload_allowed_ && nvme_->free_segments() > 0;
  const uint32_t hot_limit = keep_hot ? MostRewritten(hot_share_) : 0;
  uint32_t kept = nvme_->owned_blocks(victim);
  doomed_.clear();
  nvme_->VisitBlocks(victim, [&](EntryIndex entry) { doomed_.push_back(entry); });
  for (EntryIndex entry : doomed_) {
    BlockEntry& block = directory_[entry];
    const bool last_tier = block.slot(Pool::kHbm) == kNoSlot && block.slot(Pool::kDram) == kNoSlot;
    const bool owned = block.retention == Retention::kOwned;
    const bool hot = block.hot && last_tier && kept < hot_limit;
    if (owned || hot) {
      if (!owned) ++kept;
      block.rewrite = Rewrite::kQueued;
      rewrites_.push_back(entry);
      continue;
    }
    if (last_tier) ++stats_.evicted_blocks;
    // The segment may stay for what is kept of it: this block must not come back with it after a
    // Drop, which knows it no more.
    nvme_->MarkDead(block.page);
    DropNvmeCopy(entry);
  }
  nvme_->Retire(victim);
  ++stats_.evicted_segments;
}

// What was kept of evicted segments goes into groups before anything else does, so that those
// segments fall free before their successors are full.
Room Placement::AddRewrites() {
  while (!rewrites_.empty()) {
    const EntryIndex entry = rewrites_.front();
    const BlockEntry& block = directory_[entry];
    // An entry that was erased and taken by another block is not in kQueued, or is once more.
    if (block.rewrite == Rewrite::kQueued && block.nvme == CopyState::kResident) {
      const Room room = AddRewrite(entry);
      if (room != Room::kOk) return room;
    }
    rewrites_.pop_front();
  }
  return Room::kOk;
}

// Read from NVMe even where memory has it too: that copy stays free to go, and what is encrypted
// moves as it is.
Room Placement::AddRewrite(EntryIndex entry) {
  if (!open_group_) {
    const Room room = StartGroup();
    if (room != Room::kOk) return room;
  }
  if (table(Pool::kTransit).free_count() == 0) return NoRoom();
  Fill fill;
  fill.source = Fill::Source::kNvme;
  fill.page = directory_[entry].page;
  fill.page_count = pages_per_block_;
  fill.raw = true;
  nvme_->AddReader(fill.page);
  const Place place = ReserveSlot(Pool::kTransit, kNoEntry, fill);
  rewrite_reads_.push_back(place);
  Append(entry, place);
  return Room::kOk;
}

std::optional<Place> Placement::NextRewriteRead() {
  if (rewrite_reads_.empty()) return std::nullopt;
  const Place place = rewrite_reads_.front();
  rewrite_reads_.pop_front();
  return place;
}

void Placement::DropNvmeCopy(EntryIndex entry) {
  BlockEntry& block = directory_[entry];
  if (block.rewrite == Rewrite::kInGroup) LeaveGroup(entry);
  block.rewrite = Rewrite::kNo;
  block.hot = false;
  Transition(block.nvme, CopyState::kEmpty);
  nvme_->Remove(block.page, block.retention == Retention::kOwned);
  block.page = kNoPage;
  stuck_may_move_ = true;
  // Transit is no tier: nothing would ever evict a copy there that NVMe does not double. Leases
  // keep the slot.
  if (block.slot(Pool::kTransit) != kNoSlot) DropCopy(entry, Pool::kTransit);
  EraseIfGone(entry);
}

void Placement::AbandonNvme() {
  StopNvmeWrites();
  rewrites_.clear();
  doomed_.clear();
  const auto collect = [this](EntryIndex entry) {
    if (directory_[entry].nvme == CopyState::kResident) doomed_.push_back(entry);
  };
  for (SegmentIndex segment : nvme_->sealed()) nvme_->VisitBlocks(segment, collect);
  nvme_->VisitFree([&](SegmentIndex segment) { nvme_->VisitBlocks(segment, collect); });
  if (nvme_->open_segment()) nvme_->VisitBlocks(*nvme_->open_segment(), collect);
  for (EntryIndex entry : doomed_) {
    const BlockEntry& block = directory_[entry];
    const bool last_tier = block.slot(Pool::kHbm) == kNoSlot && block.slot(Pool::kDram) == kNoSlot;
    if (last_tier) ++stats_.lost_blocks;
    DropNvmeCopy(entry);
  }
}

std::optional<UpkeepTask> Placement::NextUpkeep() {
  if (nvme_ == nullptr || !nvme_accepts_) return std::nullopt;
  return nvme_->NextUpkeep([this](SegmentIndex segment) { return WrittenPages(segment); });
}

// How much of a segment lies before its first group that is not written yet.
uint32_t Placement::WrittenPages(SegmentIndex segment) const {
  uint32_t pages = nvme_->used_pages(segment);
  for (const WriteGroup& group : groups_) {
    if (!group.in_use || nvme_->SegmentAt(group.base) != segment) continue;
    const uint64_t start = nvme_->geometry().SegmentPage(segment);
    pages = std::min(pages, static_cast<uint32_t>(static_cast<uint32_t>(group.base) - start));
  }
  return pages;
}

}  // namespace terrace
