// TierManager: what Flush promises, the upkeep of the log, and what happens when the disk fails.

#include <cerrno>

#include "absl/time/clock.h"
#include "io/check.h"
#include "tiers/tier_manager.h"

namespace terrace {
namespace {

constexpr int kWriteTries = 3;

}  // namespace

absl::Status TierManager::Flush() {
  if (scheduler_ == nullptr) {
    return absl::FailedPreconditionError("flush: there is no NVMe tier to flush to");
  }
  const TimelineSpan span(timeline(), "flush");
  absl::MutexLock one_flush(&flush_mu_);
  absl::MutexLock lock(&mu_);
  copy_error_ = absl::OkStatus();
  if (absl::Status status = WriteDirty(); !status.ok()) return status;
  const uint64_t generation = placement_->last_generation();
  NvmeTier& nvme = *placement_->nvme();
  absl::Status status = AwaitNvme([&] {
    mu_.AssertHeld();
    return placement_->WrittenUpTo(generation);
  });
  if (!status.ok()) return status;
  if (!copy_error_.ok()) return copy_error_;
  // Groups first: a block that was dropped on its way is known to the manifest only then.
  nvme.RequestManifest();
  status = AwaitNvme([&] { return !nvme.manifest_pending(); });
  if (!status.ok()) return status;
  const uint64_t sync = nvme.RequestSync();
  status = AwaitNvme([&] { return nvme.Synced(sync); });
  if (!status.ok()) return status;
  // Bytes in a file that nobody will find again are not durable.
  if (absl::Status found = device_->CheckFile(); !found.ok()) {
    StopNvmeWrites(found);
    return found;
  }
  // A mark of how far the log is durable spares the next Open from reading it.
  nvme.RequestCopies();
  nvme.RequestMark();
  return AwaitNvme([&] { return !nvme.manifest_pending() && !nvme.FooterPending(generation); });
}

// Puts every block that is dirty now into a group.
absl::Status TierManager::WriteDirty() {
  Placement::FlushCursor cursor = placement_->BeginFlush();
  for (int idle_rounds = 0;;) {
    const uint64_t seen = landings_;
    const Room room = placement_->SelectDirty(cursor);
    if (room == Room::kOk) return absl::OkStatus();
    const bool wait = room == Room::kWait;
    idle_rounds = wait && AwaitProgress(seen) ? 0 : idle_rounds + 1;
    if (wait && idle_rounds <= kMaxIdleRounds) continue;
    StartTransfers();
    return nvme_error_.ok()
               ? absl::ResourceExhaustedError("flush: owned blocks leave no room in the NVMe tier")
               : nvme_error_;
  }
}

// Works and waits until `condition` holds; the error once the tier takes no writes any more.
template <typename Condition>
absl::Status TierManager::AwaitNvme(Condition condition) {
  ++waiters_;
  for (;;) {
    StartTransfers();
    if (!nvme_error_.ok() || condition()) break;
    if (!DoSomeWork()) progress_.Wait(&mu_);
  }
  --waiters_;
  NudgeMover();
  return nvme_error_;
}

// Makes durable what recovery has marked: stale copies, before a segment can be freed that hides
// them. Where it fails nothing is written any more, and so nothing is freed.
void TierManager::WriteMarks() {
  NvmeTier& nvme = *placement_->nvme();
  nvme.RequestManifest();
  if (!nvme.manifest_pending()) return;
  if (!AwaitNvme([&] { return !nvme.manifest_pending(); }).ok()) return;
  const uint64_t sync = nvme.RequestSync();
  AwaitNvme([&] { return nvme.Synced(sync); }).IgnoreError();
}

void TierManager::CollectUpkeep(GroupBatch& writes) {
  NvmeTier& nvme = *placement_->nvme();
  while (!idle_upkeep_.empty()) {
    const std::optional<UpkeepTask> task = placement_->NextUpkeep();
    if (!task) return;
    UpkeepWrite& write = upkeep_writes_[idle_upkeep_.back()];
    idle_upkeep_.pop_back();
    const NvmeGeometry& geometry = nvme.geometry();
    write.task = *task;
    write.tries = 1;
    write.request.op = IoOp::kWrite;
    uint64_t page = 0;
    uint32_t pages = 0;
    switch (task->kind) {
      case UpkeepTask::Kind::kManifest:
        page = geometry.ManifestPage(task->segment, task->number % kManifestCopies);
        pages = geometry.manifest_pages;
        EncodeManifestRecord(geometry, nvme.manifest_record(task->segment),
                             write.bytes.span().first(size_t{pages} * kPageBytes));
        break;
      case UpkeepTask::Kind::kFooter:
        page = geometry.FooterPage(task->segment);
        pages = geometry.footer_pages;
        EncodeFooter(geometry, nvme.footer_header(task->segment),
                     nvme.footer_headers(task->segment),
                     write.bytes.span().first(size_t{pages} * kPageBytes));
        break;
      case UpkeepTask::Kind::kSync:
        write.request.op = IoOp::kSync;
        break;
    }
    write.vector = {write.bytes.data(), size_t{pages} * kPageBytes};
    write.request.offset = page * kPageBytes;
    write.request.buffers = absl::MakeConstSpan(&write.vector, pages > 0 ? 1 : 0);
    Reset(write.request);
    SpendBudget(write.request);
    writes.push_back(&write.request);
  }
}

void TierManager::EndGroup(size_t index) {
  GroupWrite& write = group_writes_[index];
  const absl::Status status = device_->StatusOf(write.request);
  if (!status.ok()) {
    ++faults_.failed_writes;
    if (RetryWrite(write.request, write.tries)) return;
    StopNvmeWrites(status);
  }
  placement_->GroupWritten(index, status.ok());
}

void TierManager::EndUpkeep(size_t index) {
  UpkeepWrite& write = upkeep_writes_[index];
  const absl::Status status = device_->StatusOf(write.request);
  if (!status.ok()) {
    const bool sync = write.task.kind == UpkeepTask::Kind::kSync;
    ++(sync ? faults_.failed_syncs : faults_.failed_writes);
    // The kernel and the disk may forget a write whose sync failed, and report success ever after.
    if (!sync && RetryWrite(write.request, write.tries)) return;
    StopNvmeWrites(status);
  } else {
    placement_->UpkeepDone(write.task);
  }
  idle_upkeep_.push_back(index);
}

bool TierManager::RetryWrite(IoRequest& request, int& tries) {
  if (request.error != EIO || tries == kWriteTries || stopping_ || !nvme_error_.ok()) return false;
  ++tries;
  Reset(request);
  IoRequest* again[] = {&request};
  return scheduler_->Submit(IoClass::kOffload, again).ok();
}

void TierManager::StopNvmeWrites(const absl::Status& error) {
  placement_->StopNvmeWrites();
  nvme_error_.Update(error);
}

void TierManager::SpendBudget(const IoRequest& request) {
  if (budget_.bytes_per_day() == 0) return;
  uint64_t bytes = 0;
  for (const iovec& buffer : request.buffers) bytes += buffer.iov_len;
  budget_.Spend(bytes, absl::Now());
}

void TierManager::FollowBudget() {
  if (budget_.bytes_per_day() > 0) placement_->AllowOffload(budget_.Allows(absl::Now()));
}

absl::Status TierManager::DiscardFree() {
  if (scheduler_ == nullptr) {
    return absl::FailedPreconditionError("discard: there is no NVMe tier");
  }
  // Under the lock, so that no segment is opened meanwhile.
  absl::MutexLock lock(&mu_);
  const NvmeTier& nvme = *placement_->nvme();
  const NvmeGeometry& geometry = nvme.geometry();
  absl::Status status;
  nvme.VisitFree([&](SegmentIndex segment) {
    const bool unused = nvme.phase(segment) == SegmentPhase::kFree && !nvme.being_read(segment);
    if (!status.ok() || !unused) return;
    status = device_->Discard(geometry.SegmentPage(segment) * kPageBytes,
                              uint64_t{geometry.segment_pages} * kPageBytes);
  });
  return status;
}

}  // namespace terrace
