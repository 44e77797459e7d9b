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
  if (!open_group_ || groups_[*open_group_].blocks.empty()) return Room::kFull;
  CloseOpenGroup();
  return Room::kWait;
}

// `wanted` is asked again after each step, because evicting a segment may take a block that room
// was wanted for.
Room Placement::MakeRoom(Pool pool, absl::FunctionRef<size_t()> wanted) {
  if (SelectAhead() == Room::kWait) return Room::kWait;
  const SlotTable& slots = table(pool);
  const size_t available = slots.size() - std::min(slots.size(), slots.pinned_count());
  if (wanted() > slots.size()) return Room::kFull;
  if (wanted() > available) return NoRoom();
  // Slots that fall free when a transfer ends count already: evicting more in their stead would
  // make what stays depend on the speed of transfers.
  while (slots.free_count() + slots.falling_count() < wanted()) {
    const Room room = EvictOne(pool);
    if (room != Room::kOk) return room;
    // Here as well, so that it does not matter at which step a call has to wait and start over.
    if (SelectAhead() == Room::kWait) return Room::kWait;
  }
  return slots.free_count() >= wanted() ? Room::kOk : NoRoom();
}

Room Placement::EvictOne(Pool pool) {
  if (pool == Pool::kTransit) return NoRoom();  // its slots come back only by being written
  SlotTable& slots = table(pool);
  for (;;) {
    SlotIndex victim = kNoSlot;
    slots.policy().VisitColdest([&](SlotIndex slot) {
      const bool evictable = slots.pins(slot) == 0 && slots.state(slot) == CopyState::kResident;
      if (evictable || OnlyMoving(pool, slot)) victim = slot;
      return victim == kNoSlot;
    });
    if (victim == kNoSlot && !stuck_.empty() && stuck_may_move_) {
      RetrackStuck();
      continue;
    }
    if (victim == kNoSlot) return NoRoom();
    const EntryIndex entry = slots.entry(victim);
    const Room room = pool == Pool::kHbm ? EvictFromHbm(victim) : EvictFromDram(victim);
    if (room != Room::kFull) return room;
    // Owned and unmovable. Out of the order with it, so that it is not asked again and again.
    TERRACE_CHECK(directory_[entry].retention == Retention::kOwned);
    slots.Untrack(victim);
    stuck_.push_back({pool, victim});
  }
}

// Whether a slot is kept by nothing but a transfer that ends by itself. It is the right victim
// then, and worth waiting for: what is evicted must not depend on how fast transfers are.
bool Placement::OnlyMoving(Pool pool, SlotIndex slot) const {
  const SlotTable& slots = table(pool);
  const BlockEntry& block = directory_[slots.entry(slot)];
  if (pool == Pool::kDram && block.nvme == CopyState::kFilling) return true;
  if (slots.pins(slot) == 0) return slots.state(slot) == CopyState::kFilling;
  // A flush copies it to transit.
  const SlotIndex transit = block.slot(Pool::kTransit);
  return pool == Pool::kHbm && transit != kNoSlot &&
         table(Pool::kTransit).state(transit) == CopyState::kFilling;
}

Room Placement::EvictFromHbm(SlotIndex slot) {
  if (OnlyMoving(Pool::kHbm, slot)) return Room::kWait;
  const EntryIndex entry = table(Pool::kHbm).entry(slot);
  BlockEntry& block = directory_[entry];
  if (block.slot(Pool::kDram) != kNoSlot) {
    Touch({Pool::kDram, block.slot(Pool::kDram)});
    DropCopy(entry, Pool::kHbm);
    return Room::kOk;
  }
  if (table(Pool::kDram).size() > 0) {
    const SlotTable& dram = table(Pool::kDram);
    if (dram.free_count() == 0 && dram.falling_count() > 0) return NoRoom();
    const Room room = dram.free_count() > 0 ? Room::kOk : EvictOne(Pool::kDram);
    if (room == Room::kWait) return room;
    // What EvictOne freed may have been this block's own NVMe copy, but never its HBM copy.
    if (room == Room::kOk) {
      StartDemotion(entry, slot, Pool::kDram);
      return Room::kOk;
    }
  }
  // Without DRAM, or with nothing there that may go (be it for leases alone), straight to NVMe.
  const bool owned = block.retention == Retention::kOwned;
  if (block.nvme == CopyState::kResident || (block.nvme == CopyState::kFilling && !owned)) {
    DropCopy(entry, Pool::kHbm);
    return Room::kOk;
  }
  // A write can fail, so an owned block stays in HBM until it has succeeded.
  if (block.nvme == CopyState::kFilling) return NoRoom();
  if (nvme_accepts_ && owned) {
    const Room room = SelectForFlush(entry);
    return room == Room::kOk ? Room::kWait : room;
  }
  const bool offload = nvme_accepts_ && offload_allowed_;
  if (nvme_accepts_ && !offload && !owned) ++stats_.budget_dropped;
  if (offload) {
    // The group first: what has to be rewritten before takes slots of the same pool.
    Room room = OpenGroup();
    if (room == Room::kOk && table(Pool::kTransit).free_count() == 0) room = NoRoom();
    if (room == Room::kWait) return room;
    if (room == Room::kOk) {
      StartDemotion(entry, slot, Pool::kTransit);
      return Room::kOk;
    }
  }
  if (owned) return Room::kFull;
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
  if (table(Pool::kDram).state(slot) == CopyState::kFilling) return Room::kWait;
  if (in_hbm || block.nvme == CopyState::kResident) {
    DropCopy(entry, Pool::kDram);
    return Room::kOk;
  }
  const bool owned = block.retention == Retention::kOwned;
  if (nvme_accepts_ && (owned || offload_allowed_)) {
    const Room room = AddToGroup(entry, {Pool::kDram, slot});
    if (room == Room::kOk) CloseOpenGroup();
    if (room != Room::kFull) return Room::kWait;
  } else if (nvme_accepts_) {
    ++stats_.budget_dropped;
  }
  if (owned) return Room::kFull;
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

// Something was dropped or released: owned blocks that had nowhere to go may move again. They were
// the coldest when they were taken out, and are again.
void Placement::RetrackStuck() {
  for (; !stuck_.empty(); stuck_.pop_back()) {
    const Place place = stuck_.back();
    if (table(place.pool).tracked(place.slot)) continue;  // used since, or another block's now
    Retrack(place);
    table(place.pool).MakeColdest(place.slot);
  }
  stuck_may_move_ = false;
}

void Placement::Retrack(Place place) {
  SlotTable& slots = table(place.pool);
  const EntryIndex entry = slots.entry(place.slot);
  if (place.pool == Pool::kTransit || entry == kNoEntry || slots.tracked(place.slot)) return;
  slots.Track(place.slot, directory_[entry].id);
}

void Placement::Touch(Place place) {
  Retrack(place);
  table(place.pool).Touch(place.slot);
}

}  // namespace terrace
