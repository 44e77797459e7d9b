// TierManager: carrying out what Placement decided.

#include <algorithm>
#include <array>
#include <cstring>
#include <utility>

#include "absl/container/inlined_vector.h"
#include "io/check.h"
#include "tiers/tier_manager.h"

namespace terrace {
namespace {

// Blocks that one turn of work lands: enough to amortise the lock and the copy engine's start, few
// enough that the first of them is not kept waiting for the last.
constexpr size_t kWorkBatch = 16;

// Of so many reads, one in kHeldBackShare goes to the device once the first have come back. Some
// disks report their whole queue at once, when they are done with it; then the reads that were held
// back are under way while the others are verified.
constexpr size_t kMinSplitReads = 24;
constexpr size_t kHeldBackShare = 5;

// A disk that fails so many reads in a row is given up: each of them may have taken its time.
constexpr uint64_t kMaxReadFailures = 64;

}  // namespace

void TierManager::StartTransfers(Lane* lane) {
  if (scheduler_ == nullptr) return;
  GroupBatch writes;
  FlightBatch demand;
  FlightBatch prefetch;
  FlightBatch rewrite;
  CollectGroups(writes);
  CollectUpkeep(writes);
  CollectReads(demand, prefetch, rewrite);
  // Submitted under the lock, so that whoever joins a prefetch finds it where Raise can reach it.
  // The queue is sized for every flight and every group, so it never refuses.
  const auto submit = [this](IoClass io_class, absl::Span<IoRequest* const> batch) {
    if (batch.empty()) return;
    const absl::Status status = scheduler_->Submit(io_class, batch);
    TERRACE_CHECK(status.ok());
  };
  submit(IoClass::kOffload, writes);
  absl::InlinedVector<IoRequest*, 64> reads;
  for (Flight* flight : rewrite) reads.push_back(&flight->request);
  submit(IoClass::kOffload, reads);
  reads.clear();
  for (Flight* flight : prefetch) reads.push_back(&flight->request);
  submit(IoClass::kPrefetch, reads);
  if (lane != nullptr) {
    for (Flight* flight : demand) lane->batch.push_back(&flight->request);
    return;
  }
  reads.clear();
  for (Flight* flight : demand) reads.push_back(&flight->request);
  submit(IoClass::kDemand, reads);
}

void TierManager::CollectReads(FlightBatch& demand, FlightBatch& prefetch, FlightBatch& rewrite) {
  // They have their slots already, and may be what others wait for.
  while (!idle_flights_.empty()) {
    const std::optional<Place> place = placement_->NextRewriteRead();
    if (!place) break;
    StartFlight(*place, rewrite);
  }
  const bool may_bounce = options_.hbm_bytes > 0;
  while (!idle_flights_.empty()) {
    if (may_bounce && placement_->table(Pool::kTransit).free_count() == 0) break;
    const std::optional<Place> place =
        placement_->NextRead(/*allow_prefetch=*/prefetch_flights_ < flights_.size() / 2);
    if (!place) break;
    const bool hinted = placement_->table(place->pool).fill(place->slot).prefetch;
    if (hinted) ++prefetch_flights_;
    StartFlight(*place, hinted ? prefetch : demand);
  }
  coalescer_->Coalesce(demand);
  coalescer_->Coalesce(prefetch);
  coalescer_->Coalesce(rewrite);
  for (const size_t index : split_flights_) {
    Flight& flight = flights_[index];
    coalescer_->PrepareAlone(flight);
    (flight.prefetch ? prefetch : demand).push_back(&flight);
  }
  split_flights_.clear();
}

void TierManager::StartFlight(Place place, FlightBatch& batch) {
  Flight& flight = flights_[idle_flights_.back()];
  idle_flights_.pop_back();
  PrepareFlight(flight, place);
  batch.push_back(&flight);
}

void TierManager::PrepareFlight(Flight& flight, Place target) {
  const Fill& fill = placement_->table(target.pool).fill(target.slot);
  flight.target = target;
  flight.bounce = target.pool == Pool::kHbm ? placement_->TakeBounce() : std::nullopt;
  flight.checksums = placement_->nvme()->checksums(fill.page, fill.page_count);
  flight.prefetch = fill.prefetch;
  flight.retried = false;
  flight.error = 0;
  flight.verified = false;
  flight.in_target = false;
  flight.offset = static_cast<uint64_t>(fill.page) * kPageBytes;
  // Read when the bytes have come, long after this.
  __builtin_prefetch(&flight.checksums.front());
  __builtin_prefetch(&flight.checksums.back());
  flight.bytes = {
      memory_->Address(flight.bounce.value_or(target)) + size_t{fill.first_page} * kPageBytes,
      size_t{fill.page_count} * kPageBytes};
  PrepareToOpen(flight, fill);
}

void TierManager::CollectGroups(GroupBatch& writes) {
  const auto write = [&](size_t index) {
    mu_.AssertHeld();
    PrepareGroup(index);
    writes.push_back(&group_writes_[index].request);
  };
  for (size_t index : sealed_groups_) write(index);
  sealed_groups_.clear();
  while (const std::optional<size_t> index = placement_->NextGroup()) {
    group_writes_[*index].is_sealed.assign(placement_->group(*index).blocks.size(), false);
    if (NeedsSealing(*index)) {
      unsealed_groups_.push_back(*index);
    } else {
      write(*index);
    }
  }
}

// Encodes the header and lists the blocks behind it, for one sequential write.
void TierManager::PrepareGroup(size_t index) {
  const WriteGroup& group = placement_->group(index);
  NvmeTier& nvme = *placement_->nvme();
  GroupWrite& write = group_writes_[index];
  absl::InlinedVector<GroupRecord, 32> records;
  write.vectors.clear();
  write.vectors.push_back({write.header.data(), write.header.size()});
  for (size_t i = 0; i < group.blocks.size(); ++i) {
    const WriteGroup::Block& block = group.blocks[i];
    GroupRecord record;
    record.valid = block.entry != kNoEntry;
    if (record.valid) {
      const BlockEntry& entry = placement_->directory()[block.entry];
      record.id = entry.id;
      record.retention = block.retention;
      record.checksums = nvme.checksums(block.page, placement_->pages_per_block());
      if (entry.key != kNoKey) {
        record.key = keys_.name(entry.key);
        record.seal = nvme.seal(block.page);
      }
    }
    records.push_back(record);
    if (!record.valid && !write.is_sealed[i] && write.sealed.size() > 0) {
      // What was to come here may be a block that must not reach the disk in plain form.
      std::memset(write.sealed.data() + i * options_.block_bytes, 0, options_.block_bytes);
      write.is_sealed[i] = true;
    }
    std::byte* const bytes = write.is_sealed[i] ? write.sealed.data() + i * options_.block_bytes
                                                : memory_->Address(block.source);
    write.vectors.push_back({bytes, options_.block_bytes});
  }
  EncodeGroupHeader(nvme.geometry(),
                    {.epoch = nvme.epoch(),
                     .generation = group.generation,
                     .segment_generation = group.segment_generation,
                     .base_page = static_cast<uint32_t>(group.base),
                     .block_count = static_cast<uint32_t>(group.blocks.size())},
                    records, write.header);
  nvme.KeepHeader(group.base, write.header);
  write.request.op = IoOp::kWrite;
  write.request.offset = static_cast<uint64_t>(group.base) * kPageBytes;
  write.request.buffers = write.vectors;
  write.tries = 1;
  Reset(write.request);
  SpendBudget(write.request);
}

TierManager::Lane* TierManager::TakeLane() {
  if (idle_lanes_.empty()) return nullptr;
  Lane* const lane = idle_lanes_.back();
  idle_lanes_.pop_back();
  return lane;
}

bool TierManager::DriveLane(Lane& lane) {
  if (lane.batch.empty() && lane.in_flight == 0) return false;
  std::array<IoRequest*, 4 * kWorkBatch> done;
  absl::Span<IoRequest* const> first = lane.batch;
  if (lane.in_flight == 0 && first.size() >= kMinSplitReads) {
    first.remove_suffix(first.size() / kHeldBackShare);
  }
  --waiters_;  // what others are waiting for is the mover's meanwhile
  mu_.Unlock();
  const size_t count = lane.device->SubmitAndWait(first, absl::MakeSpan(done));
  const auto held_back = absl::MakeConstSpan(lane.batch).subspan(first.size());
  if (!held_back.empty()) lane.device->Submit(held_back);
  lane.in_flight += lane.batch.size();
  lane.in_flight -= count;
  lane.batch.clear();
  mu_.Lock();
  ++waiters_;
  for (IoRequest* request : absl::MakeConstSpan(done).first(count)) {
    lane_read_bytes_ += request->transferred;
    EndRead(flights_[static_cast<const Context*>(request->context)->index]);
  }
  // They go again now: nothing else may come back that would send them.
  if (!split_flights_.empty()) StartTransfers(&lane);
  return true;
}

void TierManager::EndRead(Flight& first) {
  const bool shared = first.next != nullptr;
  const int error = first.request.error;
  if (error != 0) ++faults_.failed_reads;
  if (!shared && error != 0) {
    if (ReadAgain(first)) return;
    if (nvme_read_error_.ok()) nvme_read_error_ = device_->StatusOf(first.request);
  }
  std::vector<size_t>& ended = shared && error != 0 ? split_flights_ : arrived_flights_;
  for (Flight* flight = &first; flight != nullptr; flight = flight->next) {
    flight->error = error;
    ended.push_back(flight->index);
  }
}

// A second try alone: what failed may have been on the way.
bool TierManager::ReadAgain(Flight& flight) {
  if (flight.retried) return false;
  flight.retried = true;
  flight.next = nullptr;
  split_flights_.push_back(flight.index);
  return true;
}

void TierManager::CountRead(const Flight& flight) {
  if (flight.verified) {
    reads_failed_in_a_row_ = 0;
    if (flight.retried) ++faults_.mended_reads;
    return;
  }
  if (flight.error != 0 && ++reads_failed_in_a_row_ >= kMaxReadFailures && !nvme_abandoned_) {
    nvme_abandoned_ = true;
    StopNvmeWrites(nvme_read_error_);
    placement_->AbandonNvme();
  }
}

bool TierManager::DoSomeWork(Lane* lane) {
  const bool worked = FinishArrived() || RunCopies() || SealGroup();
  if (!worked) return false;
  ++landings_;
  StartTransfers(lane);
  progress_.SignalAll();
  NudgeMover();
  return true;
}

bool TierManager::FinishArrived() {
  if (arrived_flights_.empty()) return false;
  absl::InlinedVector<size_t, kWorkBatch> taken;
  absl::InlinedVector<Flight*, kWorkBatch> flights;
  const size_t count = std::min(arrived_flights_.size(), kWorkBatch);
  for (size_t i = 0; i < count; ++i) {
    taken.push_back(arrived_flights_[i]);
    flights.push_back(&flights_[arrived_flights_[i]]);
  }
  arrived_flights_.erase(arrived_flights_.begin(), arrived_flights_.begin() + count);
  mu_.Unlock();
  VerifyAndCopyUp(flights);
  mu_.Lock();
  for (size_t index : taken) {
    Flight& flight = flights_[index];
    if (!flight.verified && flight.error == 0) {
      ++(flight.unopened ? faults_.unopened_blocks : faults_.corrupt_reads);
      if (ReadAgain(flight)) continue;
    }
    CountRead(flight);
    if (flight.bounce) placement_->ReturnBounce(*flight.bounce);
    if (flight.in_target) {
      if (flight.bounce) hbm_copied_bytes_ += flight.bytes.iov_len;
      placement_->FillLanded(flight.target);
    } else {
      placement_->FillFailed(flight.target, /*source_lost=*/!flight.verified);
    }
    if (flight.prefetch) --prefetch_flights_;
    flight.prefetch = false;
    flight.cipher.reset();
    idle_flights_.push_back(index);
  }
  return true;
}

void TierManager::VerifyAndCopyUp(absl::Span<Flight* const> flights) {
  absl::InlinedVector<Copy, kWorkBatch> copies;
  for (Flight* flight : flights) {
    const absl::Span<const std::byte> bytes(static_cast<std::byte*>(flight->bytes.iov_base),
                                            flight->bytes.iov_len);
    flight->verified = flight->error == 0 &&
                       FirstCorruptPage(bytes, flight->checksums) == flight->checksums.size();
    flight->unopened = flight->verified && flight->sealed && !OpenBlock(*flight);
    flight->verified = flight->verified && !flight->unopened;
    flight->in_target = flight->verified;
    if (!flight->verified || !flight->bounce) continue;
    copies.push_back({.source = bytes.data(),
                      .destination = memory_->Address(flight->target),
                      .bytes = bytes.size(),
                      .direction = CopyDirection::kHostToDevice});
  }
  if (copies.empty() || memory_->CopyAndWait(copies).ok()) return;
  for (Flight* flight : flights) {
    if (flight->bounce) flight->in_target = false;
  }
}

bool TierManager::RunCopies() {
  absl::InlinedVector<Place, kWorkBatch> places;
  absl::InlinedVector<Copy, kWorkBatch> copies;
  const size_t queued = placement_->queued_copies();
  while (places.size() < kWorkBatch) {
    const std::optional<Place> place = placement_->NextCopy();
    if (!place) break;
    const Place source = placement_->table(place->pool).fill(place->slot).slot;
    places.push_back(*place);
    copies.push_back({.source = memory_->Address(source),
                      .destination = memory_->Address(*place),
                      .bytes = options_.block_bytes,
                      .direction = place->pool == Pool::kHbm ? CopyDirection::kHostToDevice
                                                             : CopyDirection::kDeviceToHost});
  }
  // A copy whose source was lost has failed, which others may wait for.
  if (places.empty()) return placement_->queued_copies() < queued;
  mu_.Unlock();
  const absl::Status copied = memory_->CopyAndWait(copies);
  mu_.Lock();
  if (!copied.ok()) copy_error_ = copied;
  for (const Place& place : places) {
    if (copied.ok()) {
      hbm_copied_bytes_ += options_.block_bytes;
      placement_->FillLanded(place);
    } else {
      placement_->FillFailed(place, /*source_lost=*/false);
    }
  }
  return true;
}

bool TierManager::AwaitProgress(uint64_t seen, absl::Time deadline) {
  StartTransfers();
  if (landings_ != seen || DoSomeWork()) return true;
  if (!placement_->transfers_in_flight()) return false;
  ++waiters_;
  progress_.WaitWithDeadline(&mu_, deadline);
  --waiters_;
  NudgeMover();
  return true;
}

void TierManager::RaisePrefetches(absl::Span<const FetchItem> items) {
  for (const FetchItem& item : items) {
    if (!item.was_prefetching) continue;
    for (Flight& flight : flights_) {
      if (!flight.prefetch || flight.target != item.place) continue;
      // The request of another flight may carry it, and is the same for the device either way.
      scheduler_->Raise(&flights_[flight.first->index].request, IoClass::kDemand);
    }
  }
}

void TierManager::NudgeMover() {
  if (arrived_flights_.empty() && placement_->queued_copies() == 0 && unsealed_groups_.empty()) {
    return;
  }
  if (waiters_ > 0) {
    progress_.SignalAll();
  } else {
    mover_wakeup_.Signal();
  }
}

void TierManager::OnCompletions(absl::Span<IoRequest* const> done) {
  absl::MutexLock lock(&mu_);
  for (IoRequest* request : done) {
    const Context& context = *static_cast<const Context*>(request->context);
    switch (context.kind) {
      case Context::Kind::kFlight:
        EndRead(flights_[context.index]);
        break;
      case Context::Kind::kGroup:
        EndGroup(context.index);
        break;
      case Context::Kind::kUpkeep:
        EndUpkeep(context.index);
        break;
      case Context::Kind::kBlocking:
        context.blocking->status.Update(device_->StatusOf(*request));
        --context.blocking->left;
        break;
    }
  }
  ++landings_;
  // Reads may have waited for the staging slots that a write gave back. The destructor, which lets
  // go of the scheduler, wants no more of them.
  if (!stopping_) StartTransfers();
  progress_.SignalAll();
  NudgeMover();
}

void TierManager::RunMover() {
  absl::MutexLock lock(&mu_);
  while (!stopping_) {
    if (waiters_ > 0 || !DoSomeWork()) mover_wakeup_.Wait(&mu_);
  }
}

}  // namespace terrace
