#ifndef TERRACE_TOOLS_SSD_WORKLOAD_H_
#define TERRACE_TOOLS_SSD_WORKLOAD_H_

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "absl/types/span.h"
#include "io/block_device.h"
#include "io/latency_histogram.h"

namespace terrace {

// A kind of load: where requests go, and which share of them reads.
struct SsdOp {
  std::string name;
  bool sequential = false;
  uint32_t read_percent = 100;

  bool writes() const { return read_percent < 100; }
};

// "randread", "seqread", "randwrite", "seqwrite", or "mixed:N" for random requests of which N % (0
// to 100) are reads. kInvalidArgument naming the text.
absl::StatusOr<SsdOp> ParseSsdOp(absl::string_view text);

struct SsdRowOptions {
  SsdOp op;
  uint64_t block_bytes = 0;  // a multiple of kPageBytes
  size_t depth = 1;          // requests in flight
  uint64_t size_bytes = 0;   // the part of the device used, from its start; at least one block
  absl::Duration warmup = absl::ZeroDuration();
  absl::Duration duration = absl::Seconds(1);  // up to twice that, until the rate is steady
  uint64_t seed = 1;
};

// What one row of the benchmark measured, after its warm-up.
struct SsdRow {
  SsdRowOptions options;
  double seconds = 0;
  uint64_t reads = 0;  // requests that succeeded
  uint64_t writes = 0;
  double cpu_seconds = 0;    // of the whole process, user and system
  LatencyHistogram latency;  // of requests that succeeded
  bool steady = false;       // the rate had settled when the measurement ended
  uint64_t errors = 0;       // requests that failed, warm-up included
  absl::Status first_error;  // with its offset and length

  uint64_t bytes() const { return (reads + writes) * options.block_bytes; }
  double bytes_per_second() const;
  double iops() const;
  double cpu_seconds_per_gb() const;  // GB of 10^9 bytes; 0 when nothing was moved
};

// Keeps `depth` requests in flight on the device until the time is over or `stop` is set, then
// waits for what is left. A request that fails is counted, and its place goes to the next one.
// Nothing is allocated between the first request and the last. `memory` holds depth * block_bytes
// bytes, page aligned, and is what gets written; start from incompressible bytes (FillRandom): each
// write stamps every page anew. The device must be idle. REQUIRES: the sizes fit.
SsdRow RunSsdRow(BlockDevice& device, absl::Span<std::byte> memory, const SsdRowOptions& options,
                 const std::atomic<bool>& stop);

// Fills memory with bytes that neither compress nor repeat. REQUIRES: whole 8-byte words.
void FillRandom(absl::Span<std::byte> memory, uint64_t seed);

// The steady state of SNIA's Performance Test Specification: over the last five rates, the largest
// and smallest differ by at most 20 % of their mean, and the line fitted to them changes by at most
// 10 % of it. False for fewer than five.
bool IsSteady(absl::Span<const double> rates);

}  // namespace terrace

#endif  // TERRACE_TOOLS_SSD_WORKLOAD_H_
