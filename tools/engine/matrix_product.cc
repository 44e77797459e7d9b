#include "tools/engine/matrix_product.h"

#include <algorithm>
#include <limits>

#include "cblas.h"
#include "io/check.h"
#include "tools/engine/engine_threads.h"

namespace terrace {
namespace {

// Multiplications that are worth a task: some ten microseconds' worth.
constexpr size_t kWorthwhile = size_t{256} << 10;
// A task takes a multiple of this many columns, as OpenBLAS's kernels do.
constexpr size_t kColumnStep = 32;
constexpr size_t kMaxTasks = 64;
// For so few rows the products of matrices cost more in copying b into panels than they save.
constexpr size_t kFewRows = 4;

blasint ToBlas(size_t size) {
  TERRACE_CHECK(size <= static_cast<size_t>(std::numeric_limits<blasint>::max()));
  return static_cast<blasint>(size);
}

// Every product comes through here first.
void HoldBlasToOneThread() {
  [[maybe_unused]] static const bool held = [] {
    openblas_set_num_threads(1);
    return true;
  }();
}

}  // namespace

void MultiplyTransposed(float scale, ConstRows a, ConstRows b, Rows out) {
  TERRACE_CHECK(a.width == b.width && out.count == a.count && out.width == b.count);
  HoldBlasToOneThread();
  if (a.count == 0 || b.count == 0) return;
  if (a.count <= kFewRows) {
    for (size_t row = 0; row < a.count; ++row) {
      cblas_sgemv(CblasRowMajor, CblasNoTrans, ToBlas(b.count), ToBlas(b.width), scale, b.data,
                  ToBlas(b.stride), a.data + row * a.stride, 1, 0, out.data + row * out.stride, 1);
    }
    return;
  }
  cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasTrans, ToBlas(a.count), ToBlas(b.count),
              ToBlas(a.width), scale, a.data, ToBlas(a.stride), b.data, ToBlas(b.stride), 0,
              out.data, ToBlas(out.stride));
}

void Multiply(ConstRows a, ConstRows b, Rows out) {
  TERRACE_CHECK(a.width == b.count && out.count == a.count && out.width == b.width);
  HoldBlasToOneThread();
  if (a.count == 0 || b.width == 0) return;
  if (a.count <= kFewRows) {
    for (size_t row = 0; row < a.count; ++row) {
      cblas_sgemv(CblasRowMajor, CblasTrans, ToBlas(b.count), ToBlas(b.width), 1, b.data,
                  ToBlas(b.stride), a.data + row * a.stride, 1, 0, out.data + row * out.stride, 1);
    }
    return;
  }
  cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasNoTrans, ToBlas(a.count), ToBlas(b.width),
              ToBlas(a.width), 1, a.data, ToBlas(a.stride), b.data, ToBlas(b.stride), 0, out.data,
              ToBlas(out.stride));
}

void ApplyWeights(const Matrix& weights, absl::Span<const float> x, absl::Span<float> out) {
  TERRACE_CHECK(weights.columns > 0 && x.size() % weights.columns == 0);
  const size_t tokens = x.size() / weights.columns;
  TERRACE_CHECK_EQ(out.size(), tokens * weights.rows);
  const size_t products = tokens * weights.values.size();
  // The split depends on the shape alone, not on the machine, so that results do not either.
  const size_t tasks = std::clamp<size_t>(products / kWorthwhile, 1, kMaxTasks);
  const size_t steps = (weights.rows + kColumnStep - 1) / kColumnStep;
  const size_t columns = (steps + tasks - 1) / tasks * kColumnStep;
  const auto run = [&](size_t first) {
    const size_t count = std::min(columns, weights.rows - first);
    MultiplyTransposed(
        1, {x.data(), tokens, weights.columns, weights.columns},
        {weights.values.data() + first * weights.columns, count, weights.columns, weights.columns},
        {out.data() + first, tokens, count, weights.rows});
  };
  if (columns >= weights.rows) return run(0);
  EngineThreads().ForEach((weights.rows + columns - 1) / columns,
                          [&](size_t task, size_t) { run(task * columns); });
}

}  // namespace terrace
