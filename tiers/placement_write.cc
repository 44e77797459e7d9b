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
  if (group.blocks.size() == group.capacity) CloseOpenGroup();
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
  while (nvme_->free_segments() < 1 + nvme_->reserve_segments()) {
    const Room room = EvictSegment();
    if (room == Room::kWait) return room;
    if (room == Room::kFull) break;
  }
  if (nvme_->free_segments() == 0) return Room::kFull;
  return nvme_->OpenNextSegment() ? Room::kOk : Room::kWait;
}

Room Placement::EvictSegment() {
  const std::optional<SegmentIndex> victim = nvme_->Victim();
  if (!victim) return Room::kFull;
  if (nvme_->IsBeingWritten(*victim)) return Room::kWait;
  doomed_.clear();
  nvme_->VisitBlocks(*victim, [&](EntryIndex entry) { doomed_.push_back(entry); });
  for (EntryIndex entry : doomed_) {
    if (!directory_[entry].in_memory()) ++stats_.evicted_blocks;
    DropNvmeCopy(entry);
  }
  nvme_->FreeSegment(*victim);
  ++stats_.evicted_segments;
  return Room::kOk;
}

void Placement::DropNvmeCopy(EntryIndex entry) {
  BlockEntry& block = directory_[entry];
  Transition(block.nvme, CopyState::kEmpty);
  nvme_->Remove(block.page, block.retention == Retention::kOwned);
  block.page = kNoPage;
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
    Unpin(written_block.source);
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
  if (!nvme_accepts_ || reserved_since_select_ < nvme_->geometry().group_blocks) return Room::kOk;
  SlotTable& dram = table(Pool::kDram);
  const size_t group_blocks = nvme_->geometry().group_blocks;
  const size_t ahead = std::min(dram.size() / kAheadShare, kAheadGroups * group_blocks);
  const size_t used = dram.size() - dram.free_count();
  size_t to_visit = used + ahead - std::min(used + ahead, dram.size());
  selected_.clear();
  dram.policy().VisitColdest([&](SlotIndex slot) {
    if (to_visit-- == 0) return false;
    const BlockEntry& block = directory_[dram.entry(slot)];
    const SlotIndex hbm_slot = block.slot(Pool::kHbm);
    const bool doubled = hbm_slot != kNoSlot;
    if (Dirty(block) && !doubled && dram.state(slot) == CopyState::kResident) {
      selected_.push_back(slot);
    }
    return true;
  });
  for (SlotIndex slot : selected_) {
    const Room room = AddToGroup(dram.entry(slot), {Pool::kDram, slot});
    if (room == Room::kWait) return room;
    if (room == Room::kFull) break;
  }
  reserved_since_select_ = 0;
  return Room::kOk;
}

Room Placement::SelectDirty(FlushCursor& cursor) {
  for (;;) {
    for (; cursor.slot < table(cursor.pool).size(); ++cursor.slot) {
      const Room room = SelectForFlush(cursor.pool, SlotIndex(cursor.slot));
      if (room != Room::kOk) return room;
    }
    cursor.slot = 0;
    if (cursor.pool == Pool::kHbm) {
      cursor.pool = Pool::kDram;
    } else if (cursor.moves != dirty_moves_) {
      cursor = {.moves = dirty_moves_};
    } else {
      CloseOpenGroup();
      return Room::kOk;
    }
  }
}

Room Placement::SelectForFlush(Pool pool, SlotIndex slot) {
  const SlotTable& slots = table(pool);
  const EntryIndex entry = slots.entry(slot);
  if (entry == kNoEntry || slots.state(slot) != CopyState::kResident) return Room::kOk;
  BlockEntry& block = directory_[entry];
  if (!Dirty(block)) return Room::kOk;
  if (pool == Pool::kDram) return AddToGroup(entry, {pool, slot});
  if (block.slot(Pool::kDram) != kNoSlot || block.slot(Pool::kTransit) != kNoSlot) return Room::kOk;
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
