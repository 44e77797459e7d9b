// Placement: making room in memory pools, and forgetting copies.

#include <algorithm>

#include "io/check.h"
#include "tiers/placement.h"

namespace terrace {

// Nothing can be evicted now: worth waiting only while transfers hold slots that they will let go.
// The open group is closed last, when nothing else could help, so that where groups end does not
// depend on how fast earlier ones are written.
Room Placement::NoRoom() {
  if (transfers_in_flight()) return Room::kWait;
  if (!open_group_) return Room::kFull;
  CloseOpenGroup();
  return Room::kWait;
}

Room Placement::MakeRoom(Pool pool, size_t count) {
  if (SelectAhead() == Room::kWait) return Room::kWait;
  const SlotTable& slots = table(pool);
  const size_t available = slots.size() - std::min(slots.size(), slots.pinned_count());
  if (count > slots.size()) return Room::kFull;
  if (count > available) return NoRoom();
  const auto on_the_way = [&] { return pool == Pool::kHbm ? draining_ : 0; };
  while (slots.free_count() + on_the_way() < count) {
    const Room room = EvictOne(pool);
    if (room != Room::kOk) return room;
  }
  return slots.free_count() >= count ? Room::kOk : Room::kWait;
}

Room Placement::EvictOne(Pool pool) {
  if (pool == Pool::kTransit) return NoRoom();  // its slots come back only by being written
  SlotTable& slots = table(pool);
  for (;;) {
    SlotIndex victim = kNoSlot;
    slots.policy().VisitColdest([&](SlotIndex slot) {
      const bool evictable = slots.pins(slot) == 0 && slots.state(slot) == CopyState::kResident;
      // A block that is being written is pinned, yet is the right victim once it is down.
      const bool on_its_way_down =
          pool == Pool::kDram && directory_[slots.entry(slot)].nvme == CopyState::kFilling;
      if (evictable || on_its_way_down) victim = slot;
      return victim == kNoSlot;
    });
    if (victim == kNoSlot) return NoRoom();
    const EntryIndex entry = slots.entry(victim);
    const Room room = pool == Pool::kHbm ? EvictFromHbm(victim) : EvictFromDram(victim);
    if (room != Room::kFull) return room;
    // Owned and unmovable. Out of the order with it, so that it is not asked again and again.
    TERRACE_CHECK(directory_[entry].retention == Retention::kOwned);
    slots.Untrack(victim);
    has_stuck_ = true;
  }
}

Room Placement::EvictFromHbm(SlotIndex slot) {
  const EntryIndex entry = table(Pool::kHbm).entry(slot);
  BlockEntry& block = directory_[entry];
  if (block.slot(Pool::kDram) != kNoSlot) {
    table(Pool::kDram).Touch(block.slot(Pool::kDram));
    DropCopy(entry, Pool::kHbm);
    if (Dirty(block)) ++dirty_moves_;
    return Room::kOk;
  }
  const bool written = block.nvme == CopyState::kResident;
  if (table(Pool::kDram).size() > 0) {
    Room room = table(Pool::kDram).free_count() > 0 ? Room::kOk : EvictOne(Pool::kDram);
    if (room == Room::kWait) return room;
    // What EvictOne freed may have been this block's own NVMe copy, but never its HBM copy.
    if (room == Room::kOk) {
      StartDemotion(entry, slot, Pool::kDram);
      return Room::kOk;
    }
    if (written && block.nvme == CopyState::kResident) {
      DropCopy(entry, Pool::kHbm);
      return Room::kOk;
    }
  } else if (written || block.slot(Pool::kTransit) != kNoSlot) {
    DropCopy(entry, Pool::kHbm);
    return Room::kOk;
  } else if (nvme_accepts_) {
    const bool has_slot = table(Pool::kTransit).free_count() > 0;
    const Room room = has_slot ? OpenGroup() : EvictOne(Pool::kTransit);
    if (room == Room::kWait) return room;
    if (room == Room::kOk) {
      StartDemotion(entry, slot, Pool::kTransit);
      return Room::kOk;
    }
  }
  if (block.retention == Retention::kOwned) return Room::kFull;
  EvictBlock(entry);
  return Room::kOk;
}

// Copies an HBM slot down. The slot leaves its block at once and falls free when the copy landed.
void Placement::StartDemotion(EntryIndex entry, SlotIndex hbm_slot, Pool target) {
  SlotTable& hbm = table(Pool::kHbm);
  Fill fill;
  fill.source = Fill::Source::kSlot;
  fill.slot = {Pool::kHbm, hbm_slot};
  fill.drains = true;
  fill.queued = true;
  hbm.Pin(hbm_slot);
  DropCopy(entry, Pool::kHbm);
  ++draining_;
  ++stats_.demotions;
  const Place place = ReserveSlot(target, entry, fill);
  copies_.push_back(place);
  if (target == Pool::kTransit) {
    const Room room = AddToGroup(entry, place);
    TERRACE_CHECK(room == Room::kOk);  // the caller opened a group
  }
}

Room Placement::EvictFromDram(SlotIndex slot) {
  const EntryIndex entry = table(Pool::kDram).entry(slot);
  BlockEntry& block = directory_[entry];
  const SlotIndex hbm_slot = block.slot(Pool::kHbm);
  const bool in_hbm =
      hbm_slot != kNoSlot && table(Pool::kHbm).state(hbm_slot) == CopyState::kResident;
  if (block.nvme == CopyState::kFilling) {
    if (open_group_ && groups_[*open_group_].base <= block.page &&
        block.page < nvme_->append_limit()) {
      CloseOpenGroup();
    }
    return Room::kWait;
  }
  if (in_hbm || block.nvme == CopyState::kResident) {
    if (Dirty(block)) ++dirty_moves_;
    DropCopy(entry, Pool::kDram);
    return Room::kOk;
  }
  if (nvme_accepts_) {
    const Room room = AddToGroup(entry, {Pool::kDram, slot});
    if (room == Room::kOk) CloseOpenGroup();
    if (room != Room::kFull) return Room::kWait;
  }
  if (block.retention == Retention::kOwned) return Room::kFull;
  EvictBlock(entry);
  return Room::kOk;
}

void Placement::DropCopy(EntryIndex entry, Pool pool) {
  SlotIndex& slot = directory_[entry].slot(pool);
  table(pool).Detach(slot);
  slot = kNoSlot;
}

void Placement::EraseIfGone(EntryIndex entry) {
  const BlockEntry& block = directory_[entry];
  if (!block.in_memory() && block.nvme == CopyState::kEmpty) directory_.Erase(entry);
}

// Drops a cached block from its last tier.
void Placement::EvictBlock(EntryIndex entry) {
  for (Pool pool : {Pool::kHbm, Pool::kDram, Pool::kTransit}) {
    if (directory_[entry].slot(pool) != kNoSlot) DropCopy(entry, pool);
  }
  ++stats_.evicted_blocks;
  EraseIfGone(entry);
}

// Something was dropped or released: owned blocks that had nowhere to go may move again.
void Placement::RetrackStuck() {
  if (!has_stuck_) return;
  has_stuck_ = false;
  for (Pool pool : {Pool::kHbm, Pool::kDram}) {
    SlotTable& slots = table(pool);
    for (size_t i = 0; i < slots.size(); ++i) {
      const SlotIndex slot{static_cast<uint32_t>(i)};
      if (slots.entry(slot) == kNoEntry || slots.tracked(slot)) continue;
      slots.Track(slot, directory_[slots.entry(slot)].id);
    }
  }
}

}  // namespace terrace
