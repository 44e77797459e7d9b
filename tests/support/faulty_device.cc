#include "tests/support/faulty_device.h"

#include <utility>

#include "io/check.h"

namespace terrace {

FaultyDevice::FaultyDevice(std::unique_ptr<BlockDevice> device, uint64_t seed)
    : device_(std::move(device)), random_(seed) {}

void FaultyDevice::FailWhen(Failure failure) {
  absl::MutexLock lock(&mu_);
  failure_ = std::move(failure);
}

void FaultyDevice::FlipBitWhen(Predicate predicate) {
  absl::MutexLock lock(&mu_);
  flip_ = std::move(predicate);
}

void FaultyDevice::HoldWhen(Predicate predicate) {
  absl::MutexLock lock(&mu_);
  hold_ = std::move(predicate);
}

void FaultyDevice::Release(size_t count) {
  {
    absl::MutexLock lock(&mu_);
    ReleaseUnderLock(count);
  }
  device_->Wake();
}

void FaultyDevice::ReleaseAll() {
  {
    absl::MutexLock lock(&mu_);
    hold_ = nullptr;
    ReleaseUnderLock(held_.size());
  }
  device_->Wake();
}

void FaultyDevice::ReleaseUnderLock(size_t count) {
  for (; count > 0 && !held_.empty(); --count) released_.PushBack(held_.PopFront());
}

size_t FaultyDevice::held() const {
  absl::MutexLock lock(&mu_);
  return held_.size();
}

void FaultyDevice::AwaitHeld(size_t count) const {
  const auto enough = [this, count]()
                          ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) { return held_.size() >= count; };
  absl::MutexLock lock(&mu_);
  mu_.Await(absl::Condition(&enough));
}

void FaultyDevice::Submit(absl::Span<IoRequest* const> batch) {
  std::vector<IoRequest*> passed;
  {
    absl::MutexLock lock(&mu_);
    for (IoRequest* request : batch) Sort(request, passed);
  }
  device_->Submit(passed);
}

void FaultyDevice::Sort(IoRequest* request, std::vector<IoRequest*>& passed) {
  const std::optional<int> error = failure_ ? failure_(*request) : std::nullopt;
  if (error.has_value()) {
    Reset(*request);
    request->error = *error;
    failed_.PushBack(request);
    ++failed_count_;
  } else if (hold_ && hold_(*request)) {
    held_.PushBack(request);
  } else {
    passed.push_back(request);
  }
}

size_t FaultyDevice::Poll(absl::Span<IoRequest*> done) {
  std::vector<IoRequest*> released;
  size_t failed = 0;
  {
    absl::MutexLock lock(&mu_);
    while (!released_.empty()) released.push_back(released_.PopFront());
    while (failed < done.size() && !failed_.empty()) done[failed++] = failed_.PopFront();
  }
  if (!released.empty()) device_->Submit(released);
  const size_t passed = device_->Poll(done.subspan(failed));
  FlipBits(done.subspan(failed, passed));
  return failed + passed;
}

size_t FaultyDevice::Wait(absl::Span<IoRequest*> done) {
  TERRACE_CHECK(!done.empty());
  for (;;) {
    const size_t polled = Poll(done);
    const bool woken = woken_.exchange(false);
    if (polled > 0 || woken) return polled;
    // A Wake or a release that comes first makes this return at once.
    const size_t waited = device_->Wait(done);
    FlipBits(done.first(waited));
    if (waited > 0) return waited;
  }
}

void FaultyDevice::Wake() {
  woken_ = true;
  device_->Wake();
}

void FaultyDevice::FlipBits(absl::Span<IoRequest* const> done) {
  absl::MutexLock lock(&mu_);
  if (!flip_) return;
  for (const IoRequest* request : done) {
    if (request->op == IoOp::kRead && request->error == 0 && flip_(*request)) FlipOneBit(*request);
  }
}

void FaultyDevice::FlipOneBit(const IoRequest& request) {
  if (request.length() == 0) return;
  uint64_t bit = std::uniform_int_distribution<uint64_t>(0, request.length() * 8 - 1)(random_);
  for (const iovec& buffer : request.buffers) {
    if (bit < buffer.iov_len * 8) {
      static_cast<unsigned char*>(buffer.iov_base)[bit / 8] ^=
          static_cast<unsigned char>(1u << (bit % 8));
      ++flipped_count_;
      return;
    }
    bit -= buffer.iov_len * 8;
  }
}

}  // namespace terrace
