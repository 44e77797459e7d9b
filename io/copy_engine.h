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

// Host memory that the device reaches by itself, until this is destroyed.
class PinnedMemory {
 public:
  virtual ~PinnedMemory() = default;
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

// Offloads give way to what somebody waits for, as far as the device has a choice.
enum class CopyPriority : uint8_t { kDemand, kOffload };

// Batched asynchronous copies between host memory and HBM. Submit starts a batch and may finish it
// before it returns (the host form does); Wait returns once it is finished. Batches that touch the
// same memory run in submission order; others may overtake each other, and those of different
// directions run at once. Sources and destinations stay alive and untouched until then.
//
// Thread-safe. Errors: kUnavailable when no device answers or it was lost, kResourceExhausted when
// memory does not suffice, kInternal with the driver's text otherwise. After a lost device every
// call fails with its error.
class CopyEngine {
 public:
  virtual ~CopyEngine() = default;

  // Device memory, aligned to 256 bytes and not initialised. May outlive the engine.
  virtual absl::StatusOr<std::unique_ptr<DeviceMemory>> Allocate(size_t bytes) = 0;
  // Makes copies from and to this host memory fast, which they are not otherwise. `memory` outlives
  // the result, and no copy of it is under way when that ends.
  virtual absl::StatusOr<std::unique_ptr<PinnedMemory>> Pin(absl::Span<std::byte> memory) = 0;
  virtual absl::StatusOr<CopyTicket> Submit(absl::Span<const Copy> batch,
                                            CopyPriority priority = CopyPriority::kDemand) = 0;
  virtual absl::Status Wait(CopyTicket ticket) = 0;
  // "host (HBM emulated)", or the device's name.
  virtual const char* name() const = 0;
  // Whether device addresses are host addresses too, as they are where HBM is emulated.
  virtual bool is_host() const = 0;
};

// HBM emulated in host memory: copies are memcpy on the calling thread.
std::unique_ptr<CopyEngine> MakeHostCopyEngine();

}  // namespace terrace

#endif  // TERRACE_IO_COPY_ENGINE_H_
