#include "tests/support/faulty_device.h"

#include <algorithm>
#include <cerrno>
#include <numeric>
#include <utility>

#include "io/aligned_buffer.h"
#include "io/check.h"

namespace terrace {

FaultyDevice::FaultyDevice(std::unique_ptr<BlockDevice> device, uint64_t seed)
    : FaultyDevice(std::move(device), std::make_shared<Plan>(seed)) {}

FaultyDevice::FaultyDevice(std::unique_ptr<BlockDevice> device, std::shared_ptr<Plan> plan)
    : plan_(std::move(plan)), device_(std::move(device)) {}

FaultyDevice::~FaultyDevice() {
  // A clone must not release to, or wake, what is gone.
  const auto is_ours = [this](const Plan::Held& held) { return held.device == this; };
  absl::MutexLock lock(&plan_->mu);
  std::erase_if(plan_->held, is_ours);
  std::erase_if(plan_->released, is_ours);
}

absl::StatusOr<std::unique_ptr<BlockDevice>> FaultyDevice::Clone() const {
  absl::StatusOr<std::unique_ptr<BlockDevice>> clone = device_->Clone();
  if (!clone.ok()) return clone.status();
  return std::unique_ptr<BlockDevice>(new FaultyDevice(*std::move(clone), plan_));
}

void FaultyDevice::FailWhen(Failure failure) {
  absl::MutexLock lock(&plan_->mu);
  plan_->failure = std::move(failure);
}

void FaultyDevice::FlipBitWhen(Predicate predicate) {
  absl::MutexLock lock(&plan_->mu);
  plan_->flip = std::move(predicate);
}

void FaultyDevice::TearWriteWhen(Predicate predicate, TornWrite outcome) {
  absl::MutexLock lock(&plan_->mu);
  plan_->tear = std::move(predicate);
  plan_->outcome = outcome;
}

void FaultyDevice::HoldWhen(Predicate predicate) {
  absl::MutexLock lock(&plan_->mu);
  plan_->hold = std::move(predicate);
}

void FaultyDevice::Release(size_t count) {
  absl::MutexLock lock(&plan_->mu);
  ReleaseUnderLock(count);
}

void FaultyDevice::ReleaseAll() {
  absl::MutexLock lock(&plan_->mu);
  plan_->hold = nullptr;
  ReleaseUnderLock(plan_->held.size());
}

void FaultyDevice::ReleaseUnderLock(size_t count) {
  for (; count > 0 && !plan_->held.empty(); --count) {
    const Plan::Held held = plan_->held.front();
    plan_->held.pop_front();
    plan_->released.push_back(held);
    // Under the lock, so that its device is still there.
    held.device->device_->Wake();
  }
}

size_t FaultyDevice::held() const {
  absl::MutexLock lock(&plan_->mu);
  return plan_->held.size();
}

void FaultyDevice::AwaitHeld(size_t count) const {
  const auto enough = [this, count]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(plan_->mu) {
    return plan_->held.size() >= count;
  };
  absl::MutexLock lock(&plan_->mu);
  plan_->mu.Await(absl::Condition(&enough));
}

absl::Status FaultyDevice::Discard(uint64_t offset, uint64_t bytes) {
  return device_->Discard(offset, bytes);
}

void FaultyDevice::Submit(absl::Span<IoRequest* const> batch) {
  std::vector<IoRequest*> passed;
  {
    absl::MutexLock lock(&plan_->mu);
    for (IoRequest* request : batch) Sort(request, passed);
  }
  Pass(passed);
}

void FaultyDevice::Sort(IoRequest* request, std::vector<IoRequest*>& passed) {
  const std::optional<int> error = plan_->failure ? plan_->failure(*request) : std::nullopt;
  if (error.has_value()) {
    Reset(*request);
    request->error = *error;
    failed_.PushBack(request);
    ++plan_->failed_count;
  } else if (plan_->hold && plan_->hold(*request)) {
    plan_->held.push_back({request, this});
  } else {
    passed.push_back(request);
  }
}

void FaultyDevice::Pass(absl::Span<IoRequest* const> requests) {
  std::vector<IoRequest*> passed;
  {
    absl::MutexLock lock(&plan_->mu);
    for (IoRequest* request : requests) {
      if (!MustTear(*request)) {
        passed.push_back(request);
        continue;
      }
      const std::shared_ptr<Torn> torn = Tear(request);
      for (IoRequest& part : torn->parts) {
        torn_[&part] = torn;
        passed.push_back(&part);
      }
      if (torn->parts.empty()) FinishTorn(*torn);
    }
  }
  device_->Submit(passed);
}

bool FaultyDevice::MustTear(IoRequest& request) {
  if (!plan_->tear || request.op != IoOp::kWrite) return false;
  // What is of a bad shape, or empty, is for the device below to say.
  return plan_->tear(request) && Admit(request);
}

std::shared_ptr<FaultyDevice::Torn> FaultyDevice::Tear(IoRequest* write) {
  auto torn = std::make_shared<Torn>();
  torn->write = write;
  torn->outcome = plan_->outcome;
  const size_t page_count = write->length() / kPageBytes;
  std::vector<size_t> arriving(page_count);
  std::iota(arriving.begin(), arriving.end(), size_t{0});
  std::shuffle(arriving.begin(), arriving.end(), plan_->random);
  arriving.resize(page_count == 1 ? 0 : 1 + plan_->random() % (page_count - 1));
  torn->pages.resize(arriving.size());
  torn->parts.resize(arriving.size());
  torn->parts_left = arriving.size();
  for (size_t i = 0; i < arriving.size(); ++i) {
    uint64_t skip = arriving[i] * kPageBytes;
    size_t buffer = 0;
    for (; skip >= write->buffers[buffer].iov_len; ++buffer) skip -= write->buffers[buffer].iov_len;
    torn->pages[i] = {static_cast<std::byte*>(write->buffers[buffer].iov_base) + skip, kPageBytes};
    torn->parts[i].op = IoOp::kWrite;
    torn->parts[i].offset = write->offset + arriving[i] * kPageBytes;
    torn->parts[i].buffers = absl::MakeConstSpan(&torn->pages[i], 1);
  }
  ++plan_->torn_count;
  return torn;
}

void FaultyDevice::FinishTorn(Torn& torn) {
  const bool lies = torn.outcome == TornWrite::kReportsSuccess;
  torn.write->error = torn.error != 0 || lies ? torn.error : EIO;
  torn.write->transferred = torn.write->error == 0 ? torn.write->length() : 0;
  torn_done_.PushBack(torn.write);
}

size_t FaultyDevice::TakeParts(absl::Span<IoRequest*> done) {
  size_t others = 0;
  for (IoRequest* request : done) {
    const auto found = torn_.find(request);
    if (found == torn_.end()) {
      done[others++] = request;
      continue;
    }
    const std::shared_ptr<Torn> torn = found->second;
    torn_.erase(found);
    if (request->error != 0) torn->error = request->error;
    if (--torn->parts_left == 0) FinishTorn(*torn);
  }
  return others;
}

std::vector<IoRequest*> FaultyDevice::TakeReleased() {
  std::vector<IoRequest*> ours;
  std::deque<Plan::Held> others;
  absl::MutexLock lock(&plan_->mu);
  for (const Plan::Held& released : plan_->released) {
    if (released.device == this) {
      ours.push_back(released.request);
    } else {
      others.push_back(released);
    }
  }
  plan_->released = std::move(others);
  return ours;
}

size_t FaultyDevice::Poll(absl::Span<IoRequest*> done) {
  const std::vector<IoRequest*> released = TakeReleased();
  if (!released.empty()) Pass(released);
  size_t count = 0;
  while (count < done.size() && !failed_.empty()) done[count++] = failed_.PopFront();
  const absl::Span<IoRequest*> rest = done.subspan(count);
  const size_t passed = TakeParts(rest.first(device_->Poll(rest)));
  FlipBits(rest.first(passed));
  count += passed;
  while (count < done.size() && !torn_done_.empty()) done[count++] = torn_done_.PopFront();
  return count;
}

size_t FaultyDevice::Wait(absl::Span<IoRequest*> done) {
  TERRACE_CHECK(!done.empty());
  for (;;) {
    const size_t polled = Poll(done);
    const bool woken = woken_.exchange(false);
    if (polled > 0 || woken) return polled;
    // A Wake or a release that comes first makes this return at once.
    const size_t waited = TakeParts(done.first(device_->Wait(done)));
    FlipBits(done.first(waited));
    if (waited > 0) return waited;
  }
}

void FaultyDevice::Wake() {
  woken_ = true;
  device_->Wake();
}

void FaultyDevice::FlipBits(absl::Span<IoRequest* const> done) {
  absl::MutexLock lock(&plan_->mu);
  if (!plan_->flip) return;
  for (const IoRequest* request : done) {
    if (request->op != IoOp::kRead || request->error != 0) continue;
    if (plan_->flip(*request)) FlipOneBit(*request);
  }
}

void FaultyDevice::FlipOneBit(const IoRequest& request) {
  if (request.length() == 0) return;
  std::uniform_int_distribution<uint64_t> any_bit(0, request.length() * 8 - 1);
  uint64_t bit = any_bit(plan_->random);
  for (const iovec& buffer : request.buffers) {
    if (bit < buffer.iov_len * 8) {
      static_cast<unsigned char*>(buffer.iov_base)[bit / 8] ^=
          static_cast<unsigned char>(1u << (bit % 8));
      ++plan_->flipped_count;
      return;
    }
    bit -= buffer.iov_len * 8;
  }
}

}  // namespace terrace
