#ifndef TERRACE_IO_IO_SCHEDULER_H_
#define TERRACE_IO_IO_SCHEDULER_H_

#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "absl/types/span.h"
#include "io/block_device.h"
#include "io/device_share.h"
#include "io/io_timeline.h"

namespace terrace {

// Who waits for a transfer, most urgent first.
enum class IoClass : uint8_t {
  kDemand,    // a decode step is waiting
  kPrefetch,  // nobody waits yet
  kOffload,   // write-back and housekeeping
};
inline constexpr size_t kIoClassCount = 3;

struct IoSchedulerOptions {
  // Requests of each class inside the device at once, 1 or more. Demand may use the whole depth of
  // the device; the caps of the others leave it room among their floods. All classes together never
  // exceed the depth of the device, so that nothing urgent queues inside it behind the rest.
  std::array<size_t, kIoClassCount> class_depth = {64, 32, 8};
  // Bytes of each class inside the device at once. A larger request goes when it is alone there. A
  // disk serves a read behind all bytes of the writes that it took before, so it is bytes and not
  // requests that demand waits for.
  std::array<uint64_t, kIoClassCount> class_bytes = {UINT64_MAX, uint64_t{16} << 20,
                                                     uint64_t{4} << 20};
  // A class with nothing inside the device comes first after this many requests of more urgent
  // classes went before its own: whatever the load, every class gets on.
  size_t patience = 64;
  // Requests queued ahead of the device, over all classes.
  size_t queue_capacity = 1024;
  // With other schedulers on the same disk: their common depth, and which of them comes first
  // within a class, the smallest rank does. Shared by all of them. Null: the disk is this one's.
  std::shared_ptr<DeviceShare> share = {};
  uint8_t share_rank = 0;
  // Where requests inside the device are recorded, under this name; shared by all who record. Null:
  // nowhere.
  std::shared_ptr<Timeline> timeline = {};
  std::string timeline_name = "NVMe";
};

struct IoSchedulerStats {
  std::array<uint64_t, kIoClassCount> submitted = {};  // requests
  uint64_t read_bytes = 0;  // transferred by the device, successful or not
  uint64_t written_bytes = 0;
};

// Shares one BlockDevice among threads. Its own thread owns the device: it takes queued requests,
// most urgent class first, keeps the device filled up to the depths and bytes of the classes, and
// hands finished requests to the completion handler in batches. The device's queue never drains
// while requests of an allowed class wait. Inside a class the batches take turns, so that a small
// one need not wait for all of a large one; a batch by itself is first-in first-out.
//
// Thread-safe.
class IoScheduler {
 public:
  // Runs on the I/O thread with no lock held; requests in `done` are the submitter's again. It may
  // call Submit. It must not block on other requests.
  using CompletionHandler = std::function<void(absl::Span<IoRequest* const> done)>;

  // Takes over `device`. REQUIRES: nothing in flight on it; every class depth is positive.
  IoScheduler(std::unique_ptr<BlockDevice> device, const IoSchedulerOptions& options,
              CompletionHandler handler);
  // Waits for everything queued and in flight; the handler sees all of it. REQUIRES: no other
  // thread submits any more.
  ~IoScheduler();

  // Queues a whole batch or none of it: kResourceExhausted when it does not fit. See IoRequest for
  // who owns what. Never blocks on I/O and never runs the handler.
  absl::Status Submit(IoClass io_class, absl::Span<IoRequest* const> batch)
      ABSL_LOCKS_EXCLUDED(mu_);

  // Moves a request that is still queued to a more urgent class; does nothing when it already
  // reached the device or came back. REQUIRES: `request` was submitted to this scheduler, and to no
  // other device or scheduler since.
  void Raise(IoRequest* request, IoClass io_class) ABSL_LOCKS_EXCLUDED(mu_);

  IoSchedulerStats Stats() const ABSL_LOCKS_EXCLUDED(mu_);
  const BlockDevice& device() const { return *device_; }

 private:
  // The I/O thread.
  void Run() ABSL_LOCKS_EXCLUDED(mu_);
  // The requests of one class that wait. Batches take turns in a fixed number of lanes, so that
  // nothing is allocated; beyond that many batches, some share a lane and so a turn.
  class ClassQueue {
   public:
    static constexpr size_t kLanes = 16;

    bool empty() const { return size_ == 0; }
    // The lane that the next batch should use.
    size_t NextLane() { return next_lane_++ % kLanes; }
    void PushBack(size_t lane, IoRequest* request);
    void Remove(size_t lane, IoRequest* request);
    const IoRequest* Front() const;  // whose turn it is; REQUIRES: not empty
    IoRequest* PopFront();

   private:
    size_t TurnLane() const;  // the turn of the next request; REQUIRES: not empty

    std::array<IoRequestQueue, kLanes> lanes_;
    size_t turn_ = 0;
    size_t next_lane_ = 0;
    size_t size_ = 0;
  };

  // Moves what the limits allow from the queues into `batch`, which it empties first.
  void TakeRunnable(std::vector<IoRequest*>& batch) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void CountDone(absl::Span<IoRequest* const> done) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  // The class whose turn it is; nullopt when none may send a request to the device.
  std::optional<size_t> NextClass() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  // The most urgent class that may send one, whosever turn it is.
  std::optional<size_t> MostUrgent() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  // A request of this class goes to the device, past those of the others.
  void CountOvertaken(size_t io_class) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  // Whether the first waiting request of this class may go to the device.
  bool MayRun(size_t io_class) const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  // Whether the I/O thread sleeps over a request of this class that it could run. Then the caller
  // must Wake the device once it has released `mu_`; it is asked once only.
  bool ClaimWake(size_t io_class) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);

  // Constant after construction.
  const std::unique_ptr<BlockDevice> device_;
  const IoSchedulerOptions options_;
  const CompletionHandler handler_;
  DeviceShare::Member* const member_;  // of options_.share; null without one
  const IoTimeline record_;

  mutable absl::Mutex mu_;
  struct InDevice {
    size_t requests = 0;
    uint64_t bytes = 0;
  };
  std::array<ClassQueue, kIoClassCount> queues_ ABSL_GUARDED_BY(mu_);
  std::array<InDevice, kIoClassCount> in_device_ ABSL_GUARDED_BY(mu_);
  // Requests that went before those of this class while it had none inside the device.
  std::array<size_t, kIoClassCount> overtaken_ ABSL_GUARDED_BY(mu_) = {};
  size_t queued_ ABSL_GUARDED_BY(mu_) = 0;           // over all classes
  size_t total_in_device_ ABSL_GUARDED_BY(mu_) = 0;  // over all classes
  bool stopping_ ABSL_GUARDED_BY(mu_) = false;
  // The I/O thread is, or is about to be, inside device_->Wait, and nobody has woken it yet.
  bool waiting_ ABSL_GUARDED_BY(mu_) = false;
  IoSchedulerStats stats_ ABSL_GUARDED_BY(mu_);

  std::thread thread_;  // last, so that it starts after everything above exists
};

}  // namespace terrace

#endif  // TERRACE_IO_IO_SCHEDULER_H_
