#ifndef TERRACE_IO_CUDA_COPY_ENGINE_H_
#define TERRACE_IO_CUDA_COPY_ENGINE_H_

#include <cstddef>
#include <cstdint>
#include <memory>

#include "absl/status/statusor.h"
#include "io/copy_engine.h"

namespace terrace {

// What moves the bytes of pinned memory. Memory that is not pinned always goes through the driver.
enum class CudaCopyMethod : uint8_t {
  kAuto,        // a kernel where a batch has many small copies, the copy engines otherwise
  kCopyEngine,  // the DMA engines of the device
  kKernel,      // a kernel that reads and writes host memory itself
};

struct CudaCopyOptions {
  int device = 0;  // as CUDA numbers them
  // Hard cap on what Allocate gives out at once, in bytes.
  size_t pool_bytes = 0;
  CudaCopyMethod method = CudaCopyMethod::kAuto;  // the others are for measuring
};

// Whether this library was built with CUDA.
bool BuiltWithCuda();

// Copies to and from the memory of a CUDA device, which is allocated from a stream-ordered pool of
// its own that keeps what was freed until the engine and all of its memory are gone. Copies run on
// streams of their own, one set for each direction and priority. kUnavailable where the library was
// built without CUDA or no device answers, naming which; kInvalidArgument for a device that there
// is not.
//
// Copies of memory that Pin did not register are right, but slow, and Submit may wait for them. A
// copy may lie within one pinned range and one allocation only.
absl::StatusOr<std::unique_ptr<CopyEngine>> MakeCudaCopyEngine(const CudaCopyOptions& options = {});

}  // namespace terrace

#endif  // TERRACE_IO_CUDA_COPY_ENGINE_H_
