#ifndef TERRACE_IO_CUDA_COPY_ENGINE_H_
#define TERRACE_IO_CUDA_COPY_ENGINE_H_

#include <cstddef>
#include <memory>

#include "absl/status/statusor.h"
#include "io/copy_engine.h"

namespace terrace {

struct CudaCopyOptions {
  int device = 0;  // as CUDA numbers them
  // Hard cap on what Allocate gives out at once, in bytes.
  size_t pool_bytes = 0;
};

// Whether this library was built with CUDA.
bool BuiltWithCuda();

// Copies to and from the memory of a CUDA device, which is allocated from a stream-ordered pool of
// its own. kUnavailable where the library was built without CUDA or no device answers, naming
// which; kInvalidArgument for a device that there is not.
absl::StatusOr<std::unique_ptr<CopyEngine>> MakeCudaCopyEngine(const CudaCopyOptions& options = {});

}  // namespace terrace

#endif  // TERRACE_IO_CUDA_COPY_ENGINE_H_
