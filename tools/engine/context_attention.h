#ifndef TERRACE_TOOLS_ENGINE_CONTEXT_ATTENTION_H_
#define TERRACE_TOOLS_ENGINE_CONTEXT_ATTENTION_H_

#include <cstdint>
#include <vector>

#include "absl/status/status.h"
#include "runtime/context.h"
#include "runtime/runtime_options.h"
#include "tools/engine/attention_source.h"
#include "tools/engine/model_config.h"

namespace terrace {

// The shape of a model's KV, as a runtime wants it. Keys come before RoPE where the lookup asks for
// that. kInvalidArgument for a head_dim that Terrace does not take.
absl::StatusOr<ModelShape> ShapeOf(const ModelConfig& config, KvDtype dtype, LookupKind lookup);

// Attention of the reference engine over a context of Terrace. Thread-compatible.
class ContextAttention final : public AttentionSource {
 public:
  // `context` outlives it. `state` is that of the runtime's keys.
  ContextAttention(Context& context, KeyState state) : context_(context), state_(state) {}

  bool rotated() const override { return state_ == KeyState::kAfterRope; }
  absl::Status Attend(const AttentionStep& step) override;
  absl::Status Truncate(int64_t tokens) override { return context_.Truncate(tokens); }

 private:
  Context& context_;
  const KeyState state_;
  std::vector<int64_t> positions_;
};

}  // namespace terrace

#endif  // TERRACE_TOOLS_ENGINE_CONTEXT_ATTENTION_H_
