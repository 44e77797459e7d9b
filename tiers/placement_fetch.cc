// Placement: fetches, prefetches and the queues of fills.

#include <algorithm>
#include <initializer_list>

#include "io/check.h"
#include "tiers/placement.h"

namespace terrace {

// A slot that can serve `entry` to a fetch for `target` as it stands.
std::optional<Place> Placement::ServingPlace(const BlockEntry& entry, Pool target,
                                             bool part) const {
  if (entry.slot(target) != kNoSlot) return Place{target, entry.slot(target)};
  // Host memory is host memory: a block in transit serves the CPU as well as one in DRAM, and a
  // part is served from the host rather than promoted whole.
  // What is only being flushed through transit has its place in HBM and is served from there, so
  // that the answer is the same when the flush has ended.
  if (target == Pool::kDram || part) {
    for (Pool pool : {Pool::kDram, Pool::kTransit}) {
      if (pool == Pool::kTransit && entry.slot(Pool::kHbm) != kNoSlot) break;
      if (entry.slot(pool) != kNoSlot) return Place{pool, entry.slot(pool)};
    }
  }
  return std::nullopt;
}

Tier Placement::HitTier(const BlockEntry& entry) const {
  for (Pool pool : {Pool::kHbm, Pool::kDram}) {
    const SlotIndex slot = entry.slot(pool);
    if (slot == kNoSlot) continue;
    const SlotTable& slots = table(pool);
    // What is still being read counts where it is read from.
    if (slots.state(slot) == CopyState::kFilling &&
        slots.fill(slot).source == Fill::Source::kNvme) {
      return Tier::kNvme;
    }
    return pool == Pool::kHbm ? Tier::kHbm : Tier::kDram;
  }
  return Tier::kNvme;
}

Fill Placement::PinSource(const BlockEntry& entry, Pool target, const FetchItem& item) {
  Fill fill;
  for (Pool pool : {Pool::kDram, Pool::kHbm, Pool::kTransit}) {
    if (pool == target || entry.slot(pool) == kNoSlot) continue;
    fill.source = Fill::Source::kSlot;
    fill.slot = {pool, entry.slot(pool)};
    table(pool).Pin(fill.slot.slot);
    return fill;
  }
  TERRACE_CHECK(entry.nvme == CopyState::kResident);
  fill.source = Fill::Source::kNvme;
  // A block is sealed as a whole, and can only be opened so.
  const bool whole = entry.key != kNoKey;
  fill.id = entry.id;
  fill.key = entry.key;
  fill.first_page = whole ? 0 : item.first_page;
  fill.page_count = whole ? pages_per_block_ : item.page_count;
  fill.page = PageIndex{static_cast<uint32_t>(entry.page) + fill.first_page};
  nvme_->AddReader(fill.page);
  return fill;
}

void Placement::UnpinSource(const Fill& fill) {
  if (fill.source == Fill::Source::kSlot) EndPin(fill.slot);
  if (fill.source == Fill::Source::kNvme) nvme_->RemoveReader(fill.page);
}

// Whether slots can be had for every item that has a source but no place yet.
Room Placement::RoomForFetch(absl::Span<const FetchItem> items, Pool target) {
  const auto needs_transit = [&](const FetchItem& item) {
    return target == Pool::kTransit || (IsPart(item) && item.source->source == Fill::Source::kNvme);
  };
  const SlotTable& transit = table(Pool::kTransit);
  size_t in_target = 0;
  size_t in_transit = 0;
  size_t lend = 0;  // of the transit slots that are not lent yet
  for (const FetchItem& item : items) {
    if (item.source) {
      ++(needs_transit(item) ? in_transit : in_target);
    } else if (item.place.slot != kNoSlot && item.place.pool == Pool::kTransit) {
      lend += transit.lent(item.place.slot) ? 0 : 1;
    }
  }
  lend += in_transit;
  // Leases may hold half of the pool; the other half keeps transfers moving.
  if (lend > 0 && lend + transit.lent_count() > transit.size() / 2) return Room::kFull;
  if (in_target > 0) {
    size_t wanted = in_target;
    uint64_t erased = directory_.erased_count();
    const Room room = MakeRoom(target, [&] {
      if (directory_.erased_count() != erased) {
        erased = directory_.erased_count();
        wanted = static_cast<size_t>(
            std::count_if(items.begin(), items.end(), [&](const FetchItem& item) {
              return item.source && !needs_transit(item) && directory_.Find(item.id) != kNoEntry;
            }));
      }
      return wanted;
    });
    if (room != Room::kOk) return room;
  }
  // Last, because making room moves blocks through transit.
  return transit.free_count() >= in_transit ? Room::kOk : NoRoom();
}

Room Placement::ReserveFetch(absl::Span<FetchItem> items, Pool target) {
  for (const FetchItem& item : items) directory_.Prefetch(item.id);
  // First pin what the fetch relies on, so that making room cannot take it away.
  for (FetchItem& item : items) {
    item.place = Place();
    item.source.reset();
    const EntryIndex entry = directory_.Find(item.id);
    if (entry == kNoEntry || KeyMissing(directory_[entry])) continue;
    item.hit_tier = HitTier(directory_[entry]);
    const std::optional<Place> place = ServingPlace(directory_[entry], target, IsPart(item));
    if (place) {
      item.place = *place;
      table(place->pool).Pin(place->slot);
    } else {
      item.source = PinSource(directory_[entry], target, item);
    }
  }
  const Room room = RoomForFetch(items, target);
  if (room != Room::kOk) {
    for (FetchItem& item : items) {
      if (item.place.slot != kNoSlot) EndPin(item.place);
      if (item.source) UnpinSource(*item.source);
      item.place = Place();
      item.source.reset();
    }
    return room;
  }
  // Slots are used in item order, hits and fills alike, so that recency is the caller's order.
  for (FetchItem& item : items) {
    if (item.place.slot != kNoSlot) {
      JoinFill(item);
    } else if (item.source) {
      ReserveItem(item, target);
    }
    if (item.place.slot == kNoSlot) {
      ++stats_.misses;
    } else {
      ++stats_.hits[static_cast<size_t>(item.hit_tier)];
      // By the tier that counts, whatever serves it on the way there.
      if (item.hit_tier == Tier::kNvme) directory_[directory_.Find(item.id)].hot = true;
      table(item.place.pool).Lend(item.place.slot);
    }
  }
  return Room::kOk;
}

void Placement::JoinFill(FetchItem& item) {
  Touch(item.place);
  SlotTable& slots = table(item.place.pool);
  Fill& fill = slots.fill(item.place.slot);
  if (slots.state(item.place.slot) != CopyState::kFilling || !fill.prefetch) return;
  fill.prefetch = false;
  --outstanding_prefetch_;
  item.was_prefetching = !fill.queued;
  if (fill.queued && fill.source == Fill::Source::kNvme) demand_reads_.push_back(item.place);
}

// REQUIRES: item.source is pinned and room was made.
void Placement::ReserveItem(FetchItem& item, Pool target) {
  Fill source = *item.source;
  item.source.reset();
  const EntryIndex entry = directory_.Find(item.id);
  const std::optional<Place> place =
      entry == kNoEntry ? std::nullopt : ServingPlace(directory_[entry], target, IsPart(item));
  if (entry == kNoEntry || place) {
    // Making room evicted the block's last copy, or an equal item came first.
    UnpinSource(source);
    if (!place) return;
    item.place = *place;
    table(place->pool).Pin(place->slot);
    return JoinFill(item);
  }
  const bool from_nvme = source.source == Fill::Source::kNvme;
  const bool part = from_nvme && IsPart(item);
  source.queued = true;
  item.place =
      part ? ReserveSlot(Pool::kTransit, kNoEntry, source) : ReserveSlot(target, entry, source);
  table(item.place.pool).Pin(item.place.slot);
  (from_nvme ? demand_reads_ : copies_).push_back(item.place);
  // A DRAM copy that HBM doubles is the first that DRAM can spare.
  if (target == Pool::kHbm && source.source == Fill::Source::kSlot) {
    Retrack(source.slot);
    table(source.slot.pool).MakeColdest(source.slot.slot);
  }
}

size_t Placement::ReservePrefetch(absl::Span<const BlockId> ids, Pool target, size_t cap) {
  size_t queued = 0;
  for (const BlockId& id : ids) {
    const EntryIndex entry = directory_.Find(id);
    if (entry == kNoEntry || target == Pool::kTransit || KeyMissing(directory_[entry])) continue;
    if (ServingPlace(directory_[entry], target, false)) continue;
    FetchItem item;
    item.page_count = pages_per_block_;
    Fill fill = PinSource(directory_[entry], target, item);
    const bool fits = outstanding_prefetch_ < cap &&
                      MakeRoom(target, [] { return size_t{1}; }) == Room::kOk &&
                      directory_.Find(id) == entry;
    if (!fits) {
      UnpinSource(fill);
      ++stats_.prefetch_dropped;
      continue;
    }
    fill.prefetch = true;
    fill.queued = true;
    const Place place = ReserveSlot(target, entry, fill);
    ++outstanding_prefetch_;
    (fill.source == Fill::Source::kNvme ? prefetch_reads_ : copies_).push_back(place);
    ++queued;
  }
  return queued;
}

std::optional<Place> Placement::NextRead(bool allow_prefetch) {
  for (RingQueue<Place>* queue : {&demand_reads_, &prefetch_reads_}) {
    if (queue == &prefetch_reads_ && !allow_prefetch) break;
    while (!queue->empty()) {
      const Place place = queue->front();
      queue->pop_front();
      const SlotTable& slots = table(place.pool);
      if (slots.state(place.slot) != CopyState::kFilling) continue;
      Fill& fill = table(place.pool).fill(place.slot);
      if (!fill.queued || fill.source != Fill::Source::kNvme) continue;
      fill.queued = false;
      return place;
    }
  }
  return std::nullopt;
}

std::optional<Place> Placement::NextCopy() {
  for (size_t left = copies_.size(); left > 0; --left) {
    const Place place = copies_.front();
    copies_.pop_front();
    Fill& fill = table(place.pool).fill(place.slot);
    switch (table(fill.slot.pool).state(fill.slot.slot)) {
      case CopyState::kResident:
        fill.queued = false;
        return place;
      case CopyState::kFilling:
        copies_.push_back(place);
        break;
      case CopyState::kEmpty:
      case CopyState::kFailed:
        FillFailed(place, false);
        break;
    }
  }
  return std::nullopt;
}

}  // namespace terrace
