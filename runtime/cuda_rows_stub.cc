#include "runtime/device_rows.h"

namespace terrace {

absl::StatusOr<std::unique_ptr<DeviceRows>> MakeCudaRows(size_t, int) {
  return absl::UnavailableError("CUDA rows: this library was built without CUDA");
}

}  // namespace terrace
