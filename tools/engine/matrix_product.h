#ifndef TERRACE_TOOLS_ENGINE_MATRIX_PRODUCT_H_
#define TERRACE_TOOLS_ENGINE_MATRIX_PRODUCT_H_

#include <cstddef>
#include <vector>

#include "absl/types/span.h"

namespace terrace {

// A weight of a model: [rows, columns], row-major, one row for each output.
struct Matrix {
  size_t rows = 0;
  size_t columns = 0;
  std::vector<float> values;
};

// Rows that somebody else holds: [count, width], each `stride` elements after the one before.
struct ConstRows {
  const float* data = nullptr;
  size_t count = 0;
  size_t width = 0;
  size_t stride = 0;
};
struct Rows {
  float* data = nullptr;
  size_t count = 0;
  size_t width = 0;
  size_t stride = 0;
};

// The products run on OpenBLAS, which is held to one thread: whoever wants more splits the work
// over oneTBB. Thread-safe. REQUIRES: shapes that fit each other, and sizes below 2^31.

// out = scale * a * b^T, for a [m, k], b [n, k] and out [m, n]; on the calling thread alone.
void MultiplyTransposed(float scale, ConstRows a, ConstRows b, Rows out);

// out = a * b, for a [m, k], b [k, n] and out [m, n]; on the calling thread alone.
void Multiply(ConstRows a, ConstRows b, Rows out);

// out = x * weights^T, split over the columns of `out` where that is worth it.
// x: [tokens, weights.columns], out: [tokens, weights.rows].
void ApplyWeights(const Matrix& weights, absl::Span<const float> x, absl::Span<float> out);

}  // namespace terrace

#endif  // TERRACE_TOOLS_ENGINE_MATRIX_PRODUCT_H_
