#ifndef TERRACE_TESTS_SUPPORT_FAULTY_DEVICE_H_
#define TERRACE_TESTS_SUPPORT_FAULTY_DEVICE_H_

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <random>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "io/block_device.h"

namespace terrace {

// A device that misbehaves on purpose, around one that works.
//
// The faults may be set, changed and released by any thread at any time; the rest follows
// BlockDevice. Each predicate runs under a lock and must not call the device.
class FaultyDevice final : public BlockDevice {
 public:
  // The errno a request fails with instead of reaching the device below, or nothing.
  using Failure = std::function<std::optional<int>(const IoRequest&)>;
  using Predicate = std::function<bool(const IoRequest&)>;

  // `seed` decides which bits flip.
  FaultyDevice(std::unique_ptr<BlockDevice> device, uint64_t seed);

  // Asked once for each submitted request. An empty function ends the fault.
  void FailWhen(Failure failure) ABSL_LOCKS_EXCLUDED(mu_);
  // Flips one bit of what a matching, successful read brought. An empty function ends the fault.
  void FlipBitWhen(Predicate predicate) ABSL_LOCKS_EXCLUDED(mu_);
  // Holds matching requests back from now on, until they are released; requests that fail are never
  // held. An empty function holds no more, but releases nothing.
  void HoldWhen(Predicate predicate) ABSL_LOCKS_EXCLUDED(mu_);
  void HoldAll() {
    HoldWhen([](const IoRequest&) { return true; });
  }

  // Lets the `count` requests that were held first go on; fewer when fewer are held.
  void Release(size_t count) ABSL_LOCKS_EXCLUDED(mu_);
  // Lets all of them go on, and holds no more.
  void ReleaseAll() ABSL_LOCKS_EXCLUDED(mu_);
  size_t held() const ABSL_LOCKS_EXCLUDED(mu_);
  // Blocks until at least `count` requests are held.
  void AwaitHeld(size_t count) const ABSL_LOCKS_EXCLUDED(mu_);

  // Requests that failed, and reads that had a bit flipped, so far.
  uint64_t failed_count() const { return failed_count_; }
  uint64_t flipped_count() const { return flipped_count_; }

  void Submit(absl::Span<IoRequest* const> batch) override ABSL_LOCKS_EXCLUDED(mu_);
  size_t Poll(absl::Span<IoRequest*> done) override ABSL_LOCKS_EXCLUDED(mu_);
  size_t Wait(absl::Span<IoRequest*> done) override ABSL_LOCKS_EXCLUDED(mu_);
  void Wake() override;
  const DeviceInfo& info() const override { return device_->info(); }

 private:
  // What becomes of a request: fails, is held, or goes to `passed`.
  void Sort(IoRequest* request, std::vector<IoRequest*>& passed) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void FlipBits(absl::Span<IoRequest* const> done) ABSL_LOCKS_EXCLUDED(mu_);
  void FlipOneBit(const IoRequest& request) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void ReleaseUnderLock(size_t count) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);

  const std::unique_ptr<BlockDevice> device_;
  std::atomic<uint64_t> failed_count_ = 0;
  std::atomic<uint64_t> flipped_count_ = 0;
  // Set by Wake alone: a release also wakes the device below, but must not end a Wait.
  std::atomic<bool> woken_ = false;

  mutable absl::Mutex mu_;
  Failure failure_ ABSL_GUARDED_BY(mu_);
  Predicate flip_ ABSL_GUARDED_BY(mu_);
  Predicate hold_ ABSL_GUARDED_BY(mu_);
  std::mt19937_64 random_ ABSL_GUARDED_BY(mu_);
  IoRequestQueue failed_ ABSL_GUARDED_BY(mu_);
  IoRequestQueue held_ ABSL_GUARDED_BY(mu_);
  IoRequestQueue released_ ABSL_GUARDED_BY(mu_);  // for the device's thread to pass on
};

}  // namespace terrace

#endif  // TERRACE_TESTS_SUPPORT_FAULTY_DEVICE_H_
