#ifndef TERRACE_TOOLS_ENGINE_PLAIN_ATTENTION_H_
#define TERRACE_TOOLS_ENGINE_PLAIN_ATTENTION_H_

#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "index/kv_dtype.h"
#include "tools/engine/attention_source.h"
#include "tools/engine/model_config.h"

namespace terrace {

// Exact attention over keys and values in memory: what every other source is compared with. Keys
// are kept after RoPE. Thread-compatible; computes on oneTBB.
class PlainAttention : public AttentionSource {
 public:
  struct Options {
    int64_t max_tokens = 0;  // at least 1; room for them is made at once
    // Keys and values are rounded to this when they are stored. They take 4 bytes an element even
    // so: 8 * layers * kv_heads * head_dim bytes a token.
    KvDtype rounding = KvDtype::kFloat32;
  };

  // kInvalidArgument for options out of range, kResourceExhausted when the machine has not the
  // memory.
  static absl::StatusOr<std::unique_ptr<PlainAttention>> Create(const ModelConfig& config,
                                                                const Options& options);

  bool rotated() const override { return true; }
  absl::Status Attend(const AttentionStep& step) override;
  absl::Status Truncate(int64_t tokens) override;

  // Of the given layer.
  int64_t token_count(size_t layer) const { return layers_[layer].tokens; }
  // After RoPE, as stored: [token_count(layer), head_dim]. Valid until the next call that is not
  // const.
  absl::Span<const float> keys(size_t layer, size_t kv_head) const;

 private:
  struct Layer {
    int64_t tokens = 0;
    std::vector<float> keys;    // [kv_heads, max_tokens, head_dim]
    std::vector<float> values;  // [kv_heads, max_tokens, head_dim]
  };

  PlainAttention(const ModelConfig& config, const Options& options);

  // kInvalidArgument, with no token added, for an element that is not finite when it is rounded.
  absl::Status Store(const AttentionStep& step, Layer& layer) const;

  const size_t query_heads_;
  const size_t kv_heads_;
  const size_t head_dim_;
  const Options options_;
  std::vector<Layer> layers_;
};

}  // namespace terrace

#endif  // TERRACE_TOOLS_ENGINE_PLAIN_ATTENTION_H_
