#include "io/thread_device.h"

#include <sys/uio.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <system_error>
#include <utility>

#include "absl/strings/str_cat.h"
#include "io/check.h"

namespace terrace {

absl::StatusOr<std::unique_ptr<BlockDevice>> ThreadDevice::Create(std::vector<DeviceFile>& files,
                                                                  DeviceInfo info) {
  std::unique_ptr<ThreadDevice> device(new ThreadDevice(std::move(files), std::move(info)));
  if (const int error = device->StartThreads(); error != 0) {
    files = std::move(device->files_);
    return absl::UnavailableError(
        absl::StrCat("cannot start a thread: ", std::generic_category().message(error)));
  }
  return device;
}

ThreadDevice::ThreadDevice(std::vector<DeviceFile> files, DeviceInfo info)
    : files_(std::move(files)), info_(std::move(info)) {}

int ThreadDevice::StartThreads() {
  const size_t wanted = std::min(info_.depth, kMaxThreads);
  int error = 0;
  // The standard library reports a refused thread by an exception, which must not leave this file.
  try {
    while (workers_.size() < wanted) workers_.emplace_back([this] { Work(); });
  } catch (const std::system_error& failure) {
    error = failure.code().value();
  }
  info_.engine = IoEngine::kThreads;
  info_.depth = workers_.size();
  info_.engine_setup = absl::StrCat(workers_.size(), " threads");
  return workers_.empty() ? error : 0;
}

ThreadDevice::~ThreadDevice() {
  {
    absl::MutexLock lock(&mu_);
    stopping_ = true;
    work_to_do_.SignalAll();
  }
  for (std::thread& worker : workers_) worker.join();
}

absl::Status ThreadDevice::Discard(uint64_t offset, uint64_t bytes) {
  absl::Status status = CheckRange(offset, bytes);
  return status.ok() ? DiscardRange(files_, info_.layout, offset, bytes) : status;
}

void ThreadDevice::Submit(absl::Span<IoRequest* const> batch) {
  absl::MutexLock lock(&mu_);
  for (IoRequest* request : batch) {
    if (Admit(*request)) {
      pending_.PushBack(request);
      work_to_do_.Signal();
    } else {
      finished_.PushBack(request);
    }
  }
}

size_t ThreadDevice::Poll(absl::Span<IoRequest*> done) {
  absl::MutexLock lock(&mu_);
  return TakeFinished(done);
}

size_t ThreadDevice::Wait(absl::Span<IoRequest*> done) {
  TERRACE_CHECK(!done.empty());
  absl::MutexLock lock(&mu_);
  while (finished_.empty() && !woken_) finished_or_woken_.Wait(&mu_);
  woken_ = false;
  return TakeFinished(done);
}

void ThreadDevice::Wake() {
  absl::MutexLock lock(&mu_);
  woken_ = true;
  finished_or_woken_.Signal();
}

size_t ThreadDevice::TakeFinished(absl::Span<IoRequest*> done) {
  size_t count = 0;
  while (count < done.size() && !finished_.empty()) done[count++] = finished_.PopFront();
  return count;
}

void ThreadDevice::Work() {
  for (;;) {
    IoRequest* request = nullptr;
    {
      absl::MutexLock lock(&mu_);
      while (pending_.empty() && !stopping_) work_to_do_.Wait(&mu_);
      if (pending_.empty()) return;
      request = pending_.PopFront();
    }
    Carry(*request);
    absl::MutexLock lock(&mu_);
    finished_.PushBack(request);
    finished_or_woken_.Signal();
  }
}

void ThreadDevice::Carry(IoRequest& request) const {
  while (Advance(request, Transfer(request), files_.size()) == IoStep::kResume) {
  }
}

int64_t ThreadDevice::Transfer(const IoRequest& request) const {
  ssize_t result = 0;
  if (request.op == IoOp::kSync) {
    result = ::fdatasync(files_[request.synced_files].fd.get());
  } else {
    const StripeLayout::Extent place = info_.layout.Locate(request.offset + request.transferred);
    const IoTransfer transfer = NextTransfer(request, place.bytes);
    const absl::Span<const iovec> vectors =
        transfer.vectors.empty() ? absl::MakeConstSpan(&transfer.single, 1) : transfer.vectors;
    const int count = static_cast<int>(vectors.size());
    const off_t offset = static_cast<off_t>(place.offset);
    const int fd = files_[place.file].fd.get();
    result = request.op == IoOp::kRead ? ::preadv(fd, vectors.data(), count, offset)
                                       : ::pwritev(fd, vectors.data(), count, offset);
  }
  return result < 0 ? -errno : result;
}

}  // namespace terrace
