#include "index/query_space.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <utility>

#include "index/key_scores.h"
#include "index/kv_convert.h"

namespace terrace {
namespace {

// Of the variance of inner products, what the directions that are left out may hold.
constexpr double kNeglectedShare = 0.02;
constexpr double kRounding = 1e-10;
// Sums over so many keys and queries tell the moments well enough.
constexpr size_t kMomentRows = 8192;
constexpr size_t kMomentRun = 64;

// E[x x^T] over at most kMomentRows rows, in evenly spaced runs of kMomentRun, since rows of the
// heads of a group may alternate: [n, n].
std::vector<double> SecondMoment(absl::Span<const float> rows, size_t n) {
  const size_t count = rows.size() / n;
  const size_t used = std::min(count, kMomentRows);
  std::vector<double> moment(n * n);
  std::vector<float> sums(n * n);
  for (size_t begin = 0; begin < used; begin += kMomentRun) {
    const size_t run = std::min(kMomentRun, used - begin);
    // The last run ends at most where the rows do.
    const size_t first = begin * (count - run) / std::max<size_t>(used - run, 1);
    for (size_t i = first; i < first + run; ++i) {
      const float* const row = rows.data() + i * n;
      for (size_t a = 0; a < n; ++a) {
        for (size_t b = 0; b < n; ++b) sums[a * n + b] += row[a] * row[b];
      }
    }
    // Short sums in fp32 are fast, and those of fp64 lose nothing.
    for (size_t j = 0; j < n * n; ++j) moment[j] += double{std::exchange(sums[j], 0.0f)};
  }
  for (double& element : moment) element /= static_cast<double>(used);
  return moment;
}

// Eigenvalues and eigenvectors (rows of `vectors`) of the symmetric [n, n] matrix by cyclic Jacobi
// rotations (Golub and Van Loan, Matrix Computations, 8.5.3). `matrix` becomes diagonal.
void Diagonalise(size_t n, std::vector<double>& matrix, std::vector<double>& vectors) {
  vectors.assign(n * n, 0.0);
  for (size_t i = 0; i < n; ++i) vectors[i * n + i] = 1;
  constexpr int kMaxSweeps = 30;
  constexpr double kEnough = 1e-18;  // of the squared norm
  const double norm = std::inner_product(matrix.begin(), matrix.end(), matrix.begin(), 0.0);
  for (int sweep = 0; sweep < kMaxSweeps; ++sweep) {
    double off = 0;
    for (size_t p = 0; p < n; ++p) {
      for (size_t q = p + 1; q < n; ++q) off += matrix[p * n + q] * matrix[p * n + q];
    }
    if (off <= kEnough * norm) return;
    for (size_t p = 0; p < n; ++p) {
      for (size_t q = p + 1; q < n; ++q) {
        const double across = matrix[p * n + q];
        if (across == 0) continue;
        const double theta = (matrix[q * n + q] - matrix[p * n + p]) / (2 * across);
        const double t = (theta >= 0 ? 1 : -1) / (std::abs(theta) + std::sqrt(theta * theta + 1));
        const double c = 1 / std::sqrt(t * t + 1);
        const double s = t * c;
        double* const row_p = matrix.data() + p * n;
        double* const row_q = matrix.data() + q * n;
        double* const vector_p = vectors.data() + p * n;
        double* const vector_q = vectors.data() + q * n;
        for (size_t i = 0; i < n; ++i) {
          const double a = row_p[i];
          row_p[i] = c * a - s * row_q[i];
          row_q[i] = s * a + c * row_q[i];
          const double v = vector_p[i];
          vector_p[i] = c * v - s * vector_q[i];
          vector_q[i] = s * v + c * vector_q[i];
        }
        for (size_t i = 0; i < n; ++i) {
          const double a = matrix[i * n + p];
          matrix[i * n + p] = c * a - s * matrix[i * n + q];
          matrix[i * n + q] = s * a + c * matrix[i * n + q];
        }
      }
    }
  }
}

std::vector<float> SomeKeys(const KeyPanels& keys) {
  const size_t used = std::min(keys.size(), kMomentRows);
  std::vector<float> out(used * keys.head_dim());
  for (size_t i = 0; i < used; ++i) {
    DecodeKv(keys.key(i * keys.size() / used), keys.dtype(), keys.head_dim(),
             out.data() + i * keys.head_dim());
  }
  return out;
}

// The variance of x . direction over the rows.
double VarianceAlong(absl::Span<const float> rows, size_t n, const double* direction) {
  double sum = 0;
  double squares = 0;
  for (size_t i = 0; i < rows.size(); i += n) {
    const double along = std::inner_product(direction, direction + n, rows.data() + i, 0.0);
    sum += along;
    squares += along * along;
  }
  const auto count = static_cast<double>(std::max<size_t>(rows.size() / n, 1));
  const double variance = squares / count - sum / count * (sum / count);
  // What rounding leaves of equal keys is none.
  return variance > kRounding * squares / count ? variance : 0;
}

}  // namespace

QuerySpace::QuerySpace(size_t head_dim) : head_dim_(head_dim), dimensions_(head_dim) {}

QuerySpace::QuerySpace(size_t head_dim, std::vector<float> matrix)
    : head_dim_(head_dim),
      dimensions_(matrix.empty() ? head_dim : matrix.size() / head_dim),
      matrix_(std::move(matrix)) {
  SetWeights();
}

QuerySpace::QuerySpace(absl::Span<const float> samples, const KeyPanels& keys)
    : head_dim_(keys.head_dim()), dimensions_(keys.head_dim()) {
  const size_t n = head_dim_;
  std::vector<double> moment = SecondMoment(samples, n);
  std::vector<double> vectors;
  Diagonalise(n, moment, vectors);

  // What each direction adds to the variance of inner products, over queries and keys.
  const std::vector<float> some_keys = SomeKeys(keys);
  std::vector<double> shares(n);
  for (size_t i = 0; i < n; ++i) {
    shares[i] = std::max(0.0, moment[i * n + i]) * VarianceAlong(some_keys, n, &vectors[i * n]);
  }
  std::vector<size_t> order(n);
  std::iota(order.begin(), order.end(), size_t{0});
  std::stable_sort(order.begin(), order.end(),
                   [&](size_t a, size_t b) { return shares[a] > shares[b]; });
  double rest = std::accumulate(shares.begin(), shares.end(), 0.0);
  // Queries or keys that are all alike say nothing about directions.
  if (!(rest > 0) || !std::isfinite(rest)) return;
  const double neglected = rest * kNeglectedShare;
  dimensions_ = 0;
  while (rest > neglected && dimensions_ < n && shares[order[dimensions_]] > 0) {
    rest -= shares[order[dimensions_++]];
  }
  matrix_.resize(dimensions_ * n);
  for (size_t i = 0; i < dimensions_; ++i) {
    const double root = std::sqrt(moment[order[i] * n + order[i]]);
    for (size_t j = 0; j < n; ++j) {
      matrix_[i * n + j] = static_cast<float>(root * vectors[order[i] * n + j]);
    }
  }
  SetWeights();
}

void QuerySpace::SetWeights() {
  weights_.resize(matrix_.size() / head_dim_);
  for (size_t i = 0; i < weights_.size(); ++i) {
    const float* const row = matrix_.data() + i * head_dim_;
    const float squared = std::inner_product(row, row + head_dim_, row, 0.0f);
    weights_[i] = squared > 0 ? 1 / squared : 0;
  }
}

void QuerySpace::Project(const KeyPanels& keys, size_t first, size_t count, float* out) const {
  for (size_t done = 0; done < count;) {
    const size_t run = std::min(keys.Run(first + done), count - done);
    const std::byte* const from = keys.key(first + done);
    if (matrix_.empty()) {
      DecodeKv(from, keys.dtype(), run * head_dim_, out + done * head_dim_);
    } else {
      ScoreRun(matrix_, head_dim_, from, keys.dtype(), run, out + done * dimensions_);
    }
    done += run;
  }
}

void QuerySpace::Represent(absl::Span<const float> queries, float* out) const {
  const size_t rows = queries.size() / head_dim_;
  if (matrix_.empty()) {
    for (size_t i = 0; i < queries.size(); ++i) {
      out[i % head_dim_ * rows + i / head_dim_] = queries[i];
    }
    return;
  }
  ScoreRun(queries, head_dim_, matrix_.data(), KvDtype::kFloat32, dimensions_, out);
  for (size_t i = 0; i < dimensions_ * rows; ++i) out[i] *= weights_[i / rows];
}

}  // namespace terrace
