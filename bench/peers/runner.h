#ifndef TERRACE_BENCH_PEERS_RUNNER_H_
#define TERRACE_BENCH_PEERS_RUNNER_H_

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "bench/peers/store_list.h"
#include "bench/peers/workload.h"

namespace terrace::peers {

// One part of a store's run. The mix puts the blocks, so it comes first.
struct Phase {
  enum class Kind : uint8_t { kMix, kTraceGets, kUniformGets } kind = Kind::kMix;
  int threads = 1;  // of the gets: batch i belongs to thread i modulo threads

  std::string Name() const;
};

// Plain data, as it travels from the process that measured it.
struct PhaseResult {
  double seconds = 0;      // in calls and verification; without making the bytes to put
  double cpu_seconds = 0;  // user and system, the store's own threads included
  uint64_t put_blocks = 0;
  uint64_t got_blocks = 0;
  uint64_t missing_blocks = 0;
  uint64_t wrong_blocks = 0;
  // Of a get, until its last byte is verified and it is released, in nanoseconds.
  int64_t p50_ns = 0;
  int64_t p99_ns = 0;
  int64_t p999_ns = 0;

  bool verified() const { return missing_blocks == 0 && wrong_blocks == 0; }
};

struct StoreResult {
  std::vector<PhaseResult> phases;
  uint64_t peak_bytes = 0;  // of the cgroup, or resident in the process without one
  bool limited = false;     // the budget was enforced, page cache included
};

struct RunOptions {
  std::string dir;  // the store works in a new folder in it, removed at the end
  uint64_t memory_bytes = 0;
  bool limit_memory = true;  // by a cgroup, where one can be made
};

// Runs the phases on a fresh store, in a process of its own limited to the budget. Errors: what the
// store failed with, or kResourceExhausted when its process was killed, as for too much memory.
// REQUIRES: the calling process has one thread.
absl::StatusOr<StoreResult> RunStore(const StoreKind& kind, const Workload& workload,
                                     absl::Span<const Phase> phases, const RunOptions& options);

}  // namespace terrace::peers

#endif  // TERRACE_BENCH_PEERS_RUNNER_H_
