#ifndef TERRACE_TOOLS_ENGINE_LOW_RANK_FIT_H_
#define TERRACE_TOOLS_ENGINE_LOW_RANK_FIT_H_

#include <cstddef>
#include <cstdint>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "tools/engine/matrix_product.h"

namespace terrace {

// Sums over the inputs of one layer.
struct InputMoments {
  uint64_t tokens = 0;
  std::vector<double> sum;       // [width]
  std::vector<double> products;  // [width, width], sum of x x^T

  // x: [tokens, width].
  void Add(absl::Span<const float> x, size_t width);
};

// G x is about  b (a x) + offset  for inputs that are distributed like the moments.
struct LowRankFit {
  uint32_t rank = 0;
  std::vector<uint16_t> a;      // [rank, width] fp16
  std::vector<uint16_t> b;      // [neurons, rank] fp16
  std::vector<float> offset;    // [neurons]
  std::vector<float> residual;  // [neurons] standard deviation of what the fit lacks, above 0
};

// The best fit of this rank in the mean square over the inputs: with S the root of their
// covariance, the truncated singular value decomposition of G S, times S^-1 (as in ASVD, Yuan et
// al., 2023, and SVD-LLM, Wang et al., 2024). gate: [neurons, width]. rank: 1 to width.
// kInternal when an eigenvalue solver or fp16 fails, kInvalidArgument for no tokens, a bad
// rank and what is not finite.
absl::StatusOr<LowRankFit> FitLowRank(const Matrix& gate, const InputMoments& moments,
                                      uint32_t rank);

}  // namespace terrace

#endif  // TERRACE_TOOLS_ENGINE_LOW_RANK_FIT_H_
