#ifndef TERRACE_TESTS_SUPPORT_FAULTY_DEVICE_H_
#define TERRACE_TESTS_SUPPORT_FAULTY_DEVICE_H_

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <optional>
#include <random>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/container/flat_hash_map.h"
#include "absl/synchronization/mutex.h"
#include "io/block_device.h"

namespace terrace {

// What a write that reached the disk only in part comes back as.
enum class TornWrite : uint8_t { kReportsSuccess, kReportsError };

// A device that misbehaves on purpose, around one that works.
//
// The faults may be set, changed and released by any thread at any time, on the device or on any
// clone of it: they are those of all, and so are the counts. The rest follows BlockDevice. Each
// predicate runs under a lock and must not call the device.
class FaultyDevice final : public BlockDevice {
 public:
  // The errno a request fails with instead of reaching the device below, or nothing.
  using Failure = std::function<std::optional<int>(const IoRequest&)>;
  using Predicate = std::function<bool(const IoRequest&)>;

  // `seed` decides which bits flip and which pages of a torn write arrive.
  FaultyDevice(std::unique_ptr<BlockDevice> device, uint64_t seed);
  ~FaultyDevice() override;

  // Asked once for each submitted request. An empty function ends the fault.
  void FailWhen(Failure failure);
  // Flips one bit of what a matching, successful read brought. An empty function ends the fault.
  void FlipBitWhen(Predicate predicate);
  // Lets only some pages of a matching write reach the device below, never all of them and, of
  // several, never none. Then the write reports success, which is a lie, or EIO. Asked when the
  // request goes on to the device below. An empty function ends the fault.
  void TearWriteWhen(Predicate predicate, TornWrite outcome);
  // Holds matching requests back from now on, until they are released; requests that fail are never
  // held. An empty function holds no more, but releases nothing.
  void HoldWhen(Predicate predicate);
  void HoldAll() {
    HoldWhen([](const IoRequest&) { return true; });
  }

  // Lets the `count` requests that were held first go on; fewer when fewer are held.
  void Release(size_t count);
  // Lets all of them go on, and holds no more.
  void ReleaseAll();
  size_t held() const;
  // Blocks until at least `count` requests are held.
  void AwaitHeld(size_t count) const;

  // Requests that failed, reads that had a bit flipped, and writes that were torn, so far.
  uint64_t failed_count() const { return plan_->failed_count; }
  uint64_t flipped_count() const { return plan_->flipped_count; }
  uint64_t torn_count() const { return plan_->torn_count; }

  // A clone of the device below under the same faults.
  absl::StatusOr<std::unique_ptr<BlockDevice>> Clone() const override;
  absl::Status Discard(uint64_t offset, uint64_t bytes) override;
  absl::Status CheckFile() const override { return device_->CheckFile(); }
  void Submit(absl::Span<IoRequest* const> batch) override;
  size_t Poll(absl::Span<IoRequest*> done) override;
  size_t Wait(absl::Span<IoRequest*> done) override;
  void Wake() override;
  const DeviceInfo& info() const override { return device_->info(); }

 private:
  // What a device and its clones have in common.
  struct Plan {
    struct Held {
      IoRequest* request = nullptr;
      FaultyDevice* device = nullptr;  // that it was submitted to
    };
    explicit Plan(uint64_t seed) : random(seed) {}

    std::atomic<uint64_t> failed_count = 0;
    std::atomic<uint64_t> flipped_count = 0;
    std::atomic<uint64_t> torn_count = 0;
    absl::Mutex mu;
    Failure failure ABSL_GUARDED_BY(mu);
    Predicate flip ABSL_GUARDED_BY(mu);
    Predicate tear ABSL_GUARDED_BY(mu);
    TornWrite outcome ABSL_GUARDED_BY(mu) = TornWrite::kReportsSuccess;
    Predicate hold ABSL_GUARDED_BY(mu);
    std::mt19937_64 random ABSL_GUARDED_BY(mu);
    // Over all devices, the first in front.
    std::deque<Held> held ABSL_GUARDED_BY(mu);
    std::deque<Held> released ABSL_GUARDED_BY(mu);  // for the threads of their devices to pass on
  };
  // A write on its way in parts, one for each page that is to arrive.
  struct Torn {
    IoRequest* write = nullptr;
    TornWrite outcome = TornWrite::kReportsSuccess;
    std::vector<iovec> pages;
    std::vector<IoRequest> parts;
    size_t parts_left = 0;
    int error = 0;  // of a part
  };

  FaultyDevice(std::unique_ptr<BlockDevice> device, std::shared_ptr<Plan> plan);
  // What becomes of a request: fails, is held, or goes to `passed`.
  void Sort(IoRequest* request, std::vector<IoRequest*>& passed)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(plan_->mu);
  // Gives the device below what is to reach it of these requests.
  void Pass(absl::Span<IoRequest* const> requests) ABSL_LOCKS_EXCLUDED(plan_->mu);
  bool MustTear(IoRequest& request) ABSL_EXCLUSIVE_LOCKS_REQUIRED(plan_->mu);
  // Chooses the pages that arrive.
  std::shared_ptr<Torn> Tear(IoRequest* write) ABSL_EXCLUSIVE_LOCKS_REQUIRED(plan_->mu);
  void FinishTorn(Torn& torn);
  // Requests that were released since the last call.
  std::vector<IoRequest*> TakeReleased() ABSL_LOCKS_EXCLUDED(plan_->mu);
  // Takes the parts of torn writes out of what the device below finished; returns how many other
  // requests are left, which come first then.
  size_t TakeParts(absl::Span<IoRequest*> done);
  void FlipBits(absl::Span<IoRequest* const> done) ABSL_LOCKS_EXCLUDED(plan_->mu);
  void FlipOneBit(const IoRequest& request) ABSL_EXCLUSIVE_LOCKS_REQUIRED(plan_->mu);
  void ReleaseUnderLock(size_t count) ABSL_EXCLUSIVE_LOCKS_REQUIRED(plan_->mu);

  const std::shared_ptr<Plan> plan_;  // of all clones, whichever lives longest
  // Set by Wake alone: a release also wakes the device below, but must not end a Wait.
  std::atomic<bool> woken_ = false;

  // Owned by the device's thread.
  IoRequestQueue failed_;
  IoRequestQueue torn_done_;
  // By part; each part keeps its write, and the last to come back ends it.
  absl::flat_hash_map<const IoRequest*, std::shared_ptr<Torn>> torn_;
  // Destroyed first: it waits for the parts.
  const std::unique_ptr<BlockDevice> device_;
};

}  // namespace terrace

#endif  // TERRACE_TESTS_SUPPORT_FAULTY_DEVICE_H_
