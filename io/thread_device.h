#ifndef TERRACE_IO_THREAD_DEVICE_H_
#define TERRACE_IO_THREAD_DEVICE_H_

#include <memory>
#include <thread>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "io/block_device.h"
#include "io/device_file.h"

namespace terrace {

// The engine for systems without io_uring: a pool of threads, each inside one blocking system call.
// Its depth is the number of threads. Opened by OpenFileDevice. The thread rules are BlockDevice's.
class ThreadDevice final : public BlockDevice {
 public:
  static constexpr size_t kMaxThreads = 16;

  // Starts the threads; `info` has everything but engine and depth, and the depth asked for. Takes
  // `files`, those of its layout, over when it succeeds. kUnavailable, with the errno text, when no
  // thread can be started; fewer than asked for are a smaller depth.
  static absl::StatusOr<std::unique_ptr<BlockDevice>> Create(std::vector<DeviceFile>& files,
                                                             DeviceInfo info);
  ~ThreadDevice() override;

  absl::Status Discard(uint64_t offset, uint64_t bytes) override;
  absl::Status CheckFile() const override { return CheckFiles(files_); }
  void Submit(absl::Span<IoRequest* const> batch) override ABSL_LOCKS_EXCLUDED(mu_);
  size_t Poll(absl::Span<IoRequest*> done) override ABSL_LOCKS_EXCLUDED(mu_);
  size_t Wait(absl::Span<IoRequest*> done) override ABSL_LOCKS_EXCLUDED(mu_);
  void Wake() override ABSL_LOCKS_EXCLUDED(mu_);
  const DeviceInfo& info() const override { return info_; }

 private:
  ThreadDevice(std::vector<DeviceFile> files, DeviceInfo info);
  // Returns 0 or the errno that kept it from starting a single thread.
  int StartThreads();
  // What each thread of the pool does until the device is destroyed and nothing is left to do.
  void Work() ABSL_LOCKS_EXCLUDED(mu_);
  // Carries a request through all its system calls.
  void Carry(IoRequest& request) const;
  int64_t Transfer(const IoRequest& request) const;
  size_t TakeFinished(absl::Span<IoRequest*> done) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);

  // Constant after Create.
  std::vector<DeviceFile> files_;
  DeviceInfo info_;
  std::vector<std::thread> workers_;

  absl::Mutex mu_;
  absl::CondVar work_to_do_;  // signalled once for each new element of pending_
  absl::CondVar finished_or_woken_;
  IoRequestQueue pending_ ABSL_GUARDED_BY(mu_);
  IoRequestQueue finished_ ABSL_GUARDED_BY(mu_);
  bool woken_ ABSL_GUARDED_BY(mu_) = false;
  bool stopping_ ABSL_GUARDED_BY(mu_) = false;
};

}  // namespace terrace

#endif  // TERRACE_IO_THREAD_DEVICE_H_
