#include "runtime/device_scoring.h"

namespace terrace {

absl::StatusOr<std::unique_ptr<DeviceSummaries>> MakeCudaSummaries(const BlockSummary&,
                                                                   const DeviceSummaryOptions&,
                                                                   int) {
  return absl::UnavailableError("CUDA scoring: this library was built without CUDA");
}

absl::StatusOr<std::unique_ptr<DeviceClusters>> MakeCudaClusters(const DeviceClusterOptions&, int) {
  return absl::UnavailableError("CUDA scoring: this library was built without CUDA");
}

}  // namespace terrace
