#ifndef TERRACE_BENCH_PEERS_PHASES_H_
#define TERRACE_BENCH_PEERS_PHASES_H_

#include "absl/status/statusor.h"
#include "bench/peers/block_store.h"
#include "bench/peers/runner.h"
#include "bench/peers/workload.h"

namespace terrace::peers {

// Does the work of one phase in the calling process. Errors are those of the store; blocks that are
// missing or wrong are counted.
absl::StatusOr<PhaseResult> RunPhase(BlockStore& store, const Workload& workload,
                                     const Phase& phase);

}  // namespace terrace::peers

#endif  // TERRACE_BENCH_PEERS_PHASES_H_
