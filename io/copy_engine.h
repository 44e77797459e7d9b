#ifndef TERRACE_IO_COPY_ENGINE_H_
#define TERRACE_IO_COPY_ENGINE_H_

#include <cstddef>
#include <cstdint>
#include <memory>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"

namespace terrace {

// Memory of a copy engine's device, freed with the object. `data` is a device address: only a
// CopyEngine, a kernel or, for the host form, the CPU may follow it.
class DeviceMemory {
 public:
  virtual ~DeviceMemory() = default;
  virtual std::byte* data() const = 0;
  virtual size_t size() const = 0;
};

enum class CopyDirection : uint8_t { kHostToDevice, kDeviceToHost };

struct Copy {
  const std::byte* source = nullptr;
  std::byte* destination = nullptr;
  size_t bytes = 0;
  CopyDirection direction = CopyDirection::kHostToDevice;
};

// Names a submitted batch; tickets of one engine grow.
enum class CopyTicket : uint64_t {};

// Batched asynchronous copies between host memory and HBM. Submit starts a batch and may finish it
// before it returns (the host form does); Wait returns once it is finished. Batches run in
// submission order. Sources and destinations stay alive and untouched until then.
//
// Thread-safe. Errors: kUnavailable when no device answers, kResourceExhausted when memory does not
// suffice, kInternal with the driver's text otherwise.
class CopyEngine {
 public:
  virtual ~CopyEngine() = default;

  virtual absl::StatusOr<std::unique_ptr<DeviceMemory>> Allocate(size_t bytes) = 0;
  virtual absl::StatusOr<CopyTicket> Submit(absl::Span<const Copy> batch) = 0;
  virtual absl::Status Wait(CopyTicket ticket) = 0;
  // "host (HBM emulated)", or the device's name.
  virtual const char* name() const = 0;
};

// HBM emulated in host memory: copies are memcpy on the calling thread.
std::unique_ptr<CopyEngine> MakeHostCopyEngine();

}  // namespace terrace

#endif  // TERRACE_IO_COPY_ENGINE_H_
