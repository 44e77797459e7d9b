#ifndef TERRACE_TOOLS_INDEX_EVAL_DECODE_EVAL_H_
#define TERRACE_TOOLS_INDEX_EVAL_DECODE_EVAL_H_

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "runtime/lookup_policy.h"
#include "tiers/tier_options.h"
#include "tools/index_eval/eval_heads.h"

namespace terrace {

struct DecodeEvalOptions {
  std::vector<LookupKind> policies;  // beside full
  double dram_share = 1;             // of keys and values that DRAM holds; the rest is on NVMe
  // Of them that HBM holds, beside the windows; 0: there is none, and the CPU attends to
  // everything.
  double hbm_share = 0;
  HbmDevice hbm_device = HbmDevice::kEmulated;
  std::string dir;  // of the NVMe tiers, one folder a policy; below a share of 1
  size_t threads = 0;
  size_t cold_steps = 4;  // of each policy with nothing of the context in DRAM; below a share of 1
  LookupOptions lookup = {};
};

// What decode steps of one policy cost and gave.
struct DecodePolicyResult {
  std::string name;
  double index_seconds = 0;        // to index all tokens
  double index_bytes_per_key = 0;  // beyond what the tiers hold
  double step_seconds = 0;         // median
  double times_full = 0;           // median of the steps' ratios
  // Means of a step: looking up, waiting for blocks, attending.
  double lookup_seconds = 0;
  double wait_seconds = 0;
  double attend_seconds = 0;
  // None with all in DRAM, nor of policies that never read a whole context.
  std::optional<double> cold_seconds = std::nullopt;
  double cold_times_full = 0;
  // Of the output of a query head, relative, Euclidean, against full.
  double error_mean = 0;
  double error_max = 0;
  double missed_mass = 0;     // estimated, the mean over the queries
  double attended_share = 0;  // of the tokens, by a KV head and step
  double fetched_bytes = 0;   // from NVMe, by a step
  double degraded_share = 0;  // clusters that were late or lost, of those that were wanted
  uint64_t index_refusals = 0;
};

struct DecodeEvalResult {
  size_t kv_heads = 0;
  size_t tokens = 0;
  size_t head_dim = 0;
  size_t group = 0;
  size_t steps = 0;
  size_t threads = 0;
  double dram_share = 0;
  double hbm_share = 0;
  std::string hbm_device;                    // as the copy engine is called; empty without HBM
  std::vector<DecodePolicyResult> policies;  // full first
};

// Attention of one layer, whose KV heads are `heads`, through a Runtime for each policy: all
// policies take every step in turn, so that what a machine is busy with meets all of them. Keys
// and values are appended, sample queries observed, and everything is indexed before the first
// step; the first half of the steps is not timed. Errors of the runtime, naming the policy;
// kCancelled once `stop` is set. REQUIRES: heads of one shape.
absl::StatusOr<DecodeEvalResult> RunDecodeEval(absl::Span<const EvalHead> heads,
                                               const DecodeEvalOptions& options,
                                               const std::atomic<bool>& stop,
                                               absl::FunctionRef<void(absl::string_view)> progress);

}  // namespace terrace

#endif  // TERRACE_TOOLS_INDEX_EVAL_DECODE_EVAL_H_
