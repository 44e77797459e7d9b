#include "tiers/tier_manager.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "io/check.h"

namespace terrace {
namespace {

const char* PoolName(Pool pool) {
  switch (pool) {
    case Pool::kHbm:
      return "HBM tier";
    case Pool::kDram:
      return "DRAM tier";
    case Pool::kTransit:
      return "staging pool";
  }
  return "?";
}

}  // namespace

TierManager::TierManager(const TierManagerOptions& options, std::unique_ptr<Placement> placement,
                         std::unique_ptr<SlotMemory> memory)
    : options_(options),
      record_reads_(options.nvme_bytes > 0 ? options.timeline : nullptr,
                    IoSchedulerOptions().timeline_name),
      memory_(std::move(memory)),
      placement_(std::move(placement)),
      budget_(options.nvme_write_bytes_per_day) {}

TierManager::~TierManager() {
  {
    absl::MutexLock lock(&mu_);
    stopping_ = true;
    mover_wakeup_.Signal();
  }
  if (mover_.joinable()) mover_.join();
  lanes_.clear();      // they share the scheduler's file
  scheduler_.reset();  // the handler sees every completion before the members go
}

Pool TierManager::FastPool() const {
  if (options_.hbm_bytes > 0) return Pool::kHbm;
  return options_.dram_bytes > 0 ? Pool::kDram : Pool::kTransit;
}

absl::StatusOr<Pool> TierManager::TargetPool(std::optional<Tier> target) const {
  if (!target) return FastPool();
  if (*target == Tier::kHbm && options_.hbm_bytes > 0) return Pool::kHbm;
  if (*target == Tier::kDram && options_.dram_bytes > 0) return Pool::kDram;
  return absl::InvalidArgumentError(
      absl::StrCat("cannot fetch to ", TierName(*target),
                   *target == Tier::kNvme ? ": it holds no memory" : ": it has no capacity"));
}

size_t TierManager::max_fetch_blocks(std::optional<Tier> target) const {
  const absl::StatusOr<Pool> pool = TargetPool(target);
  if (!pool.ok()) return 0;
  absl::MutexLock lock(&mu_);
  const SlotTable& slots = placement_->table(*pool);
  return *pool == Pool::kTransit ? slots.size() / 2 : slots.size();
}

absl::Status TierManager::NoRoomError(absl::string_view what, size_t needed, Pool pool) const {
  const SlotTable& slots = placement_->table(pool);
  size_t available = slots.size() - std::min(slots.size(), slots.pinned_count());
  if (pool == Pool::kTransit) available = std::min(available, slots.size() / 2);
  std::string message =
      absl::StrCat(what, ": ", needed, " slots needed in the ", PoolName(pool), ", ", available,
                   " of ", slots.size(), " can be had (the others are leased or in flight)");
  if (needed <= available && options_.nvme_write_bytes_per_day > 0) {
    absl::StrAppend(&message, "; owned blocks fill the tiers, or the endurance budget is spent");
  } else if (needed <= available) {
    absl::StrAppend(&message, "; owned blocks fill the tiers");
  }
  if (!nvme_error_.ok()) {
    absl::StrAppend(&message, "; the NVMe tier takes no writes: ", nvme_error_.message());
  }
  return absl::ResourceExhaustedError(message);
}

// --- Put ---

absl::Status TierManager::Put(absl::Span<const BlockWrite> blocks, const PutOptions& options) {
  const TimelineSpan span(timeline(), "put", {"blocks", blocks.size()});
  const absl::Time patience_end = absl::Now() + options.lease_patience;
  for (const BlockWrite& block : blocks) {
    if (block.bytes.size() != options_.block_bytes) {
      return absl::InvalidArgumentError(absl::StrCat("a block of ", block.bytes.size(),
                                                     " bytes put where blocks have ",
                                                     options_.block_bytes));
    }
    const absl::Status status = PutOne(block, patience_end);
    if (!status.ok()) return status;
  }
  return absl::OkStatus();
}

absl::Status TierManager::OtherSpaceError(const BlockWrite& block) const {
  const BlockDirectory& directory = placement_->directory();
  const KeyNumber key = directory[directory.Find(block.id)].key;
  const auto text = [](std::optional<uint64_t> space) {
    return space ? absl::StrCat("in namespace ", *space) : "in no namespace";
  };
  return absl::AlreadyExistsError(absl::StrCat(
      "put: block ", absl::Hex(block.id.high, absl::kZeroPad16),
      absl::Hex(block.id.low, absl::kZeroPad16), " is put ", text(block.space), " and is here ",
      text(key == kNoKey ? std::nullopt : std::optional(keys_.name(key).space)),
      "; drop it first"));
}

absl::Status TierManager::PutOne(const BlockWrite& block, absl::Time patience_end) {
  Place place;
  absl::Span<PageChecksum> checksums;
  {
    absl::MutexLock lock(&mu_);
    for (int idle_rounds = 0, rounds = 0;; ++rounds) {
      // Anew in each round: the key may go while the lock is let go.
      const KeyNumber key = block.space ? keys_.Current(*block.space) : kNoKey;
      if (block.space && key == kNoKey) {
        return absl::FailedPreconditionError(
            absl::StrCat("put: the key of namespace ", *block.space, " is not here"));
      }
      const uint64_t seen = landings_;
      FollowBudget();
      const Placement::PutReservation reservation =
          placement_->ReservePut(block.id, block.retention, key);
      place = reservation.place;
      if (reservation.outcome == Placement::PutOutcome::kReserved) break;
      if (reservation.outcome == Placement::PutOutcome::kAlreadyHere) return absl::OkStatus();
      if (reservation.outcome == Placement::PutOutcome::kOtherKey) return OtherSpaceError(block);
      if (reservation.outcome == Placement::PutOutcome::kLocked) {
        return absl::FailedPreconditionError(
            "put: the block is owned and sealed with a key that is not here");
      }
      const bool wait = reservation.outcome == Placement::PutOutcome::kWait;
      idle_rounds = wait && AwaitProgress(seen) ? 0 : idle_rounds + 1;
      if (!wait || idle_rounds > kMaxIdleRounds || rounds > kMaxRounds) {
        if (!AwaitLeases(placement_->put_pool(), patience_end)) {
          return NoRoomError("put", 1, placement_->put_pool());
        }
        idle_rounds = rounds = 0;
      }
    }
    checksums = placement_->table(place.pool).checksums(place.slot);
    StartTransfers();
  }
  // The slot is in kFilling, so its bytes and checksums are this thread's alone.
  const absl::Status status = FillFromCaller(block, place, checksums);
  absl::MutexLock lock(&mu_);
  if (status.ok()) {
    placement_->FillLanded(place);
  } else {
    placement_->FillFailed(place, /*source_lost=*/false);
  }
  ++landings_;
  RecordSlots();
  StartTransfers();
  if (waiters_ > 0) progress_.SignalAll();
  NudgeMover();
  return status;
}

absl::Status TierManager::FillFromCaller(const BlockWrite& block, Place place,
                                         absl::Span<PageChecksum> checksums) const {
  if (options_.nvme_bytes > 0 && checksums_) ChecksumPages(block.bytes, checksums);
  if (place.pool != Pool::kHbm) {
    std::memcpy(memory_->Address(place), block.bytes.data(), block.bytes.size());
    return absl::OkStatus();
  }
  const Copy copy = {.source = block.bytes.data(),
                     .destination = memory_->Address(place),
                     .bytes = block.bytes.size(),
                     .direction = CopyDirection::kHostToDevice};
  return memory_->CopyAndWait(copy);
}

// --- Blocks ---

void TierManager::Drop(absl::Span<const BlockId> ids) {
  absl::MutexLock lock(&mu_);
  for (const BlockId& id : ids) placement_->Drop(id);
}

void TierManager::SetRetention(absl::Span<const BlockId> ids, Retention retention) {
  absl::MutexLock lock(&mu_);
  for (const BlockId& id : ids) placement_->SetRetention(id, retention);
}

std::optional<Tier> TierManager::Find(const BlockId& id) const {
  absl::MutexLock lock(&mu_);
  return placement_->Find(id);
}

size_t TierManager::CountLeading(absl::Span<const BlockId> ids) const {
  absl::MutexLock lock(&mu_);
  size_t count = 0;
  while (count < ids.size() && placement_->Find(ids[count])) ++count;
  return count;
}

bool TierManager::OnNvme(const BlockId& id) const {
  absl::MutexLock lock(&mu_);
  return placement_->OnNvme(id);
}

std::vector<BlockId> TierManager::OwnedBlocks() const {
  absl::MutexLock lock(&mu_);
  const BlockDirectory& directory = placement_->directory();
  std::vector<BlockId> owned;
  directory.Visit([&](EntryIndex entry) {
    if (directory[entry].retention == Retention::kOwned) owned.push_back(directory[entry].id);
  });
  return owned;
}

std::optional<uint64_t> TierManager::NvmeOffset(const BlockId& id) const {
  absl::MutexLock lock(&mu_);
  if (!placement_->OnNvme(id)) return std::nullopt;
  const EntryIndex entry = placement_->directory().Find(id);
  return static_cast<uint64_t>(placement_->directory()[entry].page) * kPageBytes;
}

}  // namespace terrace
