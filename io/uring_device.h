#ifndef TERRACE_IO_URING_DEVICE_H_
#define TERRACE_IO_URING_DEVICE_H_

#include <liburing.h>

#include <memory>
#include <vector>

#include "absl/status/statusor.h"
#include "io/block_device.h"
#include "io/device_file.h"
#include "io/unique_fd.h"

namespace terrace {

// The io_uring engine: whole batches go to the kernel in one system call, and the call that waits
// also submits. Opened by OpenFileDevice. The thread rules are BlockDevice's.
//
// Of the ring's modes it takes the first that the kernel grants: one issuer that runs completions
// itself when it asks for them (a clone has no such thread, so it starts with the next),
// completions run without interrupting the thread, and none of both. Polling modes are not used: a
// kernel submission thread takes a whole core from whoever computes, and polled completions need a
// driver set up for them and exclude Wake and kSync.
//
// Invariants: in_kernel_ <= depth; each request is in exactly one of finished_, queue_, the kernel
// (its entry prepared or submitted) or its owner's hands; the rings have room for depth + 1
// entries, so neither can overflow.
class UringDevice final : public BlockDevice {
 public:
  // `info` has everything but the engine. Takes `files`, those of its layout, over when it
  // succeeds. kUnavailable, with the call and the errno text, when the kernel or a container
  // forbids io_uring.
  static absl::StatusOr<std::unique_ptr<BlockDevice>> Create(std::vector<DeviceFile>& files,
                                                             DeviceInfo info);
  ~UringDevice() override;

  absl::Status RegisterBuffers(absl::Span<const iovec> buffers) override;
  absl::StatusOr<std::unique_ptr<BlockDevice>> Clone() const override;
  absl::Status Discard(uint64_t offset, uint64_t bytes) override;
  absl::Status CheckFile() const override { return CheckFiles(files_); }

  void Submit(absl::Span<IoRequest* const> batch) override;
  size_t Poll(absl::Span<IoRequest*> done) override;
  size_t Wait(absl::Span<IoRequest*> done) override;
  size_t SubmitAndWait(absl::Span<IoRequest* const> batch, absl::Span<IoRequest*> done) override;
  void Wake() override;
  const DeviceInfo& info() const override { return info_; }

 private:
  // Memory that the kernel has pinned; its index is that of the registration.
  struct PinnedRange {
    const std::byte* begin = nullptr;
    const std::byte* end = nullptr;
  };
  enum class Role : uint8_t { kOwner, kClone };

  UringDevice(UniqueFd wake_fd, DeviceInfo info, Role role);
  // Takes `files` over when it succeeds.
  static absl::StatusOr<std::unique_ptr<UringDevice>> Make(std::vector<DeviceFile>& files,
                                                           DeviceInfo info, Role role);

  // Binds the ring to the calling thread, the first time.
  void Enable();
  // Takes requests over and prepares what the depth allows. The last of it is left for the caller
  // to submit; a batch that finds the device idle starts going out here.
  void Accept(absl::Span<IoRequest* const> batch);
  // Prepares entries for at most `limit` queued requests until the depth is reached; true when the
  // limit left some that the depth allows.
  bool TopUp(size_t limit);
  void Prepare(IoRequest& request);
  void PrepareTransfer(const IoRequest& request, io_uring_sqe* entry);
  // How an entry names a file: its registered index, or its descriptor.
  int FileOf(size_t index) const {
    return fixed_files_ ? static_cast<int>(index) : files_[index].fd.get();
  }
  // The registration that all of this memory lies in, or -1.
  int PinnedIndex(const void* base, size_t bytes) const;
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
  std::vector<DeviceFile> files_;
  const UniqueFd wake_fd_;
  DeviceInfo info_;
  const Role role_;                  // the owner releases the locks on the files
  bool fixed_files_ = false;         // files_ are registered, with the same indices
  std::vector<PinnedRange> pinned_;  // constant after RegisterBuffers

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
