#ifndef TERRACE_TOOLS_ENGINE_ATTENTION_SOURCE_H_
#define TERRACE_TOOLS_ENGINE_ATTENTION_SOURCE_H_

#include <cstddef>
#include <cstdint>

#include "absl/status/status.h"
#include "absl/types/span.h"

namespace terrace {

// What one layer asks of an AttentionSource for consecutive tokens. Everything is borrowed for the
// duration of the call, fp32 and row-major.
struct AttentionStep {
  size_t layer = 0;
  int64_t position = 0;           // of the first token
  size_t tokens = 0;              // at least 1
  absl::Span<const float> query;  // [tokens, query_heads, head_dim]
  absl::Span<const float> key;    // [tokens, kv_heads, head_dim]
  absl::Span<const float> value;  // [tokens, kv_heads, head_dim]
  absl::Span<float> out;          // [tokens, query_heads, head_dim]
};

// Keeps the K and V of one sequence and attends over them. This is how the engine gets attention:
// it computes everything else. One call at a time.
class AttentionSource {
 public:
  virtual ~AttentionSource() = default;

  // Whether queries and keys come after RoPE. If so, the engine rotates them by their positions
  // first; if not, it hands them over as the projections made them. Constant.
  virtual bool rotated() const = 0;

  // Stores keys and values of the tokens, then attends causally with their queries: each sees the
  // tokens up to and including itself, scores scaled by 1 / sqrt(head_dim). kInvalidArgument, with
  // nothing stored, when `position` is not the number of tokens that the layer has, and
  // kResourceExhausted when there is no room. After any other error the layer may have the tokens.
  virtual absl::Status Attend(const AttentionStep& step) = 0;

  // Forgets the tokens at positions of `tokens` and above, in all layers. Layers that have fewer,
  // because a forward pass failed between them, keep what they have. kInvalidArgument for a
  // negative number.
  virtual absl::Status Truncate(int64_t tokens) = 0;
};

}  // namespace terrace

#endif  // TERRACE_TOOLS_ENGINE_ATTENTION_SOURCE_H_
