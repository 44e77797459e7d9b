#include "tools/engine/cuda_products.h"

namespace terrace {

absl::StatusOr<std::unique_ptr<WeightProducts>> MakeCudaProducts(const ModelWeights&, int) {
  return absl::UnavailableError("CUDA products: this program was built without CUDA");
}

}  // namespace terrace
