#ifndef TERRACE_TOOLS_ENGINE_PERPLEXITY_H_
#define TERRACE_TOOLS_ENGINE_PERPLEXITY_H_

#include <cstddef>
#include <cstdint>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "tools/engine/attention_source.h"
#include "tools/engine/engine.h"

namespace terrace {

struct PerplexityOptions {
  size_t window_tokens = 2048;  // with the start token; at least 2
  size_t stride_bytes = 8192;   // from the beginning of a window to that of the next; at least 1
  size_t max_windows = 16;      // at least 1
  // Tokens run at once; their logits are held, 4 * vocab bytes each. At least 1.
  size_t step_tokens = 256;
  // Of each window, so many come first in steps of 256, whatever step_tokens is: a prompt.
  size_t prompt_tokens = 0;

  // kInvalidArgument naming the field and its value.
  absl::Status Validate() const;
};

struct Perplexity {
  double nats_per_byte = 0;
  uint64_t bytes = 0;  // that were predicted
  size_t windows = 0;
};

// How well a model of bytes predicts a text: each window starts anew with the start token, and
// every byte in it is predicted from those before. `attention` is emptied before each window.
// Windows that the text is too short for are left out. kInvalidArgument when not one fits, or for
// bad options; otherwise the errors of CheckByteModel, Engine::Forward and the attention source.
absl::StatusOr<Perplexity> MeasurePerplexity(absl::string_view text,
                                             const PerplexityOptions& options, Engine& engine,
                                             AttentionSource& attention);

}  // namespace terrace

#endif  // TERRACE_TOOLS_ENGINE_PERPLEXITY_H_
