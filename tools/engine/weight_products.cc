#include "tools/engine/weight_products.h"

namespace terrace {

absl::Status CpuProducts::Apply(absl::Span<const float> x,
                                absl::Span<const WeightProduct> products) {
  for (const WeightProduct& product : products) ApplyWeights(*product.weights, x, product.out);
  return absl::OkStatus();
}

}  // namespace terrace
