#include "index/query_metric.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <random>

#include "index/key_scores.h"

// Arrays of vectors need vectors of a size that the compiler knows.
#define HWY_DISABLED_TARGETS (HWY_SVE | HWY_SVE2 | HWY_SVE_256 | HWY_SVE2_128 | HWY_RVV)

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "index/query_metric.cc"
#include "hwy/cache_control.h"
#include "hwy/foreach_target.h"  // IWYU pragma: keep
#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace terrace {
namespace HWY_NAMESPACE {
namespace {
namespace hn = hwy::HWY_NAMESPACE;

void Distances(const float* HWY_RESTRICT point, const float* HWY_RESTRICT points, size_t dimensions,
               const uint32_t* HWY_RESTRICT ids, size_t count, float* HWY_RESTRICT distances) {
  // Eight lanes at most, of which dimensions are a multiple.
  const hn::CappedTag<float, 8> floats;
  for (size_t i = 0; i < count; ++i) {
    const float* const other = points + ids[i] * dimensions;
    auto sum = hn::Zero(floats);
    for (size_t j = 0; j < dimensions; j += hn::Lanes(floats)) {
      const auto apart = hn::Sub(hn::LoadU(floats, point + j), hn::LoadU(floats, other + j));
      sum = hn::MulAdd(apart, apart, sum);
    }
    distances[i] = hn::GetLane(hn::SumOfLanes(floats, sum));
  }
}

// y += a * x.
void AddScaled(float a, const float* HWY_RESTRICT x, size_t count, float* HWY_RESTRICT y) {
  const hn::CappedTag<float, 8> floats;
  for (size_t i = 0; i < count; i += hn::Lanes(floats)) {
    hn::StoreU(hn::MulAdd(hn::Set(floats, a), hn::LoadU(floats, x + i), hn::LoadU(floats, y + i)),
               floats, y + i);
  }
}

}  // namespace
}  // namespace HWY_NAMESPACE
}  // namespace terrace
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace terrace {
namespace {

HWY_EXPORT(Distances);
HWY_EXPORT(AddScaled);

constexpr size_t kMostSamples = 4096;  // which tell 64 directions well enough
constexpr size_t kMostDimensions = 64;
constexpr size_t kIterations = 12;
constexpr double kKeptSpread = 0.98;  // of the queries' mean squared norm, by the projection
constexpr size_t kRunKeys = 1024;

void AddScaledTo(float a, const float* x, size_t count, float* y) {
  HWY_DYNAMIC_DISPATCH(AddScaled)(a, x, count, y);
}

// The mean of q q^T over some of the samples: [head_dim, head_dim].
std::vector<float> SecondMoment(absl::Span<const float> samples, size_t head_dim) {
  const size_t count = samples.size() / head_dim;
  const size_t used = std::min(count, kMostSamples);
  std::vector<float> moment(head_dim * head_dim, 0.0f);
  for (size_t s = 0; s < used; ++s) {
    const float* const query = samples.data() + s * count / used * head_dim;
    for (size_t i = 0; i < head_dim; ++i) {
      AddScaledTo(query[i] / static_cast<float>(used), query, head_dim,
                  moment.data() + i * head_dim);
    }
  }
  return moment;
}

double Norm(const float* x, size_t count) {
  return std::sqrt(std::inner_product(x, x + count, x, 0.0));
}

// Makes rows orthonormal, in order (modified Gram-Schmidt). A row without a direction of its own
// becomes zero.
void Orthonormalise(size_t rows, size_t head_dim, std::vector<float>& axes) {
  for (size_t r = 0; r < rows; ++r) {
    float* const row = axes.data() + r * head_dim;
    const double before = Norm(row, head_dim);
    for (size_t other = 0; other < r; ++other) {
      const float* const axis = axes.data() + other * head_dim;
      const double along = std::inner_product(row, row + head_dim, axis, 0.0);
      AddScaledTo(static_cast<float>(-along), axis, head_dim, row);
    }
    const double norm = Norm(row, head_dim);
    const double scale = norm > before * 1e-5 && norm > 0 ? 1 / norm : 0;
    for (size_t i = 0; i < head_dim; ++i) row[i] = static_cast<float>(row[i] * scale);
  }
}

// rows x matrix, which is symmetric.
std::vector<float> Multiply(const std::vector<float>& rows, const std::vector<float>& matrix,
                            size_t head_dim) {
  std::vector<float> product(rows.size(), 0.0f);
  for (size_t r = 0; r < rows.size() / head_dim; ++r) {
    for (size_t i = 0; i < head_dim; ++i) {
      AddScaledTo(rows[r * head_dim + i], matrix.data() + i * head_dim, head_dim,
                  product.data() + r * head_dim);
    }
  }
  return product;
}

}  // namespace

// The leading eigenvectors of the second moment by orthogonal iteration (Golub and Van Loan, Matrix
// Computations, section 8.2.4), each scaled by the root of its eigenvalue. Few iterations do: what
// matters is the space that they span.
QueryMetric::QueryMetric(absl::Span<const float> samples, size_t head_dim) {
  const std::vector<float> moment = SecondMoment(samples, head_dim);
  double spread = 0;
  for (size_t i = 0; i < head_dim; ++i) spread += double{moment[i * head_dim + i]};
  const size_t most = std::min(kMostDimensions, head_dim);
  axes_.resize(most * head_dim);
  std::mt19937 random(1);
  std::normal_distribution<float> normal;
  for (float& element : axes_) element = normal(random);
  std::vector<float> images;
  for (size_t i = 0; i <= kIterations; ++i) {
    Orthonormalise(most, head_dim, axes_);
    images = Multiply(axes_, moment, head_dim);
    if (i < kIterations) axes_ = images;
  }
  double kept = 0;
  dimensions_ = 0;
  for (size_t axis = 0; axis < most; ++axis) {
    float* const row = axes_.data() + axis * head_dim;
    const double eigenvalue = std::max(
        0.0, std::inner_product(row, row + head_dim, images.data() + axis * head_dim, 0.0));
    if (axis % 8 == 0 && axis > 0 && kept >= kKeptSpread * spread) break;
    kept += eigenvalue;
    for (size_t i = 0; i < head_dim; ++i) row[i] *= static_cast<float>(std::sqrt(eigenvalue));
    dimensions_ = axis + 1;
  }
  axes_.resize(dimensions_ * head_dim);
  axes_.shrink_to_fit();
}

std::vector<float> QueryMetric::Project(const KeyPanels& keys, size_t first,
                                        ComputePool& pool) const {
  std::vector<float> points((keys.size() - first) * dimensions_);
  const size_t runs = (keys.size() - first + kRunKeys - 1) / kRunKeys;
  pool.ForEach(runs, [&](size_t run, size_t) {
    const size_t end = std::min(keys.size(), first + (run + 1) * kRunKeys);
    for (size_t key = first + run * kRunKeys; key < end;) {
      const size_t count = std::min(keys.Run(key), end - key);
      ScoreRun(axes_, keys.head_dim(), keys.key(key), keys.dtype(), count,
               points.data() + (key - first) * dimensions_);
      key += count;
    }
  });
  return points;
}

void SquaredDistances(const float* point, const float* points, size_t dimensions,
                      absl::Span<const uint32_t> ids, float* distances) {
  HWY_DYNAMIC_DISPATCH(Distances)
  (point, points, dimensions, ids.data(), ids.size(), distances);
}

}  // namespace terrace
#endif  // HWY_ONCE
