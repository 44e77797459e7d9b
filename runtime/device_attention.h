#ifndef TERRACE_RUNTIME_DEVICE_ATTENTION_H_
#define TERRACE_RUNTIME_DEVICE_ATTENTION_H_

#include <cstddef>
#include <memory>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "runtime/attention_parallel.h"

namespace terrace {

// Attention over keys and values that lie in the memory of a device, while the caller does
// something else. Private to runtime/.
//
// Thread-compatible: one batch of jobs is under way at a time.
class DeviceAttention {
 public:
  struct Options {
    size_t head_dim = 128;
    // Rows of a job that are reserved for; more make it reserve anew.
    size_t usual_rows = 8;
    size_t threads = 1;  // of the host form
    // About how many pieces a batch is cut into, of the CUDA form; 0: as suits the device.
    size_t pieces = 0;
  };

  virtual ~DeviceAttention() = default;

  // Starts jobs whose keys and values have device addresses, and everything else host addresses.
  // All of it is borrowed until Finish returns. Parts with `run_lse` are not supported. Queries may
  // be read at any time until then. Errors as those of CopyEngine. REQUIRES: nothing is under way.
  virtual absl::Status Start(absl::Span<const AttentionJob> jobs) = 0;
  // Waits for what Start started, and writes `out` and `lse` of its jobs. OK where nothing is.
  virtual absl::Status Finish() = 0;
  // Whether something was started and not finished.
  virtual bool started() const = 0;
  // False once it has failed in a way that every later call fails too.
  virtual bool usable() const { return true; }
  // How long the device computed what was finished last, without the copies of queries and results;
  // 0 of the host form.
  virtual double device_seconds() const { return 0; }
};

// On a CUDA device. kUnavailable where the library was built without CUDA or no device answers.
absl::StatusOr<std::unique_ptr<DeviceAttention>> MakeCudaAttention(
    const DeviceAttention::Options& options, int device);

// The host twin, for HBM that is emulated: works in Finish, on the calling thread and its pool.
absl::StatusOr<std::unique_ptr<DeviceAttention>> MakeHostDeviceAttention(
    const DeviceAttention::Options& options);

}  // namespace terrace

#endif  // TERRACE_RUNTIME_DEVICE_ATTENTION_H_
