#ifndef TERRACE_TESTS_SUPPORT_REFERENCE_ATTENTION_H_
#define TERRACE_TESTS_SUPPORT_REFERENCE_ATTENTION_H_

#include <cstddef>
#include <vector>

#include "absl/types/span.h"
#include "runtime/kv_run.h"

namespace terrace {

// A run and how many of its first tokens each row may see; empty: all.
struct ReferenceRun {
  KvRun run;
  absl::Span<const size_t> visible = {};  // empty or [rows]
};

struct ReferenceResult {
  std::vector<double> out;     // [rows, head_dim]
  std::vector<double> lse;     // [rows]; -infinity where a row sees nothing
  std::vector<double> scores;  // [rows, tokens of all runs], -infinity where hidden
};

// Softmax attention in float64 by its definition, scores scaled by 1 / sqrt(head_dim).
// queries: [rows, head_dim].
ReferenceResult ReferenceAttention(size_t head_dim, absl::Span<const float> queries,
                                   absl::Span<const ReferenceRun> runs);

}  // namespace terrace

#endif  // TERRACE_TESTS_SUPPORT_REFERENCE_ATTENTION_H_
