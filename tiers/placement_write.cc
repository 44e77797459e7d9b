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
  if (room == Room::kOk) Append(entry, source);
  return room;
}

// REQUIRES: an open group. A block that is on NVMe already is rewritten there.
void Placement::Append(EntryIndex entry, Place source) {
  WriteGroup& group = groups_[*open_group_];
  BlockEntry& block = directory_[entry];
  WriteGroup::Block added;
  added.entry = entry;
  added.source = source;
  added.page = PageIndex{static_cast<uint32_t>(group.base) +
                         nvme_->geometry().group_pages(static_cast<uint32_t>(group.blocks.size()))};
  if (block.nvme == CopyState::kResident) {
    added.old_page = block.page;
    CountOwned(added, block.retention == Retention::kOwned);
    block.rewrite = Rewrite::kInGroup;
    block.hot = false;
  } else {
    Transition(block.nvme, CopyState::kFilling);
    block.page = added.page;
    nvme_->Place(block.page, entry, block.retention == Retention::kOwned);
  }
  group.blocks.push_back(added);
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
}

// Has an open group with room for a block, or says why not.
Room Placement::OpenGroup() {
  if (!nvme_accepts_) return Room::kFull;
  // Rewrites may close the group that was started for the caller, and end the segment.
  for (;;) {
    const Room rewritten = AddRewrites();
    if (rewritten != Room::kOk) return rewritten;
    if (open_group_) return Room::kOk;
    const Room started = StartGroup();
    if (started != Room::kOk) return started;
    if (rewrites_.empty()) return Room::kOk;
  }
}

Room Placement::StartGroup() {
  const auto unused = std::find_if(groups_.begin(), groups_.end(),
                                   [](const WriteGroup& group) { return !group.in_use; });
  if (unused == groups_.end()) return Room::kWait;
  const NvmeGeometry& geometry = nvme_->geometry();
  if (const Room room = RefillReserve(); room != Room::kOk) return room;
  if (nvme_->open_pages_left() < geometry.group_pages(1)) {
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
  // One that was opened for a block that then did not come.
  if (group.blocks.empty()) return;
  group.header = nvme_->FinishGroup(static_cast<uint32_t>(group.blocks.size()));
  group.closed = true;
  last_generation_ = group.header.generation;
  ++stats_.write_groups;
  closed_groups_.push_back(*open_group_);
  open_group_.reset();
}

// Takes a block that is going to NVMe out of its group; its place in the log stays, marked void.
void Placement::VoidGroupBlock(EntryIndex entry) {
  LeaveGroup(entry);
  BlockEntry& block = directory_[entry];
  Transition(block.nvme, CopyState::kEmpty);
  nvme_->Remove(block.page, block.retention == Retention::kOwned);
  block.page = kNoPage;
}

void Placement::LeaveGroup(EntryIndex entry) {
  for (WriteGroup& group : groups_) {
    if (!group.in_use) continue;
    for (WriteGroup::Block& block : group.blocks) {
      if (block.entry != entry) continue;
      CountOwned(block, false);
      block.entry = kNoEntry;
    }
  }
}

// A block that is rewritten counts where it is going from the start: victims must not depend on
// when the write ends.
void Placement::CountOwned(WriteGroup::Block& block, bool owned) {
  if (!block.rewrites() || block.counted_owned == owned) return;
  nvme_->SetOwned(block.page, owned);
  block.counted_owned = owned;
}

std::optional<size_t> Placement::NextGroup() {
  const auto ready = std::find_if(closed_groups_.begin(), closed_groups_.end(),
                                  [this](size_t index) { return groups_[index].pending == 0; });
  if (ready == closed_groups_.end()) return std::nullopt;
  const size_t index = *ready;
  closed_groups_.erase(ready);
  for (WriteGroup::Block& block : groups_[index].blocks) {
    if (block.entry == kNoEntry) continue;
    block.recorded = true;
    block.retention = directory_[block.entry].retention;
    const absl::Span<PageChecksum> made = table(block.source.pool).checksums(block.source.slot);
    const absl::Span<PageChecksum> kept = nvme_->checksums(block.page, pages_per_block_);
    std::copy(made.begin(), made.end(), kept.begin());
    if (block.rewrites() && directory_[block.entry].key != kNoKey) {
      nvme_->seal(block.page) = nvme_->seal(block.old_page);
    }
  }
  return index;
}

void Placement::GroupWritten(size_t index, bool written) {
  WriteGroup& group = groups_[index];
  for (WriteGroup::Block& block : group.blocks) {
    EndGroupBlock(block, written);
    EndPin(block.source);
  }
  nvme_->RemoveWriter(group.base);
  group.in_use = false;
  group.blocks.clear();
}

void Placement::EndGroupBlock(WriteGroup::Block& ended, bool written) {
  if (written && ended.recorded) ++stats_.written_blocks;
  CountOwned(ended, false);  // Place does it
  if (ended.entry == kNoEntry) {
    // Dropped after its header was encoded.
    if (ended.recorded) nvme_->MarkDead(ended.page);
    return;
  }
  BlockEntry& block = directory_[ended.entry];
  const bool owned = block.retention == Retention::kOwned;
  if (ended.rewrites()) {
    block.rewrite = Rewrite::kNo;
    if (!written) return;  // it stays where it is
    nvme_->Remove(block.page, owned);
    block.page = ended.page;
    nvme_->Place(block.page, ended.entry, owned);
    ++stats_.rewritten_blocks;
  } else if (written) {
    Transition(block.nvme, CopyState::kResident);
  } else {
    Transition(block.nvme, CopyState::kEmpty);
    nvme_->Remove(block.page, owned);
    block.page = kNoPage;
    if (ended.source.pool == Pool::kTransit) {
      DropCopy(ended.entry, Pool::kTransit);
      if (!block.in_memory()) ++stats_.lost_blocks;
      EraseIfGone(ended.entry);
    }
    return;
  }
  if (block.retention != ended.retention) nvme_->ReverseRetention(block.page);
}

bool Placement::WrittenUpTo(uint64_t generation) const {
  return std::none_of(groups_.begin(), groups_.end(), [&](const WriteGroup& group) {
    return group.in_use && group.closed && group.header.generation <= generation;
  });
}

// Sends the coldest dirty blocks of DRAM down before their slots are needed. Due once a group's
// worth of slots was taken. When all groups are in flight the caller waits: this is what slows it
// down to the disk's speed, and it keeps the log independent of that speed.
Room Placement::SelectAhead() {
  if (!nvme_accepts_ || !offload_allowed_) return Room::kOk;
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
  const Room room = OpenGroup();
  if (room != Room::kOk) return room;
  if (table(Pool::kTransit).free_count() == 0) return NoRoom();
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
