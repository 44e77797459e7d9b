#include "index/segment_clusters.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <utility>

#include "absl/strings/str_cat.h"
#include "index/balanced_assignment.h"
#include "index/nearest_centroid.h"

namespace terrace {
namespace {

// Lloyd's algorithm on points around zero.
class KMeans {
 public:
  KMeans(std::vector<float> points, size_t dimensions, size_t clusters)
      : points_(std::move(points)),
        dimensions_(dimensions),
        count_(points_.size() / dimensions),
        clusters_(clusters),
        centroids_(clusters * dimensions),
        biases_(clusters),
        labels_(count_) {
    for (size_t c = 0; c < clusters_; ++c) {
      std::copy_n(points_.data() + (2 * c + 1) * count_ / (2 * clusters_) * dimensions_,
                  dimensions_, centroids_.data() + c * dimensions_);
    }
    SetBiases();
  }

  void Assign() {
    FindNearestCentroids(points_.data(), count_, centroids_.data(), biases_.data(), clusters_,
                         dimensions_, labels_.data());
  }
  void AssignEqually() {
    AssignBalanced(points_.data(), count_, centroids_.data(), biases_.data(), clusters_,
                   dimensions_, labels_.data());
  }
  // Centroids become the means of their points; one without points stays.
  void Move() {
    std::vector<float> sums(clusters_ * dimensions_);
    std::vector<uint32_t> sizes(clusters_);
    for (size_t i = 0; i < count_; ++i) {
      float* const sum = sums.data() + labels_[i] * dimensions_;
      const float* const point = points_.data() + i * dimensions_;
      for (size_t d = 0; d < dimensions_; ++d) sum[d] += point[d];
      ++sizes[labels_[i]];
    }
    for (size_t c = 0; c < clusters_; ++c) {
      if (sizes[c] == 0) continue;
      const float share = 1 / static_cast<float>(sizes[c]);
      for (size_t d = 0; d < dimensions_; ++d) {
        centroids_[c * dimensions_ + d] = sums[c * dimensions_ + d] * share;
      }
    }
    SetBiases();
  }

  const std::vector<uint32_t>& labels() const { return labels_; }
  const float* point(size_t i) const { return points_.data() + i * dimensions_; }
  const float* centroid(size_t c) const { return centroids_.data() + c * dimensions_; }

 private:
  void SetBiases() {
    for (size_t c = 0; c < clusters_; ++c) {
      const float* const row = centroid(c);
      biases_[c] = -0.5f * std::inner_product(row, row + dimensions_, row, 0.0f);
    }
  }

  const std::vector<float> points_;  // [count, dimensions]
  const size_t dimensions_;
  const size_t count_;
  const size_t clusters_;
  std::vector<float> centroids_;  // [clusters, dimensions]
  std::vector<float> biases_;     // [clusters], which make the largest sum that of the nearest
  std::vector<uint32_t> labels_;  // [count]
};

// The points without their mean, which makes differences exact where keys have a large common part.
std::vector<float> CenteredPoints(const KeyPanels& keys, size_t first, size_t count,
                                  const QuerySpace& space) {
  const size_t dimensions = space.dimensions();
  std::vector<float> points(count * dimensions);
  space.Project(keys, first, count, points.data());
  std::vector<double> mean(dimensions);
  for (size_t i = 0; i < count; ++i) {
    for (size_t d = 0; d < dimensions; ++d) mean[d] += double{points[i * dimensions + d]};
  }
  for (double& element : mean) element /= static_cast<double>(count);
  for (size_t i = 0; i < count; ++i) {
    for (size_t d = 0; d < dimensions; ++d) {
      points[i * dimensions + d] -= static_cast<float>(mean[d]);
    }
  }
  return points;
}

// Keys by cluster.
void Arrange(const KMeans& means, size_t dimensions, size_t clusters, SegmentClusters& out) {
  const size_t keys = means.labels().size();
  const size_t cluster_keys = keys / clusters;
  std::vector<size_t> taken(clusters);
  out.order.resize(keys);
  out.spreads.assign(clusters, 0.0f);
  std::vector<double> shape(dimensions);
  for (size_t i = 0; i < keys; ++i) {
    const uint32_t label = means.labels()[i];
    out.order[label * cluster_keys + taken[label]++] = static_cast<uint16_t>(i);
    float distance = 0;
    for (size_t d = 0; d < dimensions; ++d) {
      const float off = means.point(i)[d] - means.centroid(label)[d];
      distance += off * off;
      shape[d] += double{off} * double{off};
    }
    out.spreads[label] += distance / static_cast<float>(cluster_keys);
  }
  // Squares of huge keys overflow; such clusters have no known spread.
  for (float& spread : out.spreads) spread = std::isfinite(spread) ? spread : 0;
  const double total = std::accumulate(shape.begin(), shape.end(), 0.0);
  out.shape.assign(dimensions, 0.0f);
  for (size_t d = 0; d < dimensions && total > 0 && std::isfinite(total); ++d) {
    out.shape[d] = static_cast<float>(shape[d] / total);
  }
}

void Encode(const KMeans& means, size_t dimensions, const ResidualShape& shape,
            SegmentClusters& out) {
  if (shape.bits == 0) return;
  const std::vector<uint16_t> coded = CodedDimensions(shape, out.shape);
  std::vector<float> residual(dimensions);
  out.codes.assign(shape.size(out.order.size()), uint16_t{0});
  for (size_t place = 0; place < out.order.size(); ++place) {
    const size_t cluster = place / out.cluster_keys();
    const float* const point = means.point(out.order[place]);
    for (size_t d = 0; d < dimensions; ++d) residual[d] = point[d] - means.centroid(cluster)[d];
    EncodeResidual(shape, coded, out.shape, out.spreads[cluster], residual.data(), place,
                   out.codes.data());
  }
}

}  // namespace

absl::Status ClusteringOptions::Validate() const {
  if (cluster_keys == 0 || cluster_keys > kMaxClusterKeys) {
    return absl::InvalidArgumentError(
        absl::StrCat("cluster_keys is ", cluster_keys, ", expected 1 to ", kMaxClusterKeys));
  }
  if (iterations == 0) return absl::InvalidArgumentError("iterations is 0, expected 1 or more");
  return absl::OkStatus();
}

SegmentClusters ClusterSegment(const KeyPanels& keys, size_t first, size_t count,
                               const QuerySpace& space, const ClusteringOptions& options,
                               const ResidualShape& residuals) {
  const size_t clusters = count / options.cluster_keys;
  KMeans means(CenteredPoints(keys, first, count, space), space.dimensions(), clusters);
  for (size_t i = 0; i < options.iterations; ++i) {
    means.Assign();
    means.Move();
  }
  means.AssignEqually();
  means.Move();
  SegmentClusters out;
  Arrange(means, space.dimensions(), clusters, out);
  Encode(means, space.dimensions(), residuals, out);
  return out;
}

}  // namespace terrace
