#ifndef TERRACE_TESTS_SUPPORT_MANUAL_DEVICE_H_
#define TERRACE_TESTS_SUPPORT_MANUAL_DEVICE_H_

#include <cstddef>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "io/block_device.h"

namespace terrace {

// A device that transfers nothing and completes a request when the test says so, to step a
// scheduler by hand. Thread-safe: the scheduler has the BlockDevice side, the test the rest.
class ManualDevice final : public BlockDevice {
 public:
  explicit ManualDevice(size_t depth);

  // Blocks until the device's thread sleeps in Wait and nothing submitted before this call can wake
  // it: everything that could happen without a completion has happened. Returns the requests in
  // flight, in the order they were submitted.
  std::vector<IoRequest*> AwaitAsleep() ABSL_LOCKS_EXCLUDED(mu_);
  // Finishes a request in flight: with its whole length transferred, or with `error`.
  void Complete(IoRequest* request, int error = 0) ABSL_LOCKS_EXCLUDED(mu_);
  void CompleteAll() ABSL_LOCKS_EXCLUDED(mu_);
  // From now on every request completes by itself.
  void RunFreely() ABSL_LOCKS_EXCLUDED(mu_);
  // Calls of Wake so far.
  size_t wake_count() const ABSL_LOCKS_EXCLUDED(mu_);

  void Submit(absl::Span<IoRequest* const> batch) override ABSL_LOCKS_EXCLUDED(mu_);
  size_t Poll(absl::Span<IoRequest*> done) override ABSL_LOCKS_EXCLUDED(mu_);
  size_t Wait(absl::Span<IoRequest*> done) override ABSL_LOCKS_EXCLUDED(mu_);
  void Wake() override ABSL_LOCKS_EXCLUDED(mu_);
  const DeviceInfo& info() const override { return info_; }

 private:
  void Finish(IoRequest* request, int error) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  size_t TakeFinished(absl::Span<IoRequest*> done) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  bool MustReturn() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) {
    return woken_ || !finished_.empty();
  }
  bool Asleep() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) { return waiting_ && !MustReturn(); }

  DeviceInfo info_;  // constant after construction

  mutable absl::Mutex mu_;
  std::vector<IoRequest*> in_flight_ ABSL_GUARDED_BY(mu_);
  IoRequestQueue finished_ ABSL_GUARDED_BY(mu_);
  bool free_running_ ABSL_GUARDED_BY(mu_) = false;
  bool waiting_ ABSL_GUARDED_BY(mu_) = false;
  bool woken_ ABSL_GUARDED_BY(mu_) = false;
  size_t wake_count_ ABSL_GUARDED_BY(mu_) = 0;
};

}  // namespace terrace

#endif  // TERRACE_TESTS_SUPPORT_MANUAL_DEVICE_H_
