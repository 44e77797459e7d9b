#ifndef TERRACE_IO_MEMORY_DEVICE_H_
#define TERRACE_IO_MEMORY_DEVICE_H_

#include <cstdint>
#include <functional>
#include <memory>

#include "absl/base/thread_annotations.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "io/aligned_buffer.h"
#include "io/block_device.h"

namespace terrace {

struct MemoryDeviceOptions {
  uint64_t size_bytes = 0;  // a positive multiple of kPageBytes
  size_t depth = 64;        // 1 to 4096
  // Plays the kernel in tests: called before each transfer of at most `bytes` (0 for a sync), it
  // returns how many of them to move (fewer is a short transfer) or -errno. Empty means every
  // transfer succeeds. Runs on the thread of the device, or of the clone, that it is for.
  std::function<int64_t(const IoRequest& request, uint64_t bytes)> transfer_hook;
};

// A BlockDevice in plain memory: the reference for the conformance suite, a disk that never hides
// CPU costs in benchmarks, and the ground on which tests inject faults. Transfers happen inside
// Poll and Wait, in submission order; those still queued when the device is destroyed never happen.
class MemoryDevice final : public BlockDevice {
 public:
  // kInvalidArgument for a bad size or depth; kResourceExhausted without memory.
  static absl::StatusOr<std::unique_ptr<MemoryDevice>> Create(MemoryDeviceOptions options);

  absl::StatusOr<std::unique_ptr<BlockDevice>> Clone() const override;
  absl::Status Discard(uint64_t offset, uint64_t bytes) override;
  void Submit(absl::Span<IoRequest* const> batch) override;
  size_t Poll(absl::Span<IoRequest*> done) override;
  size_t Wait(absl::Span<IoRequest*> done) override ABSL_LOCKS_EXCLUDED(wake_mu_);
  void Wake() override ABSL_LOCKS_EXCLUDED(wake_mu_);
  const DeviceInfo& info() const override { return info_; }

  // The bytes on the device. Only while nothing is in flight.
  absl::Span<std::byte> bytes() const { return memory_->span(); }

 private:
  MemoryDevice(MemoryDeviceOptions options, std::shared_ptr<const AlignedBuffer> memory);
  // Carries a request through all its transfers.
  void Carry(IoRequest& request);
  // One transfer; returns what the kernel would.
  int64_t Transfer(const IoRequest& request);

  // Constant after construction.
  const MemoryDeviceOptions options_;
  const std::shared_ptr<const AlignedBuffer> memory_;  // of all clones
  DeviceInfo info_;

  // Owned by the device's thread.
  IoRequestQueue queue_;
  IoRequestQueue finished_;  // by Submit, without a transfer

  absl::Mutex wake_mu_;
  bool woken_ ABSL_GUARDED_BY(wake_mu_) = false;
};

}  // namespace terrace

#endif  // TERRACE_IO_MEMORY_DEVICE_H_
