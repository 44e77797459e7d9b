#include "index/query_metric.h"

#include <gtest/gtest.h>

#include <cmath>
#include <numeric>
#include <random>
#include <vector>

namespace terrace {
namespace {

constexpr uint64_t kSeed = 21;

// Rows of norm 1 in the first `rank` elements.
std::vector<float> UnitQueries(size_t count, size_t head_dim, size_t rank, uint64_t seed) {
  std::mt19937_64 random(seed);
  std::normal_distribution<float> normal;
  std::vector<float> queries(count * head_dim, 0.0f);
  for (size_t row = 0; row < count; ++row) {
    float* const query = queries.data() + row * head_dim;
    for (size_t i = 0; i < rank; ++i) query[i] = normal(random) + (i == 0 ? 2 : 0);
    const float norm = std::sqrt(std::inner_product(query, query + head_dim, query, 0.0f));
    for (size_t i = 0; i < rank; ++i) query[i] /= norm;
  }
  return queries;
}

TEST(QueryMetric, DistancesAreMeanSquaresOfDifferencesOfScores) {
  constexpr size_t kHeadDim = 96;
  const std::vector<float> queries = UnitQueries(1000, kHeadDim, 12, kSeed);
  std::mt19937_64 random(kSeed + 1);
  std::normal_distribution<float> normal;
  std::vector<float> keys(40 * kHeadDim);
  for (size_t i = 0; i < keys.size(); ++i) {
    // Most of a key is where no query looks.
    keys[i] = normal(random) * (i % kHeadDim < 12 ? 1.0f : 20.0f);
  }
  ComputePool pool(2);
  const QueryMetric metric(queries, kHeadDim);
  EXPECT_EQ(metric.dimensions(), 16u);  // 12, in eights
  const std::vector<float> points =
      metric.Project(KeyPanels::Contiguous(keys.data(), 40, kHeadDim, KvDtype::kFloat32), 0, pool);
  std::vector<uint32_t> ids(40);
  std::iota(ids.begin(), ids.end(), 0u);
  std::vector<float> distances(40);
  SquaredDistances(points.data(), points.data(), metric.dimensions(), ids, distances.data());
  for (size_t key = 1; key < 40; ++key) {
    double mean = 0;
    for (size_t row = 0; row < 1000; ++row) {
      double difference = 0;
      for (size_t i = 0; i < kHeadDim; ++i) {
        difference += double{queries[row * kHeadDim + i]} *
                      (double{keys[i]} - double{keys[key * kHeadDim + i]});
      }
      mean += difference * difference / 1000;
    }
    // The axes are those of a few iterations.
    EXPECT_NEAR(distances[key], mean, 0.06 * mean) << "key " << key << ", seed " << kSeed;
  }
}

TEST(QueryMetric, TakesQueriesOfAnyRank) {
  ComputePool pool(1);
  for (const size_t head_dim : {8u, 64u, 256u}) {
    for (const size_t rank : {size_t{1}, head_dim}) {
      const QueryMetric metric(UnitQueries(500, head_dim, rank, kSeed), head_dim);
      EXPECT_EQ(metric.dimensions() % 8, 0u);
      EXPECT_LE(metric.dimensions(), 64u);
      const std::vector<float> key(head_dim, 1.0f);
      for (const float element : metric.Project(
               KeyPanels::Contiguous(key.data(), 1, head_dim, KvDtype::kFloat32), 0, pool)) {
        EXPECT_TRUE(std::isfinite(element));
      }
    }
  }
}

}  // namespace
}  // namespace terrace
