#include "tiers/placement.h"

#include <algorithm>
#include <utility>

#include "io/check.h"

namespace terrace {
namespace {

size_t MaxBlocks(const PlacementOptions& options) {
  size_t blocks = 0;
  for (size_t slots : options.slots) blocks += slots;
  if (options.nvme) {
    blocks += size_t{options.nvme->segment_count} * options.nvme->blocks_per_segment();
  }
  return blocks;
}

}  // namespace

absl::StatusOr<std::unique_ptr<Placement>> Placement::Create(const PlacementOptions& options) {
  std::vector<std::unique_ptr<EvictionPolicy>> policies;
  for (size_t slots : options.slots) {
    absl::StatusOr<std::unique_ptr<EvictionPolicy>> policy =
        MakeEvictionPolicy(options.policy, slots);
    if (!policy.ok()) return policy.status();
    policies.push_back(*std::move(policy));
  }
  return std::unique_ptr<Placement>(new Placement(options, std::move(policies)));
}

Placement::Placement(const PlacementOptions& options,
                     std::vector<std::unique_ptr<EvictionPolicy>> policies)
    : pages_per_block_(static_cast<uint32_t>(options.block_bytes / kPageBytes)),
      directory_(MaxBlocks(options)),
      hot_share_(options.hot_share),
      key_missing_(1, false) {
  for (size_t i = 0; i < kPoolCount; ++i) {
    tables_[i] =
        std::make_unique<SlotTable>(options.slots[i], pages_per_block_, std::move(policies[i]));
  }
  if (!options.nvme) return;
  nvme_ = std::make_unique<NvmeTier>(*options.nvme, options.epoch, options.session);
  nvme_accepts_ = true;
  groups_.resize(kWriteGroups);
  for (WriteGroup& group : groups_) group.blocks.reserve(options.nvme->group_blocks);
  doomed_.reserve(options.nvme->blocks_per_segment());
  flushing_.reserve(table(Pool::kHbm).size() + table(Pool::kDram).size());
}

Pool Placement::put_pool() const {
  if (table(Pool::kDram).size() > 0) return Pool::kDram;
  return table(Pool::kHbm).size() > 0 ? Pool::kHbm : Pool::kTransit;
}

Place Placement::ReserveSlot(Pool pool, EntryIndex entry, const Fill& fill) {
  SlotTable& slots = table(pool);
  const Place place = {pool, slots.Reserve(entry)};
  slots.fill(place.slot) = fill;
  ++outstanding_fills_;
  if (entry != kNoEntry) {
    BlockEntry& block = directory_[entry];
    TERRACE_CHECK(block.slot(pool) == kNoSlot);
    block.slot(pool) = place.slot;
    if (pool != Pool::kTransit) slots.Track(place.slot, block.id);
  }
  if (pool == Pool::kDram) ++reserved_since_select_;
  return place;
}

std::optional<Place> Placement::TakeBounce() {
  SlotTable& transit = table(Pool::kTransit);
  if (transit.free_count() == 0) return std::nullopt;
  return Place{Pool::kTransit, transit.Reserve(kNoEntry)};
}

void Placement::ReturnBounce(Place place) { table(Pool::kTransit).Fail(place.slot); }

bool Placement::transfers_in_flight() const {
  return outstanding_fills_ > 0 || (nvme_accepts_ && nvme_->upkeep_pending()) ||
         std::any_of(groups_.begin(), groups_.end(),
                     [](const WriteGroup& group) { return group.in_use && group.closed; });
}

Placement::PutReservation Placement::ReservePut(const BlockId& id, Retention retention,
                                                KeyNumber key) {
  EntryIndex entry = directory_.Find(id);
  if (entry != kNoEntry && KeyMissing(directory_[entry])) {
    if (directory_[entry].retention == Retention::kOwned) return {PutOutcome::kLocked, {}};
    Drop(id);
    entry = kNoEntry;
  }
  if (entry != kNoEntry && directory_[entry].key != key) return {PutOutcome::kOtherKey, {}};
  if (entry != kNoEntry) {
    for (Pool pool : {Pool::kHbm, Pool::kDram}) {
      const SlotIndex slot = directory_[entry].slot(pool);
      if (slot == kNoSlot) continue;
      Touch({pool, slot});
      break;
    }
    if (retention == Retention::kOwned) SetRetention(id, retention);
    ++stats_.repeated_puts;
    return {PutOutcome::kAlreadyHere, {}};
  }
  const Pool pool = put_pool();
  const bool may_write = nvme_accepts_ && (offload_allowed_ || retention == Retention::kOwned);
  if (pool == Pool::kTransit && !may_write) return {PutOutcome::kFull, {}};
  const Room room = MakeRoom(pool, [] { return size_t{1}; });
  if (room != Room::kOk) {
    return {room == Room::kWait ? PutOutcome::kWait : PutOutcome::kFull, {}};
  }
  entry = directory_.Insert(id);
  directory_[entry].retention = retention;
  directory_[entry].key = key;
  const Place place = ReserveSlot(pool, entry, Fill());
  if (pool == Pool::kTransit) {
    // Nothing but NVMe will hold the block, so its place there is settled before it is accepted.
    const Room written = AddToGroup(entry, place);
    if (written != Room::kOk) {
      FillFailed(place, false);
      return {written == Room::kWait ? PutOutcome::kWait : PutOutcome::kFull, {}};
    }
  }
  ++stats_.puts;
  return {PutOutcome::kReserved, place};
}

void Placement::Unpin(Place place) {
  table(place.pool).TakeBack(place.slot);
  EndPin(place);
}

void Placement::EndPin(Place place) {
  SlotTable& slots = table(place.pool);
  const bool attached = slots.entry(place.slot) != kNoEntry;
  slots.Unpin(place.slot);
  stuck_may_move_ = true;
  if (attached && place.pool == Pool::kTransit) ReleaseTransit(place.slot);
}

// A transit slot keeps its block only while somebody uses it or it is on its way down.
void Placement::ReleaseTransit(SlotIndex slot) {
  const SlotTable& slots = table(Pool::kTransit);
  if (slots.pins(slot) > 0 || slots.state(slot) != CopyState::kResident) return;
  const EntryIndex entry = slots.entry(slot);
  if (directory_[entry].nvme == CopyState::kResident) DropCopy(entry, Pool::kTransit);
}

void Placement::EndFill(const Fill& fill) {
  --outstanding_fills_;
  if (fill.prefetch) --outstanding_prefetch_;
  UnpinSource(fill);
  if (fill.group) --groups_[*fill.group].pending;
}

// The checksums made when the block was put travel with its bytes.
void Placement::CarryChecksums(const Fill& fill, Place place) {
  absl::Span<const PageChecksum> source;
  if (fill.source == Fill::Source::kSlot) source = table(fill.slot.pool).checksums(fill.slot.slot);
  if (fill.source == Fill::Source::kNvme) source = nvme_->checksums(fill.page, fill.page_count);
  const absl::Span<PageChecksum> target = table(place.pool).checksums(place.slot);
  std::copy(source.begin(), source.end(), target.begin() + fill.first_page);
}

void Placement::FillLanded(Place place) {
  SlotTable& slots = table(place.pool);
  const Fill fill = slots.fill(place.slot);
  const EntryIndex entry = slots.entry(place.slot);
  if (nvme_ != nullptr) CarryChecksums(fill, place);
  slots.Land(place.slot);
  EndFill(fill);
  if (entry == kNoEntry) return;
  if (fill.prefetch) ++stats_.prefetched_blocks;
  if (place.pool == Pool::kTransit) ReleaseTransit(place.slot);
}

void Placement::FillFailed(Place place, bool source_lost) {
  SlotTable& slots = table(place.pool);
  const Fill fill = slots.fill(place.slot);
  const EntryIndex entry = slots.entry(place.slot);
  if (entry != kNoEntry) {
    if (fill.group) VoidGroupBlock(entry);
    directory_[entry].slot(place.pool) = kNoSlot;
  } else if (fill.group) {
    AbandonRewrite(*fill.group, place);
  }
  slots.Fail(place.slot);
  EndFill(fill);
  if (source_lost) {
    const PageIndex start{static_cast<uint32_t>(fill.page) - fill.first_page};
    const EntryIndex unreadable = nvme_->entry_near(start);
    if (unreadable != kNoEntry && directory_[unreadable].page == start &&
        directory_[unreadable].nvme == CopyState::kResident) {
      // In memory, or on its way there, it is not lost yet. Transit goes with NVMe.
      const BlockEntry& block = directory_[unreadable];
      if (block.slot(Pool::kHbm) == kNoSlot && block.slot(Pool::kDram) == kNoSlot) {
        ++stats_.lost_blocks;
      }
      nvme_->MarkDead(start);
      DropNvmeCopy(unreadable);
      if (unreadable == entry) return;  // gone with its last copy, or held elsewhere
    }
  }
  if (entry == kNoEntry) return;
  const BlockEntry& block = directory_[entry];
  // One whose Put fails was never here.
  const bool was_here = fill.source != Fill::Source::kCaller;
  if (was_here && !block.in_memory() && Dirty(block)) ++stats_.lost_blocks;
  EraseIfGone(entry);
}

void Placement::CountRewriteOwned(EntryIndex entry) {
  for (WriteGroup& group : groups_) {
    for (WriteGroup::Block& block : group.blocks) {
      if (block.entry != entry) continue;
      CountOwned(block, directory_[entry].retention == Retention::kOwned);
    }
  }
}

// The bytes that a group waited for could not be read: the block has no copy to move.
void Placement::AbandonRewrite(size_t group, Place source) {
  for (WriteGroup::Block& block : groups_[group].blocks) {
    if (block.source == source && block.entry != kNoEntry) {
      directory_[block.entry].rewrite = Rewrite::kNo;
      CountOwned(block, false);
      block.entry = kNoEntry;
    }
  }
}

void Placement::Drop(const BlockId& id) {
  const EntryIndex entry = directory_.Find(id);
  if (entry == kNoEntry) return;
  BlockEntry& block = directory_[entry];
  if (block.nvme == CopyState::kFilling) VoidGroupBlock(entry);
  for (Pool pool : {Pool::kHbm, Pool::kDram, Pool::kTransit}) {
    if (block.slot(pool) != kNoSlot) DropCopy(entry, pool);
  }
  if (block.nvme == CopyState::kResident) {
    nvme_->MarkDead(block.page);
    DropNvmeCopy(entry);
  } else {
    EraseIfGone(entry);
  }
  RetrackStuck();
}

void Placement::SetRetention(const BlockId& id, Retention retention) {
  const EntryIndex entry = directory_.Find(id);
  if (entry == kNoEntry || directory_[entry].retention == retention) return;
  BlockEntry& block = directory_[entry];
  block.retention = retention;
  if (block.nvme != CopyState::kEmpty) {
    nvme_->SetOwned(block.page, retention == Retention::kOwned);
  }
  if (block.nvme == CopyState::kResident) nvme_->ReverseRetention(block.page);
  if (block.rewrite == Rewrite::kInGroup) CountRewriteOwned(entry);
  if (retention == Retention::kCached) RetrackStuck();
}

std::optional<Tier> Placement::Find(const BlockId& id) const {
  const EntryIndex entry = directory_.Find(id);
  if (entry == kNoEntry || KeyMissing(directory_[entry])) return std::nullopt;
  return HitTier(directory_[entry]);
}

void Placement::SetKeyReady(KeyNumber key, bool ready) {
  const size_t index = static_cast<size_t>(key);
  if (key_missing_.size() <= index) key_missing_.resize(index + 1, true);
  key_missing_[index] = !ready;
}

void Placement::DropKey(KeyNumber key) {
  std::vector<BlockId> ids;
  directory_.Visit([&](EntryIndex entry) {
    if (directory_[entry].key == key) ids.push_back(directory_[entry].id);
  });
  for (const BlockId& id : ids) Drop(id);
}

bool Placement::OnNvme(const BlockId& id) const {
  const EntryIndex entry = directory_.Find(id);
  return entry != kNoEntry && directory_[entry].nvme == CopyState::kResident;
}

bool Placement::RecoverBlock(const BlockId& id, PageIndex page, Retention retention,
                             KeyNumber key) {
  if (directory_.Find(id) != kNoEntry) return false;
  const EntryIndex entry = directory_.Insert(id);
  BlockEntry& block = directory_[entry];
  Transition(block.nvme, CopyState::kResident);
  block.page = page;
  block.retention = retention;
  block.key = key;
  nvme_->Place(page, entry, retention == Retention::kOwned);
  return true;
}

std::array<uint64_t, kTierCount> Placement::CountBlocks() const {
  std::array<uint64_t, kTierCount> counts = {};
  for (size_t i = 0; i < table(Pool::kHbm).size(); ++i) {
    if (table(Pool::kHbm).entry(SlotIndex(i)) != kNoEntry) ++counts[0];
  }
  for (size_t i = 0; i < table(Pool::kDram).size(); ++i) {
    const EntryIndex entry = table(Pool::kDram).entry(SlotIndex(i));
    if (entry != kNoEntry && directory_[entry].slot(Pool::kHbm) == kNoSlot) ++counts[1];
  }
  counts[2] = directory_.size() - counts[0] - counts[1];
  return counts;
}

size_t Placement::memory_bytes() const {
  size_t bytes = directory_.memory_bytes() + flushing_.capacity() * sizeof(EntryIndex);
  for (const auto& slots : tables_) bytes += slots->memory_bytes();
  return bytes + (nvme_ == nullptr ? 0 : nvme_->memory_bytes());
}

}  // namespace terrace
