#ifndef TERRACE_TOOLS_ENGINE_DENSE_FFN_H_
#define TERRACE_TOOLS_ENGINE_DENSE_FFN_H_

#include <cstddef>
#include <vector>

#include "absl/status/status.h"
#include "tools/engine/ffn_source.h"
#include "tools/engine/model_config.h"
#include "tools/engine/model_weights.h"
#include "tools/engine/weight_products.h"

namespace terrace {

// Feed-forward networks whose weights are all in memory: down(activation(gate x) * up x).
// Thread-compatible.
class DenseFfn final : public FfnSource {
 public:
  // For steps of at most `max_tokens`. Everything is borrowed. REQUIRES: the weights are there.
  DenseFfn(const ModelConfig& config, const ModelWeights& weights, size_t max_tokens);

  // From now on these multiply; null: the CPU. `products` is borrowed until it is replaced.
  void UseProducts(WeightProducts* products) {
    products_ = products != nullptr ? products : &cpu_products_;
  }

  absl::Status Run(const FfnStep& step) override;

 private:
  const ModelConfig& config_;
  const ModelWeights& weights_;
  CpuProducts cpu_products_;
  WeightProducts* products_ = &cpu_products_;
  std::vector<float> gate_;  // [max_tokens, ffn]
  std::vector<float> up_;    // [max_tokens, ffn]
};

}  // namespace terrace

#endif  // TERRACE_TOOLS_ENGINE_DENSE_FFN_H_
