#ifndef TERRACE_RUNTIME_CUDA_QUEUE_H_
#define TERRACE_RUNTIME_CUDA_QUEUE_H_

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "runtime/cuda_handles.h"

namespace terrace {

// Memory that grows as it is asked for, of the device that is current or, pinned, of the host. What
// was in it is lost when it grows. Private to files built with CUDA. Thread-compatible.
class CudaArray {
 public:
  enum class Where : uint8_t { kDevice, kPinnedHost };
  explicit CudaArray(Where where) : where_(where) {}

  // Makes it at least so large: kResourceExhausted where memory does not suffice; then it is empty.
  absl::Status Reserve(size_t bytes);
  // Aligned to 256 bytes.
  template <typename T = std::byte>
  T* data() const {
    return reinterpret_cast<T*>(where_ == Where::kDevice ? device_.get() : pinned_.get());
  }

 private:
  const Where where_;
  CudaBytes device_;  // one of these
  PinnedBytes pinned_;
  size_t bytes_ = 0;
};

// One stream of a device, and how long what it did took. Private to files built with CUDA.
// Thread-compatible.
class CudaQueue {
 public:
  // kUnavailable where no device answers, kInvalidArgument for one that there is not; `what` begins
  // the messages of all errors.
  static absl::StatusOr<std::unique_ptr<CudaQueue>> Create(int device, absl::string_view what);

  // Makes the device current for the calling thread, which goes before anything else of a call.
  absl::Status Enter() const;
  // Between these, what is put into the stream is timed.
  absl::Status Start() { return Check(cudaEventRecord(start_.get(), stream())); }
  absl::Status Stop() { return Check(cudaEventRecord(stop_.get(), stream())); }
  // Waits for the stream.
  absl::Status Finish();
  // Between the last Start and Stop, once Finish has returned.
  double seconds() const { return seconds_; }

  absl::Status Copy(void* to, const void* from, size_t bytes) const;
  absl::Status Check(cudaError_t error) const;
  cudaStream_t stream() const { return stream_.get(); }

 private:
  CudaQueue(int device, absl::string_view what) : device_(device), what_(what) {}

  const int device_;
  const std::string what_;
  CudaStream stream_;
  CudaEvent start_;
  CudaEvent stop_;
  double seconds_ = 0;
};

}  // namespace terrace

#endif  // TERRACE_RUNTIME_CUDA_QUEUE_H_
