#ifndef TERRACE_TOOLS_EVAL_SESSION_H_
#define TERRACE_TOOLS_EVAL_SESSION_H_

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "runtime/context_stats.h"
#include "runtime/runtime.h"
#include "tools/attention_report.h"
#include "tools/engine/engine.h"
#include "tools/runtime_flags.h"

namespace terrace {

// What the KV of one text takes, and what of it is in fast memory. All 0 for plain attention.
struct EvalBudget {
  uint64_t kv_bytes = 0;       // of a text of the length, in all layers and KV heads
  uint64_t dram_bytes = 0;     // capacity of the DRAM tier
  uint64_t window_bytes = 0;   // reserved for sinks and window of one context, beside the tier
  uint64_t summary_bytes = 0;  // kept of as many blocks as the text has, beside the tier
  size_t lookup_blocks = 0;    // that a step attends to; 0 for policies that do not look blocks up
  size_t lookup_keys = 0;      // graph: that a query attends to; otherwise 0
  double lookup_share = 0;  // cluster: of the indexed tokens, what a step attends to; otherwise 0
};

struct EvalSessionOptions {
  AttentionPolicy policy;
  RuntimeFlags runtime;
  size_t length_tokens = 0;             // of the texts
  std::optional<double> share;          // of the KV of a text that the DRAM tier holds
  std::string dir;                      // for the NVMe tier, which starts empty
  size_t question_step = kChunkTokens;  // tokens of a question that are run at once
};

// One policy at work on texts of one length. Thread-compatible.
class EvalSession {
 public:
  // `engine` outlives it. Errors are those of the options and of the runtime.
  static absl::StatusOr<std::unique_ptr<EvalSession>> Open(const EvalSessionOptions& options,
                                                           Engine& engine);

  // Forgets the text and begins an empty one.
  absl::Status Restart();
  // Appends the tokens to the text.
  absl::Status Prefill(absl::Span<const int32_t> tokens);
  // The likeliest `count` tokens after the text and the question. The text stays as it was.
  absl::StatusOr<std::vector<int32_t>> Ask(absl::Span<const int32_t> question, size_t count);

  // Of the text.
  AttentionSource& source() { return *source_; }
  // Of everything so far.
  LookupStats Lookups() const;
  IndexCost Indexes() const;
  EvalBudget Budget() const;

 private:
  EvalSession(const EvalSessionOptions& options, Engine& engine)
      : options_(options), engine_(engine) {}

  absl::StatusOr<std::vector<int32_t>> Answer(absl::Span<const int32_t> question, size_t count,
                                              AttentionSource& source);
  // Keeps what a context did that is about to go.
  void Finish(const Context& context);

  const EvalSessionOptions options_;
  Engine& engine_;
  // The context goes before its runtime, and the source before both.
  std::unique_ptr<Runtime> runtime_;
  std::unique_ptr<Context> context_;
  std::unique_ptr<AttentionSource> source_;
  int64_t text_tokens_ = 0;
  // Of contexts that are gone.
  LookupStats finished_;
  IndexCost finished_indexes_;
};

}  // namespace terrace

#endif  // TERRACE_TOOLS_EVAL_SESSION_H_
