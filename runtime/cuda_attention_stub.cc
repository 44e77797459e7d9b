#include "runtime/device_attention.h"

namespace terrace {

absl::StatusOr<std::unique_ptr<DeviceAttention>> MakeCudaAttention(const DeviceAttention::Options&,
                                                                   int) {
  return absl::UnavailableError("CUDA attention: this library was built without CUDA");
}

}  // namespace terrace
