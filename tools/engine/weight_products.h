#ifndef TERRACE_TOOLS_ENGINE_WEIGHT_PRODUCTS_H_
#define TERRACE_TOOLS_ENGINE_WEIGHT_PRODUCTS_H_

#include <cstdint>
#include <string>

#include "absl/status/status.h"
#include "absl/types/span.h"
#include "tools/engine/matrix_product.h"

namespace terrace {

// One matrix, and where its product with the common input goes.
struct WeightProduct {
  const Matrix* weights = nullptr;
  absl::Span<float> out;  // [tokens, weights->rows]
};

// Multiplies with the weights of one model: this is how the engine does that. One call at a time.
class WeightProducts {
 public:
  virtual ~WeightProducts() = default;

  // out = x * weights^T for each of one to three `products`, in fp32 throughout.
  // x: [tokens, columns], of which all the matrices have as many. Errors are those of the device.
  virtual absl::Status Apply(absl::Span<const float> x,
                             absl::Span<const WeightProduct> products) = 0;
  // "cpu", or the device's name.
  virtual std::string name() const = 0;
  // Memory of the device that weights and buffers take; 0 where that is the host.
  virtual uint64_t device_bytes() const = 0;
};

// On the threads of this process, of any matrices.
class CpuProducts final : public WeightProducts {
 public:
  absl::Status Apply(absl::Span<const float> x, absl::Span<const WeightProduct> products) override;
  std::string name() const override { return "cpu"; }
  uint64_t device_bytes() const override { return 0; }
};

}  // namespace terrace

#endif  // TERRACE_TOOLS_ENGINE_WEIGHT_PRODUCTS_H_
