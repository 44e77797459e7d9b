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

// By route. Up and down are batches of their own for the copy engine, as what moves down only makes
// room; the third is the way between slots in host memory, which is not the engine's.
struct TierManager::CopyBatch {
  struct Route {
    absl::InlinedVector<Place, kCopyBatch> places;
    absl::InlinedVector<Copy, kCopyBatch> copies;
    int64_t begin = 0;  // of the timeline's clock
    absl::StatusOr<CopyTicket> ticket;
    absl::Status status;
  };
  Route up;
  Route down;
  Route in_host;

  std::array<Route*, 3> routes() { return {&up, &down, &in_host}; }
};

bool TierManager::TakeCopies(CopyBatch& batch) {
  for (CopyBatch::Route* route : batch.routes()) {
    route->places.clear();
    route->copies.clear();
  }
  const size_t limit = std::clamp<size_t>(kCopyBatchBytes / options_.block_bytes, 1, kCopyBatch);
  for (size_t taken = 0; taken < limit; ++taken) {
    const std::optional<Place> place = placement_->NextCopy();
    if (!place) return taken > 0;
    const Place source = placement_->table(place->pool).fill(place->slot).slot;
    const bool up = place->pool == Pool::kHbm;
    CopyBatch::Route& route = up                          ? batch.up
                              : source.pool == Pool::kHbm ? batch.down
                                                          : batch.in_host;
    route.places.push_back(*place);
    route.copies.push_back(
        {.source = memory_->Address(source),
         .destination = memory_->Address(*place),
         .bytes = options_.block_bytes,
         .direction = up ? CopyDirection::kHostToDevice : CopyDirection::kDeviceToHost});
  }
  return true;
}

void TierManager::StartCopies(CopyBatch& batch) const {
  CopyEngine& engine = memory_->copy_engine();
  batch.up.begin = batch.down.begin = Timeline::Now();
  if (!batch.up.copies.empty()) {
    batch.up.ticket = engine.Submit(batch.up.copies, CopyPriority::kDemand);
  }
  if (!batch.down.copies.empty()) {
    batch.down.ticket = engine.Submit(batch.down.copies, CopyPriority::kOffload);
  }
  for (const Copy& copy : batch.in_host.copies) {
    std::memcpy(copy.destination, copy.source, copy.bytes);
  }
}

void TierManager::FinishCopies(CopyBatch& batch) const {
  for (CopyBatch::Route* route : {&batch.up, &batch.down}) {
    if (route->copies.empty()) continue;
    route->status =
        route->ticket.ok() ? memory_->copy_engine().Wait(*route->ticket) : route->ticket.status();
    memory_->RecordCopies(
        route == &batch.up ? CopyDirection::kHostToDevice : CopyDirection::kDeviceToHost,
        route->copies.size(), route->copies.size() * options_.block_bytes, route->begin);
  }
}

void TierManager::LandCopies(CopyBatch& batch) {
  for (CopyBatch::Route* route : batch.routes()) {
    if (route->places.empty()) continue;
    if (!route->status.ok()) copy_error_ = route->status;
    for (const Place& place : route->places) {
      if (route->status.ok()) {
        placement_->FillLanded(place);
      } else {
        placement_->FillFailed(place, /*source_lost=*/false);
      }
    }
    if (route->status.ok() && route != &batch.in_host) {
      hbm_copied_bytes_ += route->places.size() * options_.block_bytes;
    }
  }
}

bool TierManager::RunCopies() {
  std::array<CopyBatch, 2> batches;
  const size_t queued = placement_->queued_copies();
  // A copy whose source was lost has failed, which others may wait for.
  if (!TakeCopies(batches[0])) return placement_->queued_copies() < queued;
  const TimelineSpan span(timeline(), "copy");
  mu_.Unlock();
  StartCopies(batches[0]);
  mu_.Lock();
  for (size_t turn = 0;; ++turn) {
    CopyBatch& batch = batches[turn % 2];
    CopyBatch& next = batches[(turn + 1) % 2];
    // It starts before this one ends, and keeps the bus busy while this one is landed.
    const bool more = turn + 1 < kCopyTurns && TakeCopies(next);
    mu_.Unlock();
    if (more) StartCopies(next);
    FinishCopies(batch);
    mu_.Lock();
    LandCopies(batch);
    if (!more) return true;
    ++landings_;
    progress_.SignalAll();
  }
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
