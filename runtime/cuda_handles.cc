#include "runtime/cuda_handles.h"

#include "absl/strings/str_cat.h"
#include "io/cuda_status.h"

namespace terrace {

absl::StatusOr<CudaBytes> AllocateCuda(size_t bytes, absl::string_view what) {
  if (bytes == 0) return CudaBytes();
  void* memory = nullptr;
  const cudaError_t error = cudaMalloc(&memory, bytes);
  if (error == cudaSuccess) return CudaBytes(static_cast<std::byte*>(memory));
  return CudaStatus(error, absl::StrCat(what, ": ", bytes, " bytes of device memory"));
}

absl::StatusOr<PinnedBytes> AllocatePinned(size_t bytes, absl::string_view what) {
  if (bytes == 0) return PinnedBytes();
  void* memory = nullptr;
  const cudaError_t error = cudaMallocHost(&memory, bytes);
  if (error == cudaSuccess) return PinnedBytes(static_cast<std::byte*>(memory));
  return CudaStatus(error, absl::StrCat(what, ": ", bytes, " bytes of pinned memory"));
}

absl::StatusOr<CudaStream> MakeCudaStream(absl::string_view what) {
  cudaStream_t stream = nullptr;
  const cudaError_t error = cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking);
  if (error == cudaSuccess) return CudaStream(stream);
  return CudaStatus(error, absl::StrCat(what, ": stream"));
}

absl::StatusOr<CudaEvent> MakeCudaEvent(absl::string_view what) {
  cudaEvent_t event = nullptr;
  const cudaError_t error = cudaEventCreateWithFlags(&event, cudaEventDisableTiming);
  if (error == cudaSuccess) return CudaEvent(event);
  return CudaStatus(error, absl::StrCat(what, ": event"));
}

}  // namespace terrace
