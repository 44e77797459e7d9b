#include "runtime/cuda_queue.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "io/cuda_status.h"

namespace terrace {

absl::Status CudaArray::Reserve(size_t bytes) {
  if (bytes <= bytes_) return absl::OkStatus();
  // What grows with a context grows seldom.
  bytes = std::max(bytes, bytes_ + bytes_ / 2);
  // First, so that both never are there at once.
  device_.reset();
  pinned_.reset();
  bytes_ = 0;
  if (where_ == Where::kDevice) {
    auto memory = AllocateCuda(bytes, "lookups on a device");
    if (!memory.ok()) return memory.status();
    device_ = *std::move(memory);
  } else {
    auto memory = AllocatePinned(bytes, "lookups on a device");
    if (!memory.ok()) return memory.status();
    pinned_ = *std::move(memory);
  }
  bytes_ = bytes;
  return absl::OkStatus();
}

absl::StatusOr<std::unique_ptr<CudaQueue>> CudaQueue::Create(int device, absl::string_view what) {
  std::unique_ptr<CudaQueue> queue(new CudaQueue(device, what));
  int devices = 0;
  absl::Status status = queue->Check(cudaGetDeviceCount(&devices));
  if (!status.ok()) return status;
  if (devices == 0) return absl::UnavailableError(absl::StrCat(what, ": no CUDA device"));
  if (device < 0 || device >= devices) {
    return absl::InvalidArgumentError(
        absl::StrCat(what, ": device ", device, " of ", devices, " CUDA devices"));
  }
  status = queue->Enter();
  if (!status.ok()) return status;
  auto stream = MakeCudaStream(what);
  if (!stream.ok()) return stream.status();
  queue->stream_ = *std::move(stream);
  for (CudaEvent* const event : {&queue->start_, &queue->stop_}) {
    cudaEvent_t made = nullptr;
    status = queue->Check(cudaEventCreate(&made));
    if (!status.ok()) return status;
    event->reset(made);
  }
  return queue;
}

absl::Status CudaQueue::Enter() const { return Check(cudaSetDevice(device_)); }

absl::Status CudaQueue::Finish() {
  if (absl::Status status = Check(cudaStreamSynchronize(stream())); !status.ok()) return status;
  float milliseconds = 0;
  if (absl::Status status = Check(cudaEventElapsedTime(&milliseconds, start_.get(), stop_.get()));
      !status.ok()) {
    return status;
  }
  seconds_ = double{milliseconds} / 1000;
  return absl::OkStatus();
}

absl::Status CudaQueue::Copy(void* to, const void* from, size_t bytes) const {
  return Check(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDefault, stream()));
}

absl::Status CudaQueue::Check(cudaError_t error) const { return CudaStatus(error, what_); }

}  // namespace terrace
