#ifndef TERRACE_TOOLS_GENERATE_RUN_H_
#define TERRACE_TOOLS_GENERATE_RUN_H_

#include <atomic>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "io/timeline.h"
#include "runtime/context_stats.h"
#include "runtime/runtime.h"
#include "tools/attention_report.h"
#include "tools/engine/engine.h"
#include "tools/engine/generate.h"
#include "tools/engine/sampler.h"
#include "tools/runtime_flags.h"
#include "tools/weight_flags.h"

namespace terrace {

// What one `terrace generate` does.
struct GenerateSetup {
  std::string model;   // its folder
  std::string prompt;  // follows the saved context, where one is loaded
  int64_t tokens = 128;
  SamplerOptions sampler;
  AttentionPolicy policy;
  RuntimeFlags runtime;
  std::string load;  // the saved context to continue; empty for none
  std::string save;  // the name to save under; empty for none
  bool reuse = false;
  WeightFlags weights;
  std::string dump_qkv;                // the file for queries, keys and values; empty for none
  std::shared_ptr<Timeline> timeline;  // of all that takes part; null for none
};

// What paged weights cost.
struct GenerateWeights {
  std::string predictor;
  PagedFfnStats prefill;  // up to the first generated token
  PagedFfnStats all;
  uint64_t file_bytes = 0;
  uint64_t ffn_bytes = 0;  // of the weights in it
};

// What a run over tiers cost there.
struct GenerateTiers {
  LookupStats lookups;
  IndexCost indexes;
  RuntimeStats runtime;
  int64_t lost_tokens = 0;  // of all layers and KV heads
};

struct GenerateReport {
  std::string policy;
  size_t heads = 0;             // KV heads of all layers
  size_t streaming_heads = 0;   // of these, those that attend to sinks and window alone
  int64_t loaded_tokens = 0;    // of the saved context
  int64_t prefix_tokens = 0;    // of the prompt, which were cached
  int64_t prompt_tokens = 0;    // that were run
  std::vector<int32_t> tokens;  // generated
  GenerateResult result;
  EngineTimes prefill;  // up to the first generated token
  EngineTimes all;
  std::string device;         // that multiplied with the weights
  uint64_t device_bytes = 0;  // of its memory that they take; 0 for the CPU
  uint64_t weight_bytes = 0;
  uint64_t peak_memory_bytes = 0;
  bool interrupted = false;

  std::optional<GenerateTiers> tiers;      // of a policy over tiers
  std::optional<GenerateWeights> weights;  // where they were paged

  int64_t decoded_tokens() const { return all.tokens - prefill.tokens; }
};

// Generates; every token goes to `take` as text, whose error ends the run. It ends early once
// `stop` is set; nothing is saved then. Errors are those of the model, the runtime and the engine.
absl::StatusOr<GenerateReport> RunGenerate(
    const GenerateSetup& setup, const std::atomic<bool>& stop,
    absl::FunctionRef<absl::Status(const std::string& text)> take);

}  // namespace terrace

#endif  // TERRACE_TOOLS_GENERATE_RUN_H_
