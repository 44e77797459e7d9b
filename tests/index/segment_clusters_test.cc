#include "index/segment_clusters.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <numeric>
#include <random>
#include <vector>

#include "absl/strings/str_cat.h"
#include "hwy/targets.h"
#include "index/balanced_assignment.h"
#include "index/nearest_centroid.h"
#include "index/query_space.h"

namespace terrace {
namespace {

constexpr size_t kHeadDim = 32;

std::vector<float> Normals(size_t count, uint64_t seed) {
  std::mt19937_64 random(seed);
  std::normal_distribution<float> normal;
  std::vector<float> out(count);
  for (float& element : out) element = normal(random);
  return out;
}

KeyPanels Panels(const std::vector<float>& keys, size_t head_dim = kHeadDim) {
  return KeyPanels::Contiguous(keys.data(), keys.size() / head_dim, head_dim, KvDtype::kFloat32);
}

SegmentClusters Cluster(const std::vector<float>& keys, const QuerySpace& space,
                        size_t cluster_keys = 16) {
  return ClusterSegment(Panels(keys), 0, keys.size() / kHeadDim, space,
                        {.cluster_keys = cluster_keys});
}

void ExpectPartition(const SegmentClusters& clusters, size_t count, size_t cluster_keys) {
  std::vector<uint16_t> sorted = clusters.order;
  std::sort(sorted.begin(), sorted.end());
  std::vector<uint16_t> all(count);
  std::iota(all.begin(), all.end(), uint16_t{0});
  EXPECT_EQ(sorted, all);
  ASSERT_EQ(clusters.clusters(), count / cluster_keys);
  ASSERT_EQ(clusters.cluster_keys(), cluster_keys);
  for (size_t c = 0; c < clusters.clusters(); ++c) {
    const absl::Span<const uint16_t> members = clusters.members(c);
    ASSERT_EQ(members.size(), cluster_keys);
    EXPECT_TRUE(std::is_sorted(members.begin(), members.end()));
  }
}

double SquaredDistance(const float* a, const float* b, size_t n) {
  double sum = 0;
  for (size_t i = 0; i < n; ++i) sum += (double{a[i]} - b[i]) * (double{a[i]} - b[i]);
  return sum;
}

TEST(SegmentClustersTest, EveryClusterHasEquallyManyKeys) {
  struct Case {
    size_t count, cluster_keys;
  };
  for (const Case& at : {Case{1, 1},
                         {16, 16},
                         {7, 7},
                         {14, 7},
                         {100, 10},
                         {1008, 16},
                         {600, 1},
                         {8192, 16},
                         {8192, 4096},
                         {8190, 15}}) {
    SCOPED_TRACE(absl::StrCat(at.count, " keys in clusters of ", at.cluster_keys));
    const std::vector<float> keys = Normals(at.count * kHeadDim, at.count);
    const SegmentClusters clusters = Cluster(keys, QuerySpace(kHeadDim), at.cluster_keys);
    ExpectPartition(clusters, at.count, at.cluster_keys);
    const SegmentClusters again = Cluster(keys, QuerySpace(kHeadDim), at.cluster_keys);
    EXPECT_EQ(clusters.order, again.order);
    EXPECT_EQ(clusters.spreads, again.spreads);
  }
}

TEST(SegmentClustersTest, SpreadsAndShapeAreThoseOfTheKeys) {
  const size_t count = 608;
  const std::vector<float> keys = Normals(count * kHeadDim, 5);
  const SegmentClusters clusters = Cluster(keys, QuerySpace(kHeadDim));
  std::vector<double> shape(kHeadDim);
  double total = 0;
  for (size_t c = 0; c < clusters.clusters(); ++c) {
    std::vector<double> mean(kHeadDim);
    for (const uint16_t i : clusters.members(c)) {
      for (size_t d = 0; d < kHeadDim; ++d) mean[d] += double{keys[i * kHeadDim + d]} / 16;
    }
    double spread = 0;
    for (const uint16_t i : clusters.members(c)) {
      for (size_t d = 0; d < kHeadDim; ++d) {
        const double off = double{keys[i * kHeadDim + d]} - mean[d];
        spread += off * off / 16;
        shape[d] += off * off;
        total += off * off;
      }
    }
    EXPECT_NEAR(clusters.spreads[c], spread, 1e-4 * (1 + spread));
  }
  for (size_t d = 0; d < kHeadDim; ++d) EXPECT_NEAR(clusters.shape[d], shape[d] / total, 1e-4);
}

TEST(SegmentClustersTest, NeighboursThatAreAlikeShareAClusterEvenFarFromZero) {
  // 64 groups of 16 tokens; the offset that all have in common is far larger than the groups are
  // apart.
  const std::vector<float> centres = Normals(64 * kHeadDim, 6);
  std::vector<float> keys = Normals(1024 * kHeadDim, 7);
  for (size_t i = 0; i < 1024; ++i) {
    for (size_t d = 0; d < kHeadDim; ++d) {
      keys[i * kHeadDim + d] =
          100 + centres[i / 16 * kHeadDim + d] + 0.01f * keys[i * kHeadDim + d];
    }
  }
  const SegmentClusters clusters = Cluster(keys, QuerySpace(kHeadDim));
  ASSERT_EQ(clusters.clusters(), 64u);
  for (size_t i = 0; i < 1024; ++i) EXPECT_EQ(clusters.order[i] / 16, i / 16);
  for (const float spread : clusters.spreads) EXPECT_LT(spread, 0.01);
}

TEST(SegmentClustersTest, EqualKeysFillClustersThatAreTight) {
  for (const float element : {0.0f, 3.0f}) {
    const SegmentClusters clusters =
        Cluster(std::vector<float>(512 * kHeadDim, element), QuerySpace(kHeadDim));
    ExpectPartition(clusters, 512, 16);
    for (const float spread : clusters.spreads) EXPECT_EQ(spread, 0);
  }
}

TEST(SegmentClustersTest, HugeKeysAreClusteredSomehow) {
  std::vector<float> keys = Normals(1024 * kHeadDim, 8);
  for (float& element : keys) element = element > 0 ? 3e38f : -3e38f;
  const SegmentClusters clusters = Cluster(keys, QuerySpace(kHeadDim));
  ExpectPartition(clusters, 1024, 16);
  for (const float spread : clusters.spreads) EXPECT_TRUE(std::isfinite(spread));
  for (const float share : clusters.shape) EXPECT_TRUE(std::isfinite(share));
}

TEST(SegmentClustersTest, TakesAnyPartOfPanels) {
  const std::vector<float> keys = Normals(300 * kHeadDim, 9);
  KeyPanels panels(kHeadDim, KvDtype::kFloat32, 64);
  for (size_t i = 0; i < 300; i += 64) {
    panels.Add(keys.data() + i * kHeadDim, std::min<size_t>(64, 300 - i));
  }
  const SegmentClusters split = ClusterSegment(panels, 50, 208, QuerySpace(kHeadDim), {});
  const SegmentClusters whole = ClusterSegment(Panels(keys), 50, 208, QuerySpace(kHeadDim), {});
  ExpectPartition(split, 208, 16);
  EXPECT_EQ(split.order, whole.order);
  EXPECT_EQ(split.spreads, whole.spreads);
}

TEST(BalancedAssignmentTest, NoPointAndCentroidWouldBothRatherHaveEachOther) {
  constexpr size_t kCentroids = 12;  // all are on every list
  constexpr size_t kCapacity = 9;
  constexpr size_t kPoints = kCentroids * kCapacity;
  const std::vector<float> points = Normals(kPoints * kHeadDim, 70);
  const std::vector<float> centroids = Normals(kCentroids * kHeadDim, 71);
  std::vector<float> biases(kCentroids);
  for (size_t c = 0; c < kCentroids; ++c) {
    const float* const row = centroids.data() + c * kHeadDim;
    biases[c] = -0.5f * std::inner_product(row, row + kHeadDim, row, 0.0f);
  }
  std::vector<uint32_t> labels(kPoints);
  AssignBalanced(points.data(), kPoints, centroids.data(), biases.data(), kCentroids, kHeadDim,
                 labels.data());
  const auto distance = [&](size_t point, size_t centroid) {
    return SquaredDistance(points.data() + point * kHeadDim, centroids.data() + centroid * kHeadDim,
                           kHeadDim);
  };
  std::vector<double> farthest(kCentroids);
  for (size_t i = 0; i < kPoints; ++i) {
    farthest[labels[i]] = std::max(farthest[labels[i]], distance(i, labels[i]));
  }
  for (size_t c = 0; c < kCentroids; ++c) {
    EXPECT_EQ(std::count(labels.begin(), labels.end(), c), kCapacity);
    for (size_t i = 0; i < kPoints; ++i) {
      if (distance(i, c) < distance(i, labels[i]) - 1e-4) {
        EXPECT_GE(distance(i, c), farthest[c] - 1e-4) << "point " << i << ", centroid " << c;
      }
    }
  }
}

// Queries in three directions, of different sizes.
std::vector<float> NarrowQueries(size_t count, uint64_t seed) {
  const std::vector<float> directions = Normals(3 * kHeadDim, 77);
  const std::vector<float> amounts = Normals(3 * count, seed);
  std::vector<float> queries(count * kHeadDim);
  for (size_t i = 0; i < count; ++i) {
    for (size_t j = 0; j < 3; ++j) {
      for (size_t d = 0; d < kHeadDim; ++d) {
        queries[i * kHeadDim + d] +=
            amounts[3 * i + j] * static_cast<float>(j + 1) * directions[j * kHeadDim + d];
      }
    }
  }
  return queries;
}

TEST(QuerySpaceTest, DistancesAreExpectedDifferencesOfInnerProducts) {
  const std::vector<float> queries = NarrowQueries(500, 10);
  const std::vector<float> keys = Normals(200 * kHeadDim, 11);
  const QuerySpace space(queries, Panels(keys));
  EXPECT_EQ(space.dimensions(), 3u);
  std::vector<float> points(200 * space.dimensions());
  space.Project(Panels(keys), 0, 200, points.data());
  for (size_t i = 0; i + 1 < 200; ++i) {
    double expected = 0;
    for (size_t q = 0; q < 500; ++q) {
      double difference = 0;
      for (size_t d = 0; d < kHeadDim; ++d) {
        difference += double{queries[q * kHeadDim + d]} *
                      (double{keys[i * kHeadDim + d]} - keys[(i + 1) * kHeadDim + d]);
      }
      expected += difference * difference / 500;
    }
    EXPECT_NEAR(SquaredDistance(points.data() + i * 3, points.data() + (i + 1) * 3, 3), expected,
                1e-3 * expected + 1e-3);
  }
  // Inner products survive too.
  std::vector<float> represented(3);
  for (size_t q = 0; q < 500; ++q) {
    const absl::Span<const float> query(queries.data() + q * kHeadDim, kHeadDim);
    space.Represent(query, represented.data());
    const float product = std::inner_product(query.begin(), query.end(), keys.begin(), 0.0f);
    EXPECT_NEAR(std::inner_product(represented.begin(), represented.end(), points.begin(), 0.0f),
                product, 1e-3f * (1 + std::abs(product)));
  }
}

TEST(QuerySpaceTest, QueriesOfAllHeadsCountThoughTheirRowsAlternate) {
  // More rows than are looked at, each along the direction of its head.
  std::vector<float> queries(20000 * kHeadDim);
  for (size_t i = 0; i < 20000; ++i) queries[i * kHeadDim + i % 8] = i % 3 == 0 ? -1.0f : 1.0f;
  EXPECT_EQ(QuerySpace(queries, Panels(Normals(500 * kHeadDim, 70))).dimensions(), 8u);
}

TEST(QuerySpaceTest, ClustersAreTightForQueriesAndNotForKeys) {
  const std::vector<float> keys = Normals(2048 * kHeadDim, 12);
  const std::vector<float> decode_queries = NarrowQueries(20, 13);
  const auto logit_variance = [&](const SegmentClusters& clusters) {
    double sum = 0;
    for (size_t q = 0; q < 20; ++q) {
      for (size_t c = 0; c < clusters.clusters(); ++c) {
        double mean = 0;
        double squares = 0;
        const double size = 16;
        for (const uint16_t i : clusters.members(c)) {
          const double logit = std::inner_product(
              decode_queries.begin() + static_cast<ptrdiff_t>(q * kHeadDim),
              decode_queries.begin() + static_cast<ptrdiff_t>((q + 1) * kHeadDim),
              keys.begin() + i * kHeadDim, 0.0);
          mean += logit / size;
          squares += logit * logit;
        }
        sum += squares - size * mean * mean;
      }
    }
    return sum;
  };
  const double in_query_space =
      logit_variance(Cluster(keys, QuerySpace(NarrowQueries(500, 14), Panels(keys))));
  const double in_key_space = logit_variance(Cluster(keys, QuerySpace(kHeadDim)));
  EXPECT_LT(in_query_space, 0.2 * in_key_space);
}

TEST(QuerySpaceTest, QueriesThatSayNothingLeaveTheKeysSpace) {
  const std::vector<float> keys = Normals(100 * kHeadDim, 15);
  EXPECT_EQ(QuerySpace(std::vector<float>(10 * kHeadDim, 0.0f), Panels(keys)).dimensions(),
            kHeadDim);
  EXPECT_EQ(QuerySpace(NarrowQueries(10, 16), Panels(std::vector<float>(5 * kHeadDim, 1.0f)))
                .dimensions(),
            kHeadDim);
}

TEST(NearestCentroidTest, FindsTheLargestSumOnEveryInstructionSet) {
  const std::vector<int64_t> targets = hwy::SupportedAndGeneratedTargets();
  for (const int64_t target : targets) {
    SCOPED_TRACE(hwy::TargetName(target));
    hwy::SetSupportedTargetsForTest(target);
    for (const size_t dimensions : {1u, 3u, 8u, 33u}) {
      for (const size_t centroids : {1u, 2u, 31u, 33u, 100u}) {
        const std::vector<float> points = Normals(17 * dimensions, centroids);
        std::vector<float> rows = Normals(centroids * dimensions, 18);
        std::vector<float> biases = Normals(centroids, 19);
        // The last is a copy of the first, which wins ties.
        std::copy_n(rows.begin(), dimensions, rows.end() - static_cast<ptrdiff_t>(dimensions));
        biases.back() = biases.front();
        std::vector<uint32_t> labels(17);
        FindNearestCentroids(points.data(), 17, rows.data(), biases.data(), centroids, dimensions,
                             labels.data());
        std::vector<float> scores(17 * centroids);
        ScoreCentroids(points.data(), 17, rows.data(), biases.data(), centroids, dimensions,
                       scores.data());
        for (size_t p = 0; p < 17; ++p) {
          const auto sum = [&](size_t c) {
            return std::inner_product(points.begin() + static_cast<ptrdiff_t>(p * dimensions),
                                      points.begin() + static_cast<ptrdiff_t>((p + 1) * dimensions),
                                      rows.begin() + static_cast<ptrdiff_t>(c * dimensions),
                                      double{biases[c]});
          };
          ASSERT_LT(labels[p], centroids);
          if (centroids > 1) {
            EXPECT_NE(labels[p], centroids - 1);
          }
          for (size_t c = 0; c < centroids; ++c) {
            EXPECT_GE(sum(labels[p]) + 1e-4, sum(c));
            EXPECT_NEAR(scores[p * centroids + c], sum(c), 1e-4);
          }
        }
      }
    }
  }
  hwy::SetSupportedTargetsForTest(0);
}

}  // namespace
}  // namespace terrace
