#include "io/cuda_copy_engine.h"

namespace terrace {

bool BuiltWithCuda() { return false; }

absl::StatusOr<std::unique_ptr<CopyEngine>> MakeCudaCopyEngine(const CudaCopyOptions&) {
  return absl::UnavailableError("CUDA copy engine: this library was built without CUDA");
}

}  // namespace terrace
