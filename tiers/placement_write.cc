// Placement: write groups, segments of the NVMe log, and what a flush selects.

#include <algorithm>

#include "io/check.h"
#include "tiers/placement.h"

namespace terrace {
namespace {

// Write-back runs ahead of eviction by this share of DRAM, at most by so many groups, so that
// victims are clean when their slots are needed.
constexpr size_t kAheadShare = 4;
constexpr size_t kAheadGroups = 8;

// An open group keeps at most this share of the transit pool. With the half that leases may have,
// that leaves a quarter where reads on their way to HBM can arrive, so none waits for a group to be
// closed.
constexpr size_t kTransitShare = 4;

}  // namespace

Room Placement::AddToGroup(EntryIndex entry, Place source) {
  const Room room = OpenGroup();
  if (room != Room::kOk) return room;
  WriteGroup& group = groups_[*open_group_];
  const NvmeGeometry& geometry = nvme_->geometry();
  const uint32_t offset =
      geometry.header_pages + static_cast<uint32_t>(group.blocks.size()) * geometry.pages_per_block;
  BlockEntry& block = directory_[entry];
  Transition(block.nvme, CopyState::kFilling);
  block.page = PageIndex{static_cast<uint32_t>(group.base) + offset};
  nvme_->Place(block.page, entry, block.retention == Retention::kOwned);
  group.blocks.push_back({entry, source, block.retention});
  SlotTable& slots = table(source.pool);
  slots.Pin(source.slot);
  if (slots.state(source.slot) == CopyState::kFilling) {
    slots.fill(source.slot).group = static_cast<uint8_t>(*open_group_);
    ++group.pending;
  }
  if (source.pool == Pool::kTransit) ++group.in_transit;
  const size_t transit_share = table(Pool::kTransit).size() / kTransitShare;
  if (group.blocks.size() == group.capacity ||
      (group.in_transit > 0 && group.in_transit >= transit_share)) {
    CloseOpenGroup();
  }
  return Room::kOk;
}

// Has an open group with room for a block, or says why not.
Room Placement::OpenGroup() {
  if (!nvme_accepts_) return Room::kFull;
  if (open_group_) return Room::kOk;
  const auto unused = std::find_if(groups_.begin(), groups_.end(),
                                   [](const WriteGroup& group) { return !group.in_use; });
  if (unused == groups_.end()) return Room::kWait;
  const NvmeGeometry& geometry = nvme_->geometry();
  if (nvme_->open_pages_left() < geometry.header_pages + geometry.pages_per_block) {
    const Room room = NextSegment();
    if (room != Room::kOk) return room;
  }
  WriteGroup& group = *unused;
  group.in_use = true;
  group.closed = false;
  group.base = nvme_->append_point();
  group.capacity =
      std::min(geometry.group_blocks,
               (nvme_->open_pages_left() - geometry.header_pages) / geometry.pages_per_block);
  group.pending = 0;
  group.in_transit = 0;
  group.blocks.clear();
  nvme_->AddWriter(group.base);
  open_group_ = static_cast<size_t>(unused - groups_.begin());
  return Room::kOk;
}

void Placement::CloseOpenGroup() {
  if (!open_group_) return;
  WriteGroup& group = groups_[*open_group_];
  const NvmeGeometry& geometry = nvme_->geometry();
  group.generation =
      nvme_->FinishGroup(geometry.header_pages +
                         static_cast<uint32_t>(group.blocks.size()) * geometry.pages_per_block);
  group.closed = true;
  last_generation_ = group.generation;
  ++stats_.write_groups;
  closed_groups_.push_back(*open_group_);
  open_group_.reset();
}

// Opens the segment that has been free longest, and sees to it that the reserve stays free: its
// readers have the time of a whole segment to finish.
Room Placement::NextSegment() {
  nvme_->SealOpenSegment();
  const size_t wanted = 1 + nvme_->reserve_segments();
  const size_t missing = wanted - std::min(wanted, nvme_->free_segments());
  // All of them or none yet: a caller that waits may not come back for the rest.
  if (nvme_->AnyVictimBeingWritten(missing)) return Room::kWait;
  for (size_t i = 0; i < missing && EvictSegment(); ++i) continue;
  if (nvme_->free_segments() == 0) return Room::kFull;
  return nvme_->OpenNextSegment() ? Room::kOk : Room::kWait;
}

// REQUIRES: the victim is not being written.
bool Placement::EvictSegment() {
  const std::optional<SegmentIndex> victim = nvme_->Victim();
  if (!victim) return false;
  doomed_.clear();
  nvme_->VisitBlocks(*victim, [&](EntryIndex entry) { doomed_.push_back(entry); });
  for (EntryIndex entry : doomed_) {
    const BlockEntry& block = directory_[entry];
    const bool last_tier = block.slot(Pool::kHbm) == kNoSlot && block.slot(Pool::kDram) == kNoSlot;
    if (last_tier) ++stats_.evicted_blocks;
    DropNvmeCopy(entry);
  }
  nvme_->FreeSegment(*victim);
  ++stats_.evicted_segments;
  return true;
}

void Placement::DropNvmeCopy(EntryIndex entry) {
  BlockEntry& block = directory_[entry];
  Transition(block.nvme, CopyState::kEmpty);
  nvme_->Remove(block.page, block.retention == Retention::kOwned);
  block.page = kNoPage;
  stuck_may_move_ = true;
  // Transit is no tier: nothing would ever evict a copy there that NVMe does not double. Leases
  // keep the slot.
  if (block.slot(Pool::kTransit) != kNoSlot) DropCopy(entry, Pool::kTransit);
  EraseIfGone(entry);
}

// Takes a block that is going to NVMe out of its group; its place in the log stays, marked void.
void Placement::VoidGroupBlock(EntryIndex entry) {
  for (WriteGroup& group : groups_) {
    if (!group.in_use) continue;
    for (WriteGroup::Block& block : group.blocks) {
      if (block.entry == entry) block.entry = kNoEntry;
    }
  }
  BlockEntry& block = directory_[entry];
  Transition(block.nvme, CopyState::kEmpty);
  nvme_->Remove(block.page, block.retention == Retention::kOwned);
  block.page = kNoPage;
}

std::optional<size_t> Placement::NextGroup() {
  const auto ready = std::find_if(closed_groups_.begin(), closed_groups_.end(),
                                  [this](size_t index) { return groups_[index].pending == 0; });
  if (ready == closed_groups_.end()) return std::nullopt;
  const size_t index = *ready;
  closed_groups_.erase(ready);
  for (WriteGroup::Block& block : groups_[index].blocks) {
    if (block.entry == kNoEntry) continue;
    block.retention = directory_[block.entry].retention;
    const absl::Span<PageChecksum> made = table(block.source.pool).checksums(block.source.slot);
    const absl::Span<PageChecksum> kept =
        nvme_->checksums(directory_[block.entry].page, pages_per_block_);
    std::copy(made.begin(), made.end(), kept.begin());
  }
  return index;
}

void Placement::GroupWritten(size_t index, bool written) {
  WriteGroup& group = groups_[index];
  nvme_->RemoveWriter(group.base);
  for (const WriteGroup::Block& written_block : group.blocks) {
    const EntryIndex entry = written_block.entry;
    if (entry != kNoEntry) {
      BlockEntry& block = directory_[entry];
      if (written) {
        Transition(block.nvme, CopyState::kResident);
      } else {
        Transition(block.nvme, CopyState::kEmpty);
        nvme_->Remove(block.page, block.retention == Retention::kOwned);
        block.page = kNoPage;
        if (written_block.source.pool == Pool::kTransit) {
          DropCopy(entry, Pool::kTransit);
          if (!block.in_memory()) ++stats_.lost_blocks;
          EraseIfGone(entry);
        }
      }
    }
    EndPin(written_block.source);
  }
  group.in_use = false;
  group.blocks.clear();
}

bool Placement::WrittenUpTo(uint64_t generation) const {
  return std::none_of(groups_.begin(), groups_.end(), [&](const WriteGroup& group) {
    return group.in_use && group.closed && group.generation <= generation;
  });
}

// Sends the coldest dirty blocks of DRAM down before their slots are needed. Due once a group's
// worth of slots was taken. When all groups are in flight the caller waits: this is what slows it
// down to the disk's speed, and it keeps the log independent of that speed.
Room Placement::SelectAhead() {
  if (!nvme_accepts_) return Room::kOk;
  if (selected_.empty() && reserved_since_select_ >= nvme_->geometry().group_blocks) ChooseAhead();
  // Each is tried once, over all calls that have to wait: where NVMe has room for few, writing one
  // makes another dirty again, and choosing anew would never end.
  while (!selected_.empty()) {
    const SlotIndex slot = selected_.back();
    const EntryIndex entry = table(Pool::kDram).entry(slot);
    if (entry != kNoEntry && WorthWritingAhead(entry)) {
      const Room room = AddToGroup(entry, {Pool::kDram, slot});
      if (room == Room::kWait) return room;
    }
    selected_.pop_back();
  }
  return Room::kOk;
}

bool Placement::WorthWritingAhead(EntryIndex entry) const {
  const BlockEntry& block = directory_[entry];
  return Dirty(block) && block.slot(Pool::kHbm) == kNoSlot;
}

void Placement::ChooseAhead() {
  const SlotTable& dram = table(Pool::kDram);
  const size_t group_blocks = nvme_->geometry().group_blocks;
  const size_t ahead = std::min(dram.size() / kAheadShare, kAheadGroups * group_blocks);
  const size_t used = dram.size() - dram.free_count() - dram.falling_count();
  size_t to_visit = used + ahead - std::min(used + ahead, dram.size());
  dram.policy().VisitColdest([&](SlotIndex slot) {
    if (to_visit-- == 0) return false;
    if (WorthWritingAhead(dram.entry(slot))) selected_.push_back(slot);
    return true;
  });
  std::reverse(selected_.begin(), selected_.end());
  reserved_since_select_ = 0;
}

// Blocks are flushed in the order of their entries, which follows from the order of calls. That of
// their slots does not: slots fall free when transfers end.
Placement::FlushCursor Placement::BeginFlush() {
  flushing_.clear();
  for (Pool pool : {Pool::kHbm, Pool::kDram}) {
    const SlotTable& slots = table(pool);
    for (size_t i = 0; i < slots.size(); ++i) {
      const EntryIndex entry = slots.entry(SlotIndex(i));
      if (entry == kNoEntry || !Dirty(directory_[entry])) continue;
      const bool twice = pool == Pool::kDram && directory_[entry].slot(Pool::kHbm) != kNoSlot;
      if (!twice) flushing_.push_back(entry);
    }
  }
  std::sort(flushing_.begin(), flushing_.end());
  return {};
}

Room Placement::SelectDirty(FlushCursor& cursor) {
  for (; cursor.next < flushing_.size(); ++cursor.next) {
    const Room room = SelectForFlush(flushing_[cursor.next]);
    if (room != Room::kOk) return room;
  }
  CloseOpenGroup();
  return Room::kOk;
}

Room Placement::SelectForFlush(EntryIndex entry) {
  BlockEntry& block = directory_[entry];
  const Pool pool = block.slot(Pool::kDram) != kNoSlot ? Pool::kDram : Pool::kHbm;
  const SlotIndex slot = block.slot(pool);
  if (slot == kNoSlot || !Dirty(block)) return Room::kOk;  // dropped, or on its way by now
  const SlotTable& slots = table(pool);
  if (slots.state(slot) == CopyState::kFilling) {
    // On its way here from another slot or a segment that is gone; a Put that has not ended may
    // wait.
    return slots.fill(slot).source == Fill::Source::kCaller ? Room::kOk : Room::kWait;
  }
  if (pool == Pool::kDram) return AddToGroup(entry, {pool, slot});
  // HBM is written by way of a transit slot.
  if (table(Pool::kTransit).free_count() == 0) return EvictOne(Pool::kTransit);
  const Room room = OpenGroup();
  if (room != Room::kOk) return room;
  Fill fill;
  fill.source = Fill::Source::kSlot;
  fill.slot = {pool, slot};
  fill.queued = true;
  table(pool).Pin(slot);
  const Place place = ReserveSlot(Pool::kTransit, entry, fill);
  copies_.push_back(place);
  return AddToGroup(entry, place);
}

}  // namespace terrace
