#ifndef TERRACE_IO_URING_DEVICE_H_
#define TERRACE_IO_URING_DEVICE_H_

#include <liburing.h>

#include <memory>

#include "absl/status/statusor.h"
#include "io/block_device.h"
#include "io/unique_fd.h"

namespace terrace {

// The io_uring engine: whole batches go to the kernel in one system call, and the call that waits
// also submits. Opened by OpenFileDevice. The thread rules are BlockDevice's.
//
// Invariants: in_kernel_ <= depth; each request is in exactly one of finished_, queue_, the kernel
// (its entry prepared or submitted) or its owner's hands; the rings have room for depth + 1
// entries, so neither can overflow.
class UringDevice final : public BlockDevice {
 public:
  // `info` has everything but the engine. Takes `fd` over when it succeeds. kUnavailable, with the
  // call and the errno text, when the kernel or a container forbids io_uring.
  static absl::StatusOr<std::unique_ptr<BlockDevice>> Create(UniqueFd& fd, DeviceInfo info);
  ~UringDevice() override;

  void Submit(absl::Span<IoRequest* const> batch) override;
  size_t Poll(absl::Span<IoRequest*> done) override;
  size_t Wait(absl::Span<IoRequest*> done) override;
  void Wake() override;
  const DeviceInfo& info() const override { return info_; }

 private:
  UringDevice(UniqueFd wake_fd, DeviceInfo info);

  // Binds the ring to the calling thread, the first time.
  void Enable();
  // Prepares entries for queued requests until the depth is reached.
  void TopUp();
  void Prepare(IoRequest& request);
  void PrepareTransfer(const IoRequest& request, io_uring_sqe* entry);
  // Keeps a poll on the eventfd in the kernel, so that Wake ends a wait.
  void ArmWake();
  // Submits every prepared entry; what the kernel has no room for goes with a later call.
  void Flush();
  // As Flush, and waits for a completion. May return early.
  void FlushAndWait();
  // Moves completions to `done`, and requests that must go on back into the ring.
  size_t Reap(absl::Span<IoRequest*> done);
  // Digests one completion; returns its request when that is finished, else nullptr.
  IoRequest* Digest(const io_uring_cqe& completion);

  // Constant after Create. The eventfd is also written by Wake, from any thread.
  UniqueFd fd_;
  const UniqueFd wake_fd_;
  DeviceInfo info_;
  bool fixed_file_ = false;  // fd_ is registered as file 0 of the ring

  // Owned by the device's thread.
  io_uring ring_;
  bool enabled_ = false;
  bool wake_armed_ = false;
  bool woken_ = false;  // a Wake that no Wait has answered yet
  size_t in_kernel_ = 0;
  IoRequestQueue queue_;     // beyond the depth
  IoRequestQueue finished_;  // by Submit, without the kernel
};

}  // namespace terrace

#endif  // TERRACE_IO_URING_DEVICE_H_
