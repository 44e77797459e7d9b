#include "index/graph_entries.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <utility>

#include "index/exact_knn.h"
#include "index/key_scores.h"

namespace terrace {
namespace {

constexpr size_t kMostCentroids = 512;
constexpr size_t kBytesPerKey = 4;  // at most, of the index, for centroids and their keys
constexpr size_t kSamplesPerCentroid = 4;
constexpr size_t kKeysEach = 16;
constexpr size_t kCentroidsUsed = 8;  // by a query
constexpr size_t kIterations = 6;

void Normalise(float* row, size_t count) {
  const double norm = std::sqrt(std::inner_product(row, row + count, row, 0.0));
  if (norm == 0) return;
  for (size_t i = 0; i < count; ++i) row[i] = static_cast<float>(row[i] / norm);
}

// Spherical k-means, of centroids that begin as samples spread evenly. One that no sample is
// nearest to stays where it is.
std::vector<float> Centroids(absl::Span<const float> samples, size_t head_dim, size_t count,
                             ComputePool& pool) {
  const size_t n = samples.size() / head_dim;
  std::vector<float> centroids(count * head_dim);
  for (size_t c = 0; c < count; ++c) {
    std::copy_n(samples.data() + c * n / count * head_dim, head_dim,
                centroids.data() + c * head_dim);
  }
  for (size_t iteration = 0; iteration < kIterations; ++iteration) {
    const std::vector<uint32_t> nearest = ExactNeighbours(
        samples, KeyPanels::Contiguous(centroids.data(), count, head_dim, KvDtype::kFloat32), 1,
        pool);
    std::vector<float> sums(centroids.size(), 0.0f);
    std::vector<size_t> members(count, 0);
    for (size_t s = 0; s < n; ++s) {
      ++members[nearest[s]];
      float* const sum = sums.data() + nearest[s] * head_dim;
      for (size_t i = 0; i < head_dim; ++i) sum[i] += samples[s * head_dim + i];
    }
    for (size_t c = 0; c < count; ++c) {
      if (members[c] == 0) continue;
      Normalise(sums.data() + c * head_dim, head_dim);
      std::copy_n(sums.data() + c * head_dim, head_dim, centroids.data() + c * head_dim);
    }
  }
  return centroids;
}

}  // namespace

GraphEntries::GraphEntries(absl::Span<const float> samples, const KeyPanels& keys,
                           ComputePool& pool)
    : head_dim_(keys.head_dim()) {
  const size_t each = head_dim_ * sizeof(float) + kKeysEach * sizeof(uint32_t);
  const size_t count = std::clamp<size_t>(
      std::min(keys.size() * kBytesPerKey / each, samples.size() / head_dim_ / kSamplesPerCentroid),
      1, kMostCentroids);
  centroids_ = Centroids(samples, head_dim_, count, pool);
  keys_ = ExactNeighbours(centroids_, keys, kKeysEach, pool);
  keys_each_ = keys_.size() / count;
}

GraphEntries::GraphEntries(size_t head_dim, std::vector<float> centroids,
                           std::vector<uint32_t> keys)
    : head_dim_(head_dim), centroids_(std::move(centroids)), keys_(std::move(keys)) {
  if (!centroids_.empty()) keys_each_ = keys_.size() / centroid_count();
}

size_t GraphEntries::memory_bytes() const {
  return centroids_.capacity() * sizeof(float) + keys_.capacity() * sizeof(uint32_t);
}

size_t GraphEntries::Find(absl::Span<const float> queries, std::vector<float>& scores,
                          std::vector<uint32_t>& found) const {
  found.clear();
  if (centroids_.empty()) return 0;
  const size_t rows = queries.size() / head_dim_;
  const size_t count = centroid_count();
  const size_t used = std::min(kCentroidsUsed, count);
  scores.resize(count * rows);
  ScoreRun(queries, head_dim_, centroids_.data(), KvDtype::kFloat32, count, scores.data());
  for (size_t row = 0; row < rows; ++row) {
    size_t best[kCentroidsUsed];
    size_t taken = 0;
    for (size_t c = 0; c < count; ++c) {
      size_t at = taken;
      while (at > 0 && scores[c * rows + row] > scores[best[at - 1] * rows + row]) --at;
      if (at == used) continue;
      taken = std::min(taken + 1, used);
      std::copy_backward(best + at, best + taken - 1, best + taken);
      best[at] = c;
    }
    for (size_t i = 0; i < used; ++i) {
      const auto first = keys_.begin() + static_cast<ptrdiff_t>(best[i] * keys_each_);
      found.insert(found.end(), first, first + static_cast<ptrdiff_t>(keys_each_));
    }
  }
  return used * keys_each_;
}

}  // namespace terrace
