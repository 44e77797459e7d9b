#include "tools/engine/context_attention.h"

#include <numeric>

#include "absl/strings/str_cat.h"

namespace terrace {

absl::StatusOr<ModelShape> ShapeOf(const ModelConfig& config, KvDtype dtype, LookupKind lookup) {
  const ModelShape shape = {
      .layers = static_cast<uint32_t>(config.layers),
      .query_heads = static_cast<uint32_t>(config.query_heads),
      .kv_heads = static_cast<uint32_t>(config.kv_heads),
      .head_dim = static_cast<uint32_t>(config.head_dim),
      .dtype = dtype,
      .key_state = lookup == LookupKind::kInfllm ? KeyState::kBeforeRope : KeyState::kAfterRope,
      .rope = config.rope};
  if (absl::Status status = shape.Validate(); !status.ok()) return status;
  return shape;
}

absl::Status ContextAttention::Attend(const AttentionStep& step) {
  if (step.position != context_.tokens(step.layer)) {
    return absl::InvalidArgumentError(
        absl::StrCat("layer ", step.layer, " has ", context_.tokens(step.layer),
                     " tokens, so none can be appended at ", step.position));
  }
  const absl::Status status = context_.Append(
      step.layer, {.keys = step.key.data(), .values = step.value.data(), .tokens = step.tokens});
  if (!status.ok()) return status;
  positions_.resize(step.tokens);
  std::iota(positions_.begin(), positions_.end(), step.position);
  return context_.Attend(step.layer, {.queries = step.query.data(), .positions = positions_},
                         {.out = step.out});
}

}  // namespace terrace
