#ifndef TERRACE_RUNTIME_CUDA_BLAS_H_
#define TERRACE_RUNTIME_CUDA_BLAS_H_

#include <cuda_runtime_api.h>

#include <cstddef>
#include <memory>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace terrace {

// Rows in device memory: [count, width], each `stride` elements after the one before.
struct CudaRows {
  const float* data = nullptr;
  size_t count = 0;
  size_t width = 0;
  size_t stride = 0;
};

// cuBLAS, which is looked for when it is first needed, so that programs start without it. Private,
// for files that are built with CUDA only. Thread-compatible.
class CudaBlas {
 public:
  // Everything runs on `stream`, which outlives this, and on the calling thread's current device.
  // kUnavailable naming the library where it is not found, or where no device answers;
  // kResourceExhausted where memory does not suffice.
  static absl::StatusOr<std::unique_ptr<CudaBlas>> Create(cudaStream_t stream);
  CudaBlas(const CudaBlas&) = delete;
  CudaBlas& operator=(const CudaBlas&) = delete;
  ~CudaBlas();

  // Starts out = a * b^T, for a [m, k], b [n, k] and out [m, n] without gaps. Everything is fp32,
  // products and sums too: no tensor core rounds them. Equal calls have equal results. REQUIRES:
  // sizes below 2^31.
  absl::Status MultiplyTransposed(CudaRows a, CudaRows b, float* out);

 private:
  explicit CudaBlas(void* handle) : handle_(handle) {}

  void* const handle_;  // a cublasHandle_t
};

}  // namespace terrace

#endif  // TERRACE_RUNTIME_CUDA_BLAS_H_
