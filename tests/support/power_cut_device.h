#ifndef TERRACE_TESTS_SUPPORT_POWER_CUT_DEVICE_H_
#define TERRACE_TESTS_SUPPORT_POWER_CUT_DEVICE_H_

#include <cstddef>
#include <cstdint>
#include <deque>
#include <memory>
#include <random>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "io/block_device.h"

namespace terrace {

struct PowerCutDiskOptions {
  uint64_t size_bytes = 0;  // a positive multiple of kPageBytes
  uint64_t seed = 0;        // of the order in which requests complete
};

// A disk in memory with a volatile write cache, whose power a test can cut. What it holds outlives
// the devices that are open on it. Thread-safe.
//
// A write is in the current image once it completes, and in the durable one, which is what a power
// cut leaves, for certain only once a sync that was submitted after that has completed. Of all
// other writes, those in flight included, a cut keeps what its seed says: nothing, all, whole
// writes or single sectors, few or many. Of two writes to one sector either may be the one that is
// left. The cache holds as much as the disk; the oldest writes beyond that become durable by
// themselves.
class PowerCutDisk {
 public:
  static constexpr size_t kSectorBytes = 512;  // what a disk writes whole or not at all

  explicit PowerCutDisk(const PowerCutDiskOptions& options);
  ~PowerCutDisk();

  // kNothing: only the process dies, and the disk carries out what it was given.
  enum class Loss : uint8_t { kWhatIsNotDurable, kNothing };

  // The power fails now: requests in flight and later ones come back with EIO, on every device,
  // until Restore. Nothing happens when it is off already.
  void Cut(uint64_t seed, Loss loss = Loss::kWhatIsNotDurable) ABSL_LOCKS_EXCLUDED(mu_);
  // Cuts it as soon as `count` more requests (reads, writes, syncs) have completed; the last of
  // them does so well. REQUIRES: count > 0.
  void CutAfter(uint64_t count, uint64_t seed, Loss loss = Loss::kWhatIsNotDurable)
      ABSL_LOCKS_EXCLUDED(mu_);
  // Power returns, and with it the durable image as the current one. A cut that was to come is
  // called off. REQUIRES: off().
  void Restore() ABSL_LOCKS_EXCLUDED(mu_);

  bool off() const ABSL_LOCKS_EXCLUDED(mu_);
  uint64_t size_bytes() const { return size_bytes_; }
  // Requests that completed while the power was on, so far.
  uint64_t completed_count() const ABSL_LOCKS_EXCLUDED(mu_);
  // Copies of both images.
  std::vector<std::byte> current() const ABSL_LOCKS_EXCLUDED(mu_);
  std::vector<std::byte> durable() const ABSL_LOCKS_EXCLUDED(mu_);

 private:
  friend class PowerCutDevice;

  struct Pending {
    IoRequest* request = nullptr;
    uint64_t covered = 0;  // of a sync: the writes before this number are to be durable
  };
  // What one device has in the disk.
  struct Port {
    std::vector<Pending> pending;
    IoRequestQueue finished;
    bool woken = false;
  };
  struct Write {
    uint64_t offset = 0;
    std::vector<std::byte> bytes;
  };

  void Attach(Port& port) ABSL_LOCKS_EXCLUDED(mu_);
  // Carries out what is still in flight.
  void Detach(Port& port) ABSL_LOCKS_EXCLUDED(mu_);
  // Takes over a request, or one that needs no transfer.
  void Submit(Port& port, IoRequest& request, bool finished) ABSL_LOCKS_EXCLUDED(mu_);
  size_t Poll(Port& port, absl::Span<IoRequest*> done) ABSL_LOCKS_EXCLUDED(mu_);
  // Blocks until the port has something to hand back or was woken.
  size_t Wait(Port& port, absl::Span<IoRequest*> done) ABSL_LOCKS_EXCLUDED(mu_);
  void Wake(Port& port) ABSL_LOCKS_EXCLUDED(mu_);
  // False when there is no power.
  bool Discard(uint64_t offset, uint64_t bytes) ABSL_LOCKS_EXCLUDED(mu_);

  // Completes a random part of what is pending, at least one, and hands back what fits.
  size_t Complete(Port& port, absl::Span<IoRequest*> done) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void Carry(const Pending& pending) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  static Write Gather(const IoRequest& request);
  void Cache(Write write) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  // Makes the oldest cached write durable.
  void DrainOne() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void CutUnderLock(uint64_t seed, Loss loss) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  // Makes durable what the seed lets through of these.
  void Damage(const std::vector<Write>& writes, uint64_t seed, Loss loss)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);

  const uint64_t size_bytes_;

  mutable absl::Mutex mu_;  // also of every port
  std::vector<std::byte> current_ ABSL_GUARDED_BY(mu_);
  std::vector<std::byte> durable_ ABSL_GUARDED_BY(mu_);
  std::deque<Write> cached_ ABSL_GUARDED_BY(mu_);  // completed but not durable, in that order
  uint64_t cached_bytes_ ABSL_GUARDED_BY(mu_) = 0;
  uint64_t drained_count_ ABSL_GUARDED_BY(mu_) = 0;  // the number of cached_.front()
  std::vector<Port*> ports_ ABSL_GUARDED_BY(mu_);
  std::mt19937_64 random_ ABSL_GUARDED_BY(mu_);
  bool off_ ABSL_GUARDED_BY(mu_) = false;
  uint64_t completed_count_ ABSL_GUARDED_BY(mu_) = 0;
  uint64_t cut_in_ ABSL_GUARDED_BY(mu_) = 0;  // requests to complete before the cut; 0 for none
  uint64_t cut_seed_ ABSL_GUARDED_BY(mu_) = 0;
  Loss cut_loss_ ABSL_GUARDED_BY(mu_) = Loss::kWhatIsNotDurable;
};

// A device on such a disk: it completes requests in a random order, a random number at a time.
class PowerCutDevice final : public BlockDevice {
 public:
  // The disk is shared with the test, which goes on with it when the device is gone.
  explicit PowerCutDevice(std::shared_ptr<PowerCutDisk> disk, size_t depth = 64);
  ~PowerCutDevice() override;

  absl::StatusOr<std::unique_ptr<BlockDevice>> Clone() const override;
  // Cached as a write of zeros is. kDataLoss while the power is off.
  absl::Status Discard(uint64_t offset, uint64_t bytes) override;
  void Submit(absl::Span<IoRequest* const> batch) override;
  size_t Poll(absl::Span<IoRequest*> done) override;
  size_t Wait(absl::Span<IoRequest*> done) override;
  void Wake() override;
  const DeviceInfo& info() const override { return info_; }

 private:
  const std::shared_ptr<PowerCutDisk> disk_;
  DeviceInfo info_;  // constant after construction
  PowerCutDisk::Port port_;
};

}  // namespace terrace

#endif  // TERRACE_TESTS_SUPPORT_POWER_CUT_DEVICE_H_
