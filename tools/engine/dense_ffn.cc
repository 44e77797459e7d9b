#include "tools/engine/dense_ffn.h"

#include <algorithm>
#include <cmath>

#include "io/check.h"

namespace terrace {
namespace {

// gate = activation(gate) * up.
void Gate(Activation activation, absl::Span<const float> up, absl::Span<float> gate) {
  switch (activation) {
    case Activation::kSilu:
      for (size_t i = 0; i < gate.size(); ++i) gate[i] *= up[i] / (1 + std::exp(-gate[i]));
      return;
    case Activation::kRelu:
      for (size_t i = 0; i < gate.size(); ++i) gate[i] = std::max(gate[i], 0.0f) * up[i];
      return;
  }
}

}  // namespace

DenseFfn::DenseFfn(const ModelConfig& config, const ModelWeights& weights, size_t max_tokens)
    : config_(config),
      weights_(weights),
      gate_(max_tokens * config.ffn),
      up_(max_tokens * config.ffn) {
  TERRACE_CHECK(weights.has_ffn());
}

absl::Status DenseFfn::Run(const FfnStep& step) {
  const LayerWeights& layer = weights_.layers[step.layer];
  const absl::Span<float> gate = absl::MakeSpan(gate_).first(step.tokens * config_.ffn);
  const absl::Span<float> up = absl::MakeSpan(up_).first(gate.size());
  const absl::Status status = products_->Apply(
      step.x, {{.weights = &layer.gate, .out = gate}, {.weights = &layer.up, .out = up}});
  if (!status.ok()) return status;
  Gate(config_.activation, up, gate);
  return products_->Apply(gate, {{.weights = &layer.down, .out = step.out}});
}

}  // namespace terrace
