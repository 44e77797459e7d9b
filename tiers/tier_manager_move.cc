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

// Of so many reads, one in kHeldBackShare goes to the device once the first have come back. Some
// disks report their whole queue at once, when they are done with it; then the reads that were held
// back are under way while the others are verified.
constexpr size_t kMinSplitReads = 24;
constexpr size_t kHeldBackShare = 5;

}  // namespace

void TierManager::StartTransfers(Lane* lane) {
  // The reads of recovery end up here too, while segments are restored without the lock.
  if (scheduler_ == nullptr || recovering_) return;
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
  EncodeGroupHeader(nvme.geometry(), group.header, records, write.header);
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
  TimelineSpan span(timeline(), "read from disk", {"requests", lane.batch.size()});
  record_reads_.Submit(first);
  const size_t count = lane.device->SubmitAndWait(first, absl::MakeSpan(done));
  record_reads_.Done(absl::MakeConstSpan(done).first(count), [](const IoRequest&) { return 0; });
  const auto held_back = absl::MakeConstSpan(lane.batch).subspan(first.size());
  record_reads_.Submit(held_back);
  if (!held_back.empty()) lane.device->Submit(held_back);
  span.End();
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

bool TierManager::DoSomeWork(Lane* lane) {
  const bool worked = FinishArrived() || RunCopies() || SealGroup();
  if (!worked) return false;
  ++landings_;
  StartTransfers(lane);
  progress_.SignalAll();
  NudgeMover();
  return true;
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
  TimelineSpan span(timeline(), "copy", {"blocks", copies.size()});
  const absl::Status copied = memory_->CopyAndWait(copies);
  span.End();
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
  if (timeline() != nullptr) timeline()->NameThread("tier mover");
  absl::MutexLock lock(&mu_);
  while (!stopping_) {
    if (waiters_ > 0 || !DoSomeWork()) mover_wakeup_.Wait(&mu_);
  }
}

}  // namespace terrace
