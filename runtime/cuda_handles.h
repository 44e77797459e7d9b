#ifndef TERRACE_RUNTIME_CUDA_HANDLES_H_
#define TERRACE_RUNTIME_CUDA_HANDLES_H_

#include <cuda_runtime_api.h>

#include <cstddef>
#include <memory>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace terrace {

// Owners of what the CUDA runtime hands out, which give it back when they go. Private, for files
// that are built with CUDA only. What is made belongs to the calling thread's current device.

struct FreeCuda {
  void operator()(std::byte* memory) const { (void)cudaFree(memory); }
};
struct FreePinned {
  void operator()(std::byte* memory) const { (void)cudaFreeHost(memory); }
};
struct DestroyStream {
  void operator()(cudaStream_t stream) const { (void)cudaStreamDestroy(stream); }
};
struct DestroyEvent {
  void operator()(cudaEvent_t event) const { (void)cudaEventDestroy(event); }
};

// Device memory, of which only the device may follow the address.
using CudaBytes = std::unique_ptr<std::byte, FreeCuda>;
// Host memory that the device reaches by itself.
using PinnedBytes = std::unique_ptr<std::byte, FreePinned>;
using CudaStream = std::unique_ptr<CUstream_st, DestroyStream>;
using CudaEvent = std::unique_ptr<CUevent_st, DestroyEvent>;

// Memory aligned to 256 bytes and not initialised; null for 0 bytes. Errors as those of CudaStatus,
// with `what` the memory is for and its size.
absl::StatusOr<CudaBytes> AllocateCuda(size_t bytes, absl::string_view what);
absl::StatusOr<PinnedBytes> AllocatePinned(size_t bytes, absl::string_view what);
// A stream that does not wait for the default stream.
absl::StatusOr<CudaStream> MakeCudaStream(absl::string_view what);
// An event without a time.
absl::StatusOr<CudaEvent> MakeCudaEvent(absl::string_view what);

}  // namespace terrace

#endif  // TERRACE_RUNTIME_CUDA_HANDLES_H_
