#ifndef TERRACE_TOOLS_EVAL_RUN_H_
#define TERRACE_TOOLS_EVAL_RUN_H_

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "runtime/context_stats.h"
#include "tools/engine/paged_ffn.h"
#include "tools/engine/perplexity.h"
#include "tools/eval_session.h"
#include "tools/runtime_flags.h"

namespace terrace {

// What one `terrace eval` does.
struct EvalSetup {
  std::string model;                      // its folder
  std::string text;                       // the file to predict, and to hide needles in
  std::vector<AttentionPolicy> policies;  // the first one is the baseline
  RuntimeFlags runtime;
  std::optional<double> share;
  std::optional<PerplexityOptions> perplexity;  // nullopt: not measured
  // Also with paged weights, token by token, by the first policy; each measures its predictions.
  // REQUIRES: perplexity, where there are any.
  std::vector<PagedFfnOptions> weights;

  struct Needles {
    size_t questions = 0;  // for each length, a multiple of `keys`; 0: none are asked
    std::vector<size_t> lengths;
    size_t depths = 10;
    size_t keys = 1;  // in one text
    uint64_t seed = 1;
    size_t question_step = kChunkTokens;  // tokens of a question that are run at once
  } needles;
};

// What a measurement took.
struct EvalCost {
  double seconds = 0;
  LookupStats lookups;
  IndexCost indexes;
  EvalBudget budget;
};

struct NeedleCell {
  double depth = 0;
  size_t asked = 0;
  size_t answered = 0;
};

struct NeedleRow {
  size_t length_tokens = 0;
  std::vector<NeedleCell> cells;  // by depth
  EvalCost cost;

  NeedleCell Total() const;  // without a depth
};

struct PolicyResult {
  std::string policy;
  std::string label;           // the policy, and how many heads stream where only some do
  size_t streaming_heads = 0;  // KV heads of all layers that attend to sinks and window alone
  struct Text {
    Perplexity perplexity;
    EvalCost cost;
  };
  std::optional<Text> text;
  std::vector<NeedleRow> needles;  // by length

  NeedleCell NeedleTotal() const;
  // Of all measurements.
  double Seconds() const;
  LookupStats Lookups() const;
};

// Perplexity with paged weights.
struct WeightsResult {
  PredictorKind predictor = PredictorKind::kLowRank;
  Perplexity perplexity;
  double seconds = 0;
  size_t prompt_tokens = 0;  // of each window, whose networks were computed whole
  PagedFfnStats stats;
  uint64_t ffn_bytes = 0;  // of the weights in the file
  uint64_t dram_bytes = 0;
};

struct EvalReport {
  std::string model;
  std::string text;
  std::string device;  // that multiplied with the weights
  std::optional<double> share;
  size_t keys = 1;
  size_t heads = 0;  // KV heads of all layers
  std::vector<PolicyResult> policies;
  std::vector<WeightsResult> weights;
};

// Where needles stand: evenly from .05 to .95, a single one in the middle.
std::vector<double> NeedleDepths(size_t count);

// Measures every policy on the same texts and questions. kCancelled once `stop` is set; otherwise
// errors are those of the model, the text and the runtime. The NVMe tier lies in a folder inside of
// --dir that is gone afterwards.
absl::StatusOr<EvalReport> RunEval(const EvalSetup& setup, const std::atomic<bool>& stop);

}  // namespace terrace

#endif  // TERRACE_TOOLS_EVAL_RUN_H_
