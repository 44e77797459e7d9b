#ifndef TERRACE_IO_CUDA_MEMORY_H_
#define TERRACE_IO_CUDA_MEMORY_H_

#include <cuda_runtime_api.h>

#include <cstddef>
#include <memory>
#include <string>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/synchronization/mutex.h"
#include "absl/types/span.h"
#include "io/copy_engine.h"
#include "io/copy_plan.h"
#include "io/cuda_copy_engine.h"

namespace terrace {

// Makes a device current for the calling thread while it lives. Private, as all of this file, for
// files that are built with CUDA only.
class CudaDeviceScope {
 public:
  explicit CudaDeviceScope(int device);
  ~CudaDeviceScope();
  CudaDeviceScope(const CudaDeviceScope&) = delete;
  CudaDeviceScope& operator=(const CudaDeviceScope&) = delete;

 private:
  int before_ = 0;
  bool changed_ = false;
};

// The memory pool of a device, the host memory that was pinned for it, and whether it was lost.
// Shared by a copy engine and what that gave out, of which each may be the last to go. Thread-safe.
class CudaMemory final : public std::enable_shared_from_this<CudaMemory> {
 public:
  // As MakeCudaCopyEngine.
  static absl::StatusOr<std::shared_ptr<CudaMemory>> Create(const CudaCopyOptions& options);
  ~CudaMemory();

  // As those of CopyEngine.
  absl::StatusOr<std::unique_ptr<DeviceMemory>> Allocate(size_t bytes) ABSL_LOCKS_EXCLUDED(mu_);
  absl::StatusOr<std::unique_ptr<PinnedMemory>> Pin(absl::Span<std::byte> memory)
      ABSL_LOCKS_EXCLUDED(mu_);

  // How each copy of a batch travels, by what is pinned and allocated now.
  std::vector<CopyPiece> Plan(absl::Span<const Copy> batch, CudaCopyMethod method) const
      ABSL_LOCKS_EXCLUDED(mu_);

  // CudaStatus, which also remembers the error of a device that is lost.
  absl::Status Check(cudaError_t error, absl::string_view what) ABSL_LOCKS_EXCLUDED(mu_);
  // That error, or OK.
  absl::Status lost() const ABSL_LOCKS_EXCLUDED(mu_);

  int device() const { return device_; }
  const std::string& name() const { return name_; }

 private:
  class Block;
  class PinnedRange;

  explicit CudaMemory(const CudaCopyOptions& options)
      : device_(options.device), capacity_bytes_(options.pool_bytes) {}
  absl::Status Open();
  // Takes bytes of the capacity; kResourceExhausted when it has not as many.
  absl::Status Reserve(size_t bytes) ABSL_LOCKS_EXCLUDED(mu_);
  void Free(std::byte* data, size_t bytes) ABSL_LOCKS_EXCLUDED(mu_);
  void Unpin(std::byte* begin) ABSL_LOCKS_EXCLUDED(mu_);

  const int device_;
  const size_t capacity_bytes_;
  // Constant after Create.
  std::string name_;
  size_t device_bytes_ = 0;
  cudaMemPool_t pool_ = nullptr;
  cudaStream_t stream_ = nullptr;  // the order of allocations

  mutable absl::Mutex mu_;
  size_t used_bytes_ ABSL_GUARDED_BY(mu_) = 0;
  MemoryRegions allocations_ ABSL_GUARDED_BY(mu_);
  MemoryRegions pinned_ ABSL_GUARDED_BY(mu_);
  absl::Status lost_ ABSL_GUARDED_BY(mu_);
};

}  // namespace terrace

#endif  // TERRACE_IO_CUDA_MEMORY_H_
