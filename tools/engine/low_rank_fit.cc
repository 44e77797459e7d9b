#include "tools/engine/low_rank_fit.h"

#include <algorithm>
#include <cmath>

#include "absl/strings/str_cat.h"
#include "cblas.h"
#include "index/kv_convert.h"
#include "io/check.h"

// LAPACK's, in Fortran's calling convention; part of OpenBLAS.
extern "C" void dsyevd_(const char* jobz, const char* uplo, const blasint* n, double* a,
                        const blasint* lda, double* w, double* work, const blasint* lwork,
                        blasint* iwork, const blasint* liwork, blasint* info);

namespace terrace {
namespace {

using Doubles = std::vector<double>;

// Products of row-major matrices: a [m, k], or [k, m] transposed, times b [k, n], or [n, k].
Doubles Product(const Doubles& a, CBLAS_TRANSPOSE a_as, const Doubles& b, CBLAS_TRANSPOSE b_as,
                size_t m, size_t n, size_t k) {
  Doubles out(m * n);
  const auto blas = [](size_t size) { return static_cast<blasint>(size); };
  cblas_dgemm(CblasRowMajor, a_as, b_as, blas(m), blas(n), blas(k), 1, a.data(),
              blas(a_as == CblasNoTrans ? k : m), b.data(), blas(b_as == CblasNoTrans ? n : k), 0,
              out.data(), blas(n));
  return out;
}

// Of a symmetric matrix [n, n].
struct Eigen {
  Doubles values;   // [n], ascending
  Doubles vectors;  // [n, n], a row each
};

absl::StatusOr<Eigen> Decompose(Doubles matrix, size_t n) {
  Eigen eigen;
  eigen.values.resize(n);
  const auto size = static_cast<blasint>(n);
  blasint info = 0;
  double wanted_work = 0;
  blasint wanted_integers = 0;
  const blasint ask = -1;
  dsyevd_("V", "U", &size, matrix.data(), &size, eigen.values.data(), &wanted_work, &ask,
          &wanted_integers, &ask, &info);
  if (info == 0) {
    Doubles work(static_cast<size_t>(wanted_work) + 1);
    std::vector<blasint> integers(static_cast<size_t>(wanted_integers) + 1);
    const auto work_size = static_cast<blasint>(work.size());
    const auto integer_size = static_cast<blasint>(integers.size());
    dsyevd_("V", "U", &size, matrix.data(), &size, eigen.values.data(), work.data(), &work_size,
            integers.data(), &integer_size, &info);
  }
  if (info != 0) {
    return absl::InternalError(absl::StrCat("low-rank fit: eigenvalues: LAPACK says ", info));
  }
  // Fortran's columns are rows here.
  eigen.vectors = std::move(matrix);
  return eigen;
}

// vectors^T diag(f(values)) vectors.
template <typename Function>
Doubles Rebuild(const Eigen& eigen, size_t n, Function f) {
  Doubles scaled = eigen.vectors;
  for (size_t i = 0; i < n; ++i) {
    const double factor = f(eigen.values[i]);
    for (size_t j = 0; j < n; ++j) scaled[i * n + j] *= factor;
  }
  return Product(eigen.vectors, CblasTrans, scaled, CblasNoTrans, n, n, n);
}

// With a little added to the diagonal, so that it can be inverted.
Doubles Covariance(const InputMoments& moments, size_t n) {
  const double tokens = static_cast<double>(moments.tokens);
  Doubles covariance(n * n);
  double trace = 0;
  for (size_t i = 0; i < n; ++i) {
    for (size_t j = 0; j < n; ++j) {
      covariance[i * n + j] =
          moments.products[i * n + j] / tokens - moments.sum[i] / tokens * moments.sum[j] / tokens;
    }
    trace += covariance[i * n + i];
  }
  const double ridge = std::max(1e-5 * trace / static_cast<double>(n), 1e-12);
  for (size_t i = 0; i < n; ++i) covariance[i * n + i] += ridge;
  return covariance;
}

absl::Status ToHalf(const Doubles& values, std::vector<uint16_t>& halves) {
  const std::vector<float> floats(values.begin(), values.end());
  halves.resize(values.size());
  const auto bad =
      EncodeKv(floats.data(), KvDtype::kFloat32, KvDtype::kFloat16, floats.size(), halves.data());
  if (!bad.has_value()) return absl::OkStatus();
  return absl::InternalError(
      absl::StrCat("low-rank fit: the factor ", floats[*bad], " is not finite in fp16"));
}

// Gives each row of a the largest element 1, at the expense of b's columns, so that neither leaves
// the range of fp16.
void Balance(size_t neurons, size_t rank, size_t width, Doubles& a, Doubles& b) {
  for (size_t i = 0; i < rank; ++i) {
    double largest = 0;
    for (size_t j = 0; j < width; ++j) largest = std::max(largest, std::abs(a[i * width + j]));
    if (largest == 0) continue;
    for (size_t j = 0; j < width; ++j) a[i * width + j] /= largest;
    for (size_t j = 0; j < neurons; ++j) b[j * rank + i] *= largest;
  }
}

}  // namespace

void InputMoments::Add(absl::Span<const float> x, size_t width) {
  TERRACE_CHECK_EQ(x.size() % width, 0);
  sum.resize(width);
  products.resize(width * width);
  const Doubles rows(x.begin(), x.end());
  const size_t count = rows.size() / width;
  openblas_set_num_threads(1);
  cblas_dgemm(CblasRowMajor, CblasTrans, CblasNoTrans, static_cast<blasint>(width),
              static_cast<blasint>(width), static_cast<blasint>(count), 1, rows.data(),
              static_cast<blasint>(width), rows.data(), static_cast<blasint>(width), 1,
              products.data(), static_cast<blasint>(width));
  for (size_t i = 0; i < rows.size(); ++i) sum[i % width] += rows[i];
  tokens += count;
}

absl::StatusOr<LowRankFit> FitLowRank(const Matrix& gate, const InputMoments& moments,
                                      uint32_t rank) {
  const size_t width = gate.columns;
  const size_t neurons = gate.rows;
  if (moments.tokens == 0) return absl::InvalidArgumentError("low-rank fit: no tokens");
  if (rank < 1 || rank > width) {
    return absl::InvalidArgumentError(
        absl::StrCat("low-rank fit: rank: ", rank, " is not from 1 to ", width));
  }
  // LAPACK need not come to an end with what is no number.
  const auto finite = [](const auto& values) {
    return std::all_of(values.begin(), values.end(), [](auto v) { return std::isfinite(v); });
  };
  if (!finite(moments.products) || !finite(gate.values)) {
    return absl::InvalidArgumentError("low-rank fit: inputs or weights are not finite");
  }
  openblas_set_num_threads(1);
  const Doubles weights(gate.values.begin(), gate.values.end());
  absl::StatusOr<Eigen> inputs = Decompose(Covariance(moments, width), width);
  if (!inputs.ok()) return inputs.status();
  const double least = 1e-9 * std::max(inputs->values.back(), 1e-30);
  const auto root = [least](double value) { return std::sqrt(std::max(value, least)); };
  const Doubles whiten = Rebuild(*inputs, width, root);
  const Doubles color = Rebuild(*inputs, width, [&](double value) { return 1 / root(value); });

  // The right singular vectors of M = G S are the eigenvectors of M^T M.
  const Doubles m = Product(weights, CblasNoTrans, whiten, CblasNoTrans, neurons, width, width);
  absl::StatusOr<Eigen> right =
      Decompose(Product(m, CblasTrans, m, CblasNoTrans, width, width, neurons), width);
  if (!right.ok()) return right.status();
  const Doubles strongest(right->vectors.end() - static_cast<std::ptrdiff_t>(rank * width),
                          right->vectors.end());
  Doubles a = Product(strongest, CblasNoTrans, color, CblasNoTrans, rank, width, width);
  Doubles b = Product(m, CblasNoTrans, strongest, CblasTrans, neurons, rank, width);

  LowRankFit fit;
  fit.rank = rank;
  Doubles mean = moments.sum;
  for (double& value : mean) value /= static_cast<double>(moments.tokens);
  const Doubles reduced_mean = Product(a, CblasNoTrans, mean, CblasNoTrans, rank, 1, width);
  for (size_t j = 0; j < neurons; ++j) {
    double offset = 0;
    double lacking = 0;  // |row of M|^2 less that of its projection
    for (size_t i = 0; i < width; ++i) {
      offset += weights[j * width + i] * mean[i];
      lacking += m[j * width + i] * m[j * width + i];
    }
    for (size_t i = 0; i < rank; ++i) {
      offset -= b[j * rank + i] * reduced_mean[i];
      lacking -= b[j * rank + i] * b[j * rank + i];
    }
    fit.offset.push_back(static_cast<float>(offset));
    fit.residual.push_back(static_cast<float>(std::sqrt(std::max(lacking, 1e-12))));
  }
  Balance(neurons, rank, width, a, b);
  absl::Status status = ToHalf(a, fit.a);
  if (status.ok()) status = ToHalf(b, fit.b);
  if (!status.ok()) return status;
  return fit;
}

}  // namespace terrace
