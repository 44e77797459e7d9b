#include "io/io_scheduler.h"

#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "io/check.h"

namespace terrace {
namespace {

// IoRequest::queue holds the class of a request, its lane and, from the moment the I/O thread takes
// it until its owner has it back, a bit that says so. Its links belong to the device then, so Raise
// must keep off.
constexpr uint8_t kTaken = 0x80;
constexpr uint8_t kClassMask = 0x03;
constexpr uint8_t kLaneMask = 0x0f;
constexpr int kLaneShift = 2;

static_assert(IoTimeline::kClasses == kIoClassCount);

size_t ClassOf(const IoRequest& request) { return request.queue & kClassMask; }
size_t LaneOf(const IoRequest& request) { return (request.queue >> kLaneShift) & kLaneMask; }
uint8_t QueueBits(size_t io_class, size_t lane) {
  return static_cast<uint8_t>(io_class | (lane << kLaneShift));
}

}  // namespace

IoScheduler::IoScheduler(std::unique_ptr<BlockDevice> device, const IoSchedulerOptions& options,
                         CompletionHandler handler)
    : device_(std::move(device)),
      options_(options),
      handler_(std::move(handler)),
      member_(options.share == nullptr
                  ? nullptr
                  : options.share->Join(options.share_rank, [this] { device_->Wake(); })),
      record_(options_.timeline, options_.timeline_name) {
  for (const size_t depth : options_.class_depth) TERRACE_CHECK(depth > 0);
  thread_ = std::thread([this] { Run(); });
}

IoScheduler::~IoScheduler() {
  {
    absl::MutexLock lock(&mu_);
    stopping_ = true;
  }
  device_->Wake();
  thread_.join();
  if (member_ != nullptr) options_.share->Leave(member_);
}

absl::Status IoScheduler::Submit(IoClass io_class, absl::Span<IoRequest* const> batch) {
  const size_t index = static_cast<size_t>(io_class);
  bool wake = false;
  {
    absl::MutexLock lock(&mu_);
    const size_t room = options_.queue_capacity - queued_;
    if (batch.size() > room) {
      return absl::ResourceExhaustedError(
          absl::StrCat("I/O queue full: ", batch.size(), " requests submitted, room for ", room));
    }
    const size_t lane = queues_[index].NextLane();
    for (IoRequest* request : batch) {
      request->queue = QueueBits(index, lane);
      queues_[index].PushBack(lane, request);
    }
    queued_ += batch.size();
    stats_.submitted[index] += batch.size();
    wake = !batch.empty() && ClaimWake(index);
  }
  if (wake) device_->Wake();
  return absl::OkStatus();
}

void IoScheduler::Raise(IoRequest* request, IoClass io_class) {
  const size_t index = static_cast<size_t>(io_class);
  bool wake = false;
  {
    absl::MutexLock lock(&mu_);
    if ((request->queue & kTaken) != 0 || ClassOf(*request) <= index) return;
    queues_[ClassOf(*request)].Remove(LaneOf(*request), request);
    const size_t lane = queues_[index].NextLane();
    request->queue = QueueBits(index, lane);
    queues_[index].PushBack(lane, request);
    wake = ClaimWake(index);
  }
  if (wake) device_->Wake();
}

IoSchedulerStats IoScheduler::Stats() const {
  absl::MutexLock lock(&mu_);
  return stats_;
}

void IoScheduler::Run() {
  if (options_.timeline != nullptr) {
    options_.timeline->NameThread(absl::StrCat(options_.timeline_name, " I/O thread"));
  }
  const size_t depth = device_->info().depth;
  std::vector<IoRequest*> batch;
  batch.reserve(depth);
  std::vector<IoRequest*> slots(depth);
  absl::Span<IoRequest*> done;
  for (;;) {
    {
      absl::MutexLock lock(&mu_);
      CountDone(done);
      TakeRunnable(batch);
      if (stopping_ && done.empty() && queued_ == 0 && total_in_device_ == 0) return;
      // Set under the lock that looked at the queues: what is submitted later sees it, and its Wake
      // lasts until the Wait. A round with requests to hand out polls instead, and comes back here.
      waiting_ = done.empty();
    }
    record_.Submit(batch);
    size_t count = 0;
    if (done.empty()) {
      count = device_->SubmitAndWait(batch, absl::MakeSpan(slots));
    } else {
      // The device is full again before the handler takes its time.
      if (!batch.empty()) device_->Submit(batch);
      handler_(done);
      count = device_->Poll(absl::MakeSpan(slots));
    }
    done = absl::MakeSpan(slots).first(count);
    record_.Done(done, ClassOf);
  }
}

void IoScheduler::TakeRunnable(std::vector<IoRequest*>& batch) {
  batch.clear();
  while (const std::optional<size_t> index = NextClass()) {
    // Asked for the most urgent that could run: a request whose turn it is for its age must not
    // hold demand up behind other members. Who is refused is woken when it is its turn, and comes
    // back.
    if (member_ != nullptr && !options_.share->Take(member_, *MostUrgent())) return;
    CountOvertaken(*index);
    IoRequest* const request = queues_[*index].PopFront();
    request->queue |= kTaken;
    ++in_device_[*index].requests;
    in_device_[*index].bytes += request->length();
    ++total_in_device_;
    --queued_;
    batch.push_back(request);
  }
  if (member_ != nullptr) options_.share->StopWaiting(member_);
}

std::optional<size_t> IoScheduler::NextClass() const {
  std::optional<size_t> next;
  for (size_t index = 0; index < kIoClassCount; ++index) {
    if (!MayRun(index)) continue;
    if (!next || overtaken_[index] >= options_.patience) next = index;
  }
  return next;
}

std::optional<size_t> IoScheduler::MostUrgent() const {
  for (size_t index = 0; index < kIoClassCount; ++index) {
    if (MayRun(index)) return index;
  }
  return std::nullopt;
}

void IoScheduler::CountOvertaken(size_t io_class) {
  overtaken_[io_class] = 0;
  for (size_t index = io_class + 1; index < kIoClassCount; ++index) {
    const bool waits = !queues_[index].empty() && in_device_[index].requests == 0;
    overtaken_[index] = waits ? overtaken_[index] + 1 : 0;
  }
}

bool IoScheduler::MayRun(size_t io_class) const {
  if (queues_[io_class].empty() || total_in_device_ >= device_->info().depth) return false;
  const InDevice& inside = in_device_[io_class];
  if (inside.requests == 0) return true;
  if (inside.requests >= options_.class_depth[io_class]) return false;
  const uint64_t limit = options_.class_bytes[io_class];
  return inside.bytes <= limit && queues_[io_class].Front()->length() <= limit - inside.bytes;
}

void IoScheduler::CountDone(absl::Span<IoRequest* const> done) {
  for (const IoRequest* request : done) {
    TERRACE_CHECK((request->queue & kTaken) != 0);
    InDevice& inside = in_device_[ClassOf(*request)];
    --inside.requests;
    inside.bytes -= request->length();
    --total_in_device_;
    if (request->op == IoOp::kRead) stats_.read_bytes += request->transferred;
    if (request->op == IoOp::kWrite) stats_.written_bytes += request->transferred;
  }
  if (member_ != nullptr && !done.empty()) options_.share->Return(member_, done.size());
}

bool IoScheduler::ClaimWake(size_t io_class) {
  // Without room, the completion that makes some will wake the I/O thread.
  return MayRun(io_class) && std::exchange(waiting_, false);
}

void IoScheduler::ClassQueue::PushBack(size_t lane, IoRequest* request) {
  lanes_[lane].PushBack(request);
  ++size_;
}

void IoScheduler::ClassQueue::Remove(size_t lane, IoRequest* request) {
  lanes_[lane].Remove(request);
  --size_;
}

size_t IoScheduler::ClassQueue::TurnLane() const {
  size_t turn = turn_;
  while (lanes_[turn % kLanes].empty()) ++turn;
  return turn;
}

const IoRequest* IoScheduler::ClassQueue::Front() const {
  return lanes_[TurnLane() % kLanes].front();
}

IoRequest* IoScheduler::ClassQueue::PopFront() {
  const size_t turn = TurnLane();
  turn_ = turn + 1;
  --size_;
  return lanes_[turn % kLanes].PopFront();
}

}  // namespace terrace
