#ifndef TERRACE_INDEX_QUERY_METRIC_H_
#define TERRACE_INDEX_QUERY_METRIC_H_

#include <cstddef>
#include <cstdint>
#include <utility>
#include <vector>

#include "absl/types/span.h"
#include "index/compute_pool.h"
#include "index/key_panels.h"

namespace terrace {

// How far apart queries see two keys: the mean over the sample queries q of (q . (a - b))^2, which
// is a squared Euclidean distance between projections of the keys. Keys of attention heads vary
// mostly in directions that no query looks at; this metric does not see those, so that near means
// "found by the same queries". Queries vary in few directions, so a projection is short.
//
// Constant after construction, so thread-safe.
class QueryMetric {
 public:
  // `samples` is [n, head_dim], not empty, of norms that are 1: which keys are best does not depend
  // on the norm of a query.
  QueryMetric(absl::Span<const float> samples, size_t head_dim);

  // From axes() of another.
  static QueryMetric FromAxes(std::vector<float> axes, size_t head_dim) {
    QueryMetric metric;
    metric.dimensions_ = axes.size() / head_dim;
    metric.axes_ = std::move(axes);
    return metric;
  }
  // [dimensions, head_dim]
  const std::vector<float>& axes() const { return axes_; }

  // Elements of a projection, a multiple of 8, from 8 to 64.
  size_t dimensions() const { return dimensions_; }
  size_t memory_bytes() const { return axes_.capacity() * sizeof(float); }
  // Projections of the keys from `first` on: [keys.size() - first, dimensions()].
  std::vector<float> Project(const KeyPanels& keys, size_t first, ComputePool& pool) const;

 private:
  QueryMetric() = default;

  size_t dimensions_ = 0;
  std::vector<float> axes_;  // [dimensions, head_dim], each as long as queries spread along it
};

// Squared Euclidean distances between one point and those of `points` with these ids. Points are
// [n, dimensions], dimensions a multiple of 8; `distances` is [ids]. Thread-safe.
void SquaredDistances(const float* point, const float* points, size_t dimensions,
                      absl::Span<const uint32_t> ids, float* distances);

}  // namespace terrace

#endif  // TERRACE_INDEX_QUERY_METRIC_H_
