#ifndef TERRACE_IO_CUDA_BATCH_H_
#define TERRACE_IO_CUDA_BATCH_H_

#include <cuda_runtime_api.h>

#include <cstddef>
#include <optional>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/container/inlined_vector.h"
#include "absl/synchronization/mutex.h"
#include "io/copy_plan.h"
#include "io/copy_ranges.h"

namespace terrace {

// Events to be used again. Private, as all of this file, for files that are built with CUDA only.
// Thread-safe; the device is current where it is called.
class CudaEventPool {
 public:
  ~CudaEventPool() {
    for (cudaEvent_t event : idle_) static_cast<void>(cudaEventDestroy(event));
  }

  cudaError_t Take(cudaEvent_t& event) ABSL_LOCKS_EXCLUDED(mu_) {
    {
      absl::MutexLock lock(&mu_);
      if (!idle_.empty()) {
        event = idle_.back();
        idle_.pop_back();
        return cudaSuccess;
      }
    }
    return cudaEventCreateWithFlags(&event, cudaEventDisableTiming | cudaEventBlockingSync);
  }
  void Give(cudaEvent_t event) ABSL_LOCKS_EXCLUDED(mu_) {
    absl::MutexLock lock(&mu_);
    idle_.push_back(event);
  }

 private:
  absl::Mutex mu_;
  std::vector<cudaEvent_t> idle_ ABSL_GUARDED_BY(mu_);
};

// A submitted batch: what it has on each stream. Shared by the list of what is under way and by
// those who wait for it, because its events serve others when it goes. The copies belong to whoever
// submits, and nothing else changes once it is submitted.
struct CudaBatch {
  struct Part {
    size_t stream = 0;
    cudaEvent_t event = nullptr;  // its end
    std::vector<CopyPiece> pieces;
    std::optional<CopyRanges> ranges;  // of the pieces, once somebody wanted to know

    const CopyRanges& Ranges() {
      if (ranges) return *ranges;
      ranges.emplace();
      for (const CopyPiece& piece : pieces) {
        for (const Copy& copy : piece.copies) ranges->Add(copy);
      }
      ranges->Seal();
      return *ranges;
    }
  };

  explicit CudaBatch(CudaEventPool& pool) : events(pool) {}
  ~CudaBatch() {
    for (const Part& part : parts) {
      if (part.event != nullptr) events.Give(part.event);
    }
  }
  CudaBatch(const CudaBatch&) = delete;
  CudaBatch& operator=(const CudaBatch&) = delete;

  CudaEventPool& events;
  absl::InlinedVector<Part, 4> parts;
};

}  // namespace terrace

#endif  // TERRACE_IO_CUDA_BATCH_H_
