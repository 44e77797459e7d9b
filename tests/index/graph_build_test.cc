#include "index/graph_build.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <numeric>
#include <random>
#include <vector>

#include "index/query_metric.h"

namespace terrace {
namespace {

using ::testing::Contains;

constexpr uint64_t kSeed = 5;
constexpr size_t kDimensions = 8;

std::vector<float> RandomPoints(size_t count, uint64_t seed) {
  std::mt19937_64 random(seed);
  std::normal_distribution<float> normal;
  std::vector<float> points(count * kDimensions);
  for (float& element : points) element = normal(random);
  return points;
}

std::vector<uint32_t> Neighbours(const KeyGraph& graph, uint32_t key) {
  const auto neighbours = graph.neighbours(key);
  return {neighbours.begin(), neighbours.end()};
}

size_t ReachableFrom(const KeyGraph& graph, uint32_t root) {
  std::vector<bool> reached(graph.size(), false);
  std::vector<uint32_t> stack = {root};
  reached[root] = true;
  size_t count = 0;
  while (!stack.empty()) {
    const uint32_t key = stack.back();
    stack.pop_back();
    ++count;
    for (const uint32_t to : graph.neighbours(key)) {
      if (!reached[to]) stack.push_back(to);
      reached[to] = true;
    }
  }
  return count;
}

void ExpectRowsAreSound(const KeyGraph& graph) {
  for (uint32_t key = 0; key < graph.size(); ++key) {
    std::vector<uint32_t> neighbours = Neighbours(graph, key);
    EXPECT_LE(neighbours.size(), graph.degree());
    std::sort(neighbours.begin(), neighbours.end());
    EXPECT_TRUE(std::adjacent_find(neighbours.begin(), neighbours.end()) == neighbours.end());
    EXPECT_FALSE(std::binary_search(neighbours.begin(), neighbours.end(), key));
    EXPECT_TRUE(neighbours.empty() || neighbours.back() < graph.size());
  }
}

// Key 0 is the best of two queries. One of them found the `far` keys beside it, which are so close
// to each other that none of them has room for a link back to 0; the other found near ones. Whoever
// lets one query overwrite what another said of key 0 loses the only way to the far keys.
TEST(Project, MergesTheCandidatesOfQueriesThatShareTheirBestKey) {
  constexpr uint32_t kFar = 1;        // and 2 to 5 around it
  constexpr uint32_t kBetween = 6;    // keeps `far` from linking to 0
  constexpr uint32_t kFirstNear = 7;  // to 11
  std::vector<float> points(12 * kDimensions, 0.0f);
  const auto at = [&](uint32_t key, size_t dimension) -> float& {
    return points[key * kDimensions + dimension];
  };
  for (uint32_t key = kFar; key < kFar + 5; ++key) {
    at(key, 0) = 10;
    if (key > kFar) at(key, key) = 0.1f;
  }
  at(kBetween, 0) = 6;
  for (uint32_t key = kFirstNear; key < 12; ++key) {
    at(key, 0) = -1;
    at(key, 1) = 0.01f * static_cast<float>(key);
  }
  const std::vector<uint32_t> to_far = {0, 1, 2, 3, 4, 5};
  const std::vector<uint32_t> to_near = {0, 7, 8, 9, 10, 11};
  const std::vector<uint32_t> around_far = {1, 6, 2, 3, 4, 5};
  for (const bool far_first : {true, false}) {
    std::vector<uint32_t> found = far_first ? to_far : to_near;
    const std::vector<uint32_t>& second = far_first ? to_near : to_far;
    found.insert(found.end(), second.begin(), second.end());
    found.insert(found.end(), around_far.begin(), around_far.end());
    KeyGraph graph(4);
    graph.Resize(12);
    ComputePool pool(1);
    GraphBuilder(points.data(), kDimensions, 8, graph, pool).Project(found, 6);
    EXPECT_THAT(Neighbours(graph, 0), Contains(kFar)) << "far first: " << far_first;
    EXPECT_THAT(Neighbours(graph, 0), Contains(kFirstNear)) << "far first: " << far_first;
    EXPECT_EQ(std::count(graph.row(kFar), graph.row(kFar) + 4, 0u), 0);
    ExpectRowsAreSound(graph);
  }
}

TEST(Connect, LinksEachKeyToNearOnes) {
  constexpr uint32_t kKeys = 2000;
  const std::vector<float> points = RandomPoints(kKeys, kSeed);
  KeyGraph graph(16);
  graph.Resize(kKeys);
  ComputePool pool(2);
  GraphBuilder builder(points.data(), kDimensions, 64, graph, pool);
  const std::vector<uint32_t> entries = {0, 500, 1000, 1500};
  // From no links at all, so it takes some rounds.
  for (size_t round = 0; round < 4; ++round) builder.Connect(0, kKeys, entries);
  ExpectRowsAreSound(graph);
  std::vector<uint32_t> all(kKeys);
  std::iota(all.begin(), all.end(), 0u);
  std::vector<float> distances(kKeys);
  size_t linked = 0;
  for (uint32_t key = 0; key < kKeys; ++key) {
    SquaredDistances(points.data() + key * kDimensions, points.data(), kDimensions, all,
                     distances.data());
    distances[key] = 1e30f;
    const auto nearest = static_cast<uint32_t>(
        std::min_element(distances.begin(), distances.end()) - distances.begin());
    linked +=
        static_cast<size_t>(std::count(graph.row(key), graph.row(key) + graph.degree(), nearest));
  }
  EXPECT_GE(linked, kKeys * 95 / 100) << "seed " << kSeed;
}

// Islands that no search would find from the others, among them keys that are all the same.
TEST(Reach, LinksEveryKeyWithinTheDegree) {
  constexpr uint32_t kIslands = 40;
  constexpr uint32_t kIslandKeys = 30;
  std::vector<float> points = RandomPoints(kIslands * kIslandKeys, kSeed);
  for (uint32_t key = 0; key < kIslands * kIslandKeys; ++key) {
    const uint32_t island = key / kIslandKeys;
    float* const point = points.data() + key * kDimensions;
    if (island % 3 == 0) std::fill_n(point, kDimensions, 0.0f);
    point[island % kDimensions] += 1000 * static_cast<float>(island);
  }
  KeyGraph graph(4);
  graph.Resize(kIslands * kIslandKeys);
  // Each island is a full graph of its own: a ring with chords.
  for (uint32_t key = 0; key < graph.size(); ++key) {
    const uint32_t first = key / kIslandKeys * kIslandKeys;
    std::vector<uint32_t> neighbours;
    for (const uint32_t step : {1u, 7u, 13u, 29u}) {
      neighbours.push_back(first + (key - first + step) % kIslandKeys);
    }
    graph.Set(key, neighbours);
  }
  ASSERT_EQ(ReachableFrom(graph, 0), kIslandKeys);
  ComputePool pool(1);
  GraphBuilder builder(points.data(), kDimensions, 16, graph, pool);
  builder.Reach(0, std::vector<uint32_t>{0});
  EXPECT_EQ(ReachableFrom(graph, 0), graph.size());
  ExpectRowsAreSound(graph);
}

TEST(Reach, LinksKeysWithoutAnyLinks) {
  const std::vector<float> points(300 * kDimensions, 0.0f);
  KeyGraph graph(4);
  graph.Resize(300);
  ComputePool pool(1);
  GraphBuilder(points.data(), kDimensions, 1, graph, pool).Reach(0, std::vector<uint32_t>{0});
  EXPECT_EQ(ReachableFrom(graph, 0), graph.size());
  ExpectRowsAreSound(graph);
}

}  // namespace
}  // namespace terrace
