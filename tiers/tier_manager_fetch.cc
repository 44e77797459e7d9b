// TierManager: fetches, leases and prefetches.

#include <algorithm>
#include <bit>
#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "io/check.h"
#include "tiers/tier_manager.h"

namespace terrace {

absl::Status TierManager::MakeItems(absl::Span<const BlockRead> reads, FetchItems& items) const {
  if (items.capacity() < reads.size()) items.reserve(std::bit_ceil(reads.size()));
  items.resize(reads.size());
  for (size_t i = 0; i < reads.size(); ++i) {
    const uint64_t offset = std::min<uint64_t>(reads[i].offset, options_.block_bytes);
    const uint64_t bytes = reads[i].bytes > 0 ? reads[i].bytes : options_.block_bytes - offset;
    if (!IsPageAligned(offset) || !IsPageAligned(bytes) || bytes == 0 ||
        offset + bytes > options_.block_bytes) {
      return absl::InvalidArgumentError(
          absl::StrCat("part of ", reads[i].bytes, " bytes at ", reads[i].offset, " of a block of ",
                       options_.block_bytes, ": must lie inside, in multiples of ", kPageBytes));
    }
    items[i].id = reads[i].id;
    items[i].first_page = static_cast<uint32_t>(reads[i].offset / kPageBytes);
    items[i].page_count = static_cast<uint32_t>(bytes / kPageBytes);
  }
  return absl::OkStatus();
}

absl::StatusOr<Room> TierManager::StartFetch(absl::Span<const BlockRead> reads,
                                             const FetchOptions& options, Pool target,
                                             Ticket& ticket) {
  FetchItems items = spare_items_.Take();
  if (absl::Status status = MakeItems(reads, items); !status.ok()) return status;
  absl::MutexLock lock(&mu_);
  FollowBudget();
  // What is free belongs to those who wait for it.
  const Room room =
      lease_waiters_ > 0 ? Room::kFull : placement_->ReserveFetch(absl::MakeSpan(items), target);
  StartTransfers();
  NudgeMover();
  if (room != Room::kOk) {
    spare_items_.Give(std::move(items));
    return room;
  }
  RaisePrefetches(items);
  ticket.manager_ = this;
  ticket.items_ = std::move(items);
  ticket.deadline_ = options.deadline;
  return room;
}

absl::StatusOr<Ticket> TierManager::FetchAsync(absl::Span<const BlockRead> reads,
                                               const FetchOptions& options) {
  const absl::StatusOr<Pool> target = TargetPool(options.target);
  if (!target.ok()) return target.status();
  Ticket ticket;
  const absl::StatusOr<Room> room = StartFetch(reads, options, *target, ticket);
  if (!room.ok()) return room.status();
  if (*room == Room::kFull) {
    absl::MutexLock lock(&mu_);
    return NoRoomError("fetch", reads.size(), *target);
  }
  if (*room == Room::kWait) {
    return absl::UnavailableError("fetch: the room it needs is still being written back; retry");
  }
  return ticket;
}

absl::StatusOr<std::optional<Ticket>> TierManager::TryFetchAsync(absl::Span<const BlockRead> reads,
                                                                 const FetchOptions& options) {
  const absl::StatusOr<Pool> target = TargetPool(options.target);
  if (!target.ok()) return target.status();
  Ticket ticket;
  const absl::StatusOr<Room> room = StartFetch(reads, options, *target, ticket);
  if (!room.ok()) return room.status();
  if (*room != Room::kOk) return std::nullopt;
  return ticket;
}

bool TierManager::AwaitLeases(Pool pool, absl::Time until) {
  if (absl::Now() >= until || placement_->table(pool).pinned_count() == 0) return false;
  const TimelineSpan span(timeline(), "wait for leases");
  ++lease_waiters_;
  progress_.WaitWithDeadline(&mu_, until);
  --lease_waiters_;
  return true;
}

absl::StatusOr<Lease> TierManager::Fetch(absl::Span<const BlockRead> reads,
                                         const FetchOptions& options) {
  const TimelineSpan span(timeline(), "fetch", {"blocks", reads.size()});
  const absl::StatusOr<Pool> target = TargetPool(options.target);
  if (!target.ok()) return target.status();
  FetchItems items = spare_items_.Take();
  if (absl::Status status = MakeItems(reads, items); !status.ok()) return status;
  const absl::Time patience_end = absl::Now() + options.lease_patience;
  Lane* lane = nullptr;
  {
    absl::MutexLock lock(&mu_);
    for (int idle_rounds = 0, rounds = 0;; ++rounds) {
      const uint64_t seen = landings_;
      FollowBudget();
      const Room room = placement_->ReserveFetch(absl::MakeSpan(items), *target);
      if (room == Room::kOk) break;
      const bool wait = room == Room::kWait;
      idle_rounds = wait && AwaitProgress(seen, options.deadline) ? 0 : idle_rounds + 1;
      if (wait && absl::Now() >= options.deadline) {
        return absl::DeadlineExceededError("fetch: the room it needs is still being written back");
      }
      if (!wait || idle_rounds > kMaxIdleRounds || rounds > kMaxRounds) {
        if (!AwaitLeases(*target, patience_end)) {
          return NoRoomError("fetch", reads.size(), *target);
        }
        idle_rounds = rounds = 0;
      }
    }
    RaisePrefetches(items);
    // Who uses a lane must stay until it is empty, which a deadline does not allow.
    if (options.deadline == absl::InfiniteFuture()) lane = TakeLane();
    StartTransfers(lane);
  }
  Lease lease = WaitFor(items, options.deadline, lane);
  spare_items_.Give(std::move(items));
  return lease;
}

bool TierManager::AllLanded(absl::Span<const FetchItem> items) const {
  for (const FetchItem& item : items) {
    if (item.place.slot == kNoSlot) continue;
    const SlotTable& slots = placement_->table(item.place.pool);
    if (slots.state(item.place.slot) == CopyState::kFilling) return false;
  }
  return true;
}

Lease TierManager::WaitFor(absl::Span<const FetchItem> items, absl::Time deadline, Lane* lane) {
  const TimelineSpan span(timeline(), "await blocks", {"blocks", items.size()});
  Lease lease;
  lease.manager_ = this;
  lease.blocks_ = spare_blocks_.Take();
  lease.places_ = spare_places_.Take();
  lease.blocks_.reserve(std::bit_ceil(items.size()));
  lease.places_.reserve(std::bit_ceil(items.size()));
  std::vector<Place> unserved;
  {
    absl::MutexLock lock(&mu_);
    ++waiters_;
    // Everything before `landed` has: items are looked at once, not once a wake-up.
    for (size_t landed = 0; landed < items.size();) {
      if (AllLanded(items.subspan(landed, 1))) {
        ++landed;
      } else if (absl::Now() >= deadline) {
        break;
      } else if (!DoSomeWork(lane) && (lane == nullptr || !DriveLane(*lane))) {
        progress_.WaitWithDeadline(&mu_, deadline);
      }
    }
    if (lane != nullptr) {
      // It may have taken reads for others along.
      while (DriveLane(*lane)) NudgeMover();
      idle_lanes_.push_back(lane);
    }
    --waiters_;
    for (const FetchItem& item : items) {
      lease.blocks_.push_back(Outcome(item));
      if (item.place.slot == kNoSlot) continue;
      const bool served = lease.blocks_.back().outcome == BlockOutcome::kServed;
      (served ? lease.places_ : unserved).push_back(item.place);
    }
    NudgeMover();
    RecordSlots();
  }
  Unpin(unserved);
  return lease;
}

LeasedBlock TierManager::Outcome(const FetchItem& item) const {
  LeasedBlock block;
  block.hit_tier = item.hit_tier;
  block.bytes = size_t{item.page_count} * kPageBytes;
  if (item.place.slot == kNoSlot) {
    block.outcome = BlockOutcome::kMiss;
    return block;
  }
  switch (placement_->table(item.place.pool).state(item.place.slot)) {
    case CopyState::kResident:
      block.outcome = BlockOutcome::kServed;
      block.data = memory_->Address(item.place) + size_t{item.first_page} * kPageBytes;
      block.in_hbm = item.place.pool == Pool::kHbm;
      break;
    case CopyState::kFilling:
      block.outcome = BlockOutcome::kLate;
      break;
    case CopyState::kEmpty:
    case CopyState::kFailed:
      block.outcome = BlockOutcome::kLost;
      break;
  }
  return block;
}

void TierManager::Unpin(absl::Span<const Place> places) {
  if (places.empty()) return;
  absl::MutexLock lock(&mu_);
  for (const Place& place : places) placement_->Unpin(place);
  StartTransfers();  // reads may have waited for the staging slots that this freed
  if (lease_waiters_ > 0) progress_.SignalAll();
}

size_t TierManager::Prefetch(absl::Span<const BlockId> ids, std::optional<Tier> target) {
  const absl::StatusOr<Pool> pool = TargetPool(target);
  if (!pool.ok()) return 0;
  const TimelineSpan span(timeline(), "prefetch", {"blocks", ids.size()});
  absl::MutexLock lock(&mu_);
  const size_t cap = std::max<size_t>(1, placement_->table(*pool).size() / 4);
  FollowBudget();
  const size_t queued = placement_->ReservePrefetch(ids, *pool, cap);
  StartTransfers();
  NudgeMover();
  return queued;
}

absl::Status TierManager::CopyToHost(const LeasedBlock& block, absl::Span<std::byte> out) const {
  TERRACE_CHECK(block.outcome == BlockOutcome::kServed && out.size() == block.bytes);
  if (!block.in_hbm) {
    std::memcpy(out.data(), block.data, block.bytes);
    return absl::OkStatus();
  }
  const Copy copy = {.source = block.data,
                     .destination = out.data(),
                     .bytes = block.bytes,
                     .direction = CopyDirection::kDeviceToHost};
  return memory_->CopyAndWait(copy);
}

}  // namespace terrace
