#ifndef TERRACE_TOOLS_ENGINE_CUDA_PRODUCTS_H_
#define TERRACE_TOOLS_ENGINE_CUDA_PRODUCTS_H_

#include <memory>

#include "absl/status/statusor.h"
#include "tools/engine/model_weights.h"
#include "tools/engine/weight_products.h"

namespace terrace {

// Products by cuBLAS on CUDA device number `device`, which gets a copy of all matrices of the model
// that products are asked for; those of `weights` stay where they are, and name the copies. No
// product is rounded below fp32, so that results differ from the CPU's by the order of sums alone.
//
// kUnavailable where this was built without CUDA, or no device or no cuBLAS answers;
// kResourceExhausted, with the bytes that are needed and those that there are, where the weights do
// not fit. REQUIRES of Apply: matrices of `weights`, which outlives the result.
absl::StatusOr<std::unique_ptr<WeightProducts>> MakeCudaProducts(const ModelWeights& weights,
                                                                 int device = 0);

}  // namespace terrace

#endif  // TERRACE_TOOLS_ENGINE_CUDA_PRODUCTS_H_
