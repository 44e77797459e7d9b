#ifndef TERRACE_RUNTIME_DEVICE_TAILS_H_
#define TERRACE_RUNTIME_DEVICE_TAILS_H_

#include <cstddef>
#include <memory>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "io/copy_engine.h"
#include "runtime/kv_run.h"
#include "runtime/tail.h"

namespace terrace {

// The memory of all tails once more, in HBM, where attention reads sinks and windows. A step of
// decoding brings the one token that is new. Private to runtime/.
//
// Thread-safe for different tails.
class DeviceTails {
 public:
  // What a call works with, so that it does not allocate the next time.
  struct Scratch {
    std::vector<Tail::Range> changes;
    std::vector<Copy> copies;
  };

  // `tails` is the host memory that tails are attached to; it and the engine outlive the mirror.
  // Errors as those of CopyEngine.
  static absl::StatusOr<std::unique_ptr<DeviceTails>> Create(CopyEngine& engine,
                                                             absl::Span<std::byte> tails);

  // Brings what changed of a layer since the last call that succeeded, and waits for it.
  absl::Status Bring(Tail& tail, size_t layer, Scratch& scratch) const;

  // The run in HBM that mirrors one in a tail.
  KvRun Mirrored(const KvRun& run) const;

  size_t bytes() const { return memory_->size(); }

 private:
  DeviceTails(CopyEngine& engine, absl::Span<std::byte> tails) : engine_(engine), tails_(tails) {}

  CopyEngine& engine_;
  const absl::Span<std::byte> tails_;
  std::unique_ptr<DeviceMemory> memory_;
  std::unique_ptr<PinnedMemory> pinned_;
};

}  // namespace terrace

#endif  // TERRACE_RUNTIME_DEVICE_TAILS_H_
