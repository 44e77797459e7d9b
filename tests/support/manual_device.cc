#include "tests/support/manual_device.h"

#include <algorithm>

#include "io/check.h"

namespace terrace {

ManualDevice::ManualDevice(size_t depth) {
  info_.path = "manual";
  info_.size_bytes = uint64_t{1} << 40;
  info_.depth = depth;
}

std::vector<IoRequest*> ManualDevice::AwaitAsleep() {
  absl::MutexLock lock(&mu_);
  mu_.Await(absl::Condition(this, &ManualDevice::Asleep));
  return in_flight_;
}

void ManualDevice::Complete(IoRequest* request, int error) {
  absl::MutexLock lock(&mu_);
  const auto found = std::find(in_flight_.begin(), in_flight_.end(), request);
  TERRACE_CHECK(found != in_flight_.end());
  in_flight_.erase(found);
  Finish(request, error);
}

void ManualDevice::CompleteAll() {
  absl::MutexLock lock(&mu_);
  for (IoRequest* request : in_flight_) Finish(request, 0);
  in_flight_.clear();
}

void ManualDevice::RunFreely() {
  absl::MutexLock lock(&mu_);
  free_running_ = true;
  for (IoRequest* request : in_flight_) Finish(request, 0);
  in_flight_.clear();
}

size_t ManualDevice::wake_count() const {
  absl::MutexLock lock(&mu_);
  return wake_count_;
}

void ManualDevice::Submit(absl::Span<IoRequest* const> batch) {
  absl::MutexLock lock(&mu_);
  for (IoRequest* request : batch) {
    if (free_running_) {
      Finish(request, 0);
    } else {
      in_flight_.push_back(request);
    }
  }
}

size_t ManualDevice::Poll(absl::Span<IoRequest*> done) {
  absl::MutexLock lock(&mu_);
  return TakeFinished(done);
}

size_t ManualDevice::Wait(absl::Span<IoRequest*> done) {
  absl::MutexLock lock(&mu_);
  waiting_ = true;
  mu_.Await(absl::Condition(this, &ManualDevice::MustReturn));
  waiting_ = false;
  woken_ = false;
  return TakeFinished(done);
}

void ManualDevice::Wake() {
  absl::MutexLock lock(&mu_);
  woken_ = true;
  ++wake_count_;
}

void ManualDevice::Finish(IoRequest* request, int error) {
  Reset(*request);
  request->error = error;
  if (error == 0) request->transferred = request->length();
  finished_.PushBack(request);
}

size_t ManualDevice::TakeFinished(absl::Span<IoRequest*> done) {
  size_t count = 0;
  while (count < done.size() && !finished_.empty()) done[count++] = finished_.PopFront();
  return count;
}

}  // namespace terrace
