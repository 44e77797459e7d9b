#ifndef TERRACE_RUNTIME_CUDA_PROBE_H_
#define TERRACE_RUNTIME_CUDA_PROBE_H_

#include <cstddef>
#include <memory>
#include <string>

#include "absl/status/statusor.h"

namespace terrace {

// What the memory of a device can do, for benchmarks to compare kernels with: the driver's own copy
// from one place of it to another. Private. Thread-compatible. Errors as those of CopyEngine.
class DeviceCopyProbe {
 public:
  virtual ~DeviceCopyProbe() = default;

  // Seconds that a copy of all bytes takes, the mean of `copies` in a row. It reads and writes each
  // byte once.
  virtual absl::StatusOr<double> Seconds(size_t copies) = 0;
  // The device's name, driver and CUDA: "NVIDIA H100 ..., driver API 13.0, CUDA 13.0".
  virtual std::string DeviceText() const = 0;
};

// A probe that holds twice as many bytes of HBM. kUnavailable where the library was built without
// CUDA or no device answers.
absl::StatusOr<std::unique_ptr<DeviceCopyProbe>> MakeDeviceCopyProbe(int device, size_t bytes);

}  // namespace terrace

#endif  // TERRACE_RUNTIME_CUDA_PROBE_H_
