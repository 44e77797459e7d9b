#include "index/cluster_index.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <set>
#include <vector>

#include "index/key_scores.h"
#include "tests/support/grouped_rows.h"

namespace terrace {
namespace {

using ::testing::HasSubstr;

constexpr size_t kHeadDim = kGroupedHeadDim;
constexpr float kInfinity = std::numeric_limits<float>::infinity();

std::unique_ptr<KeyIndex> Built(const KeyPanels& keys, const std::vector<float>& samples = {}) {
  auto index = *MakeClusterIndex({});
  ComputePool pool(1);
  const absl::Status status = index->Build(keys, samples, pool);
  EXPECT_TRUE(status.ok()) << status;
  return index;
}

KeySearchResult Exact(const std::vector<float>& queries, const std::vector<float>& keys, size_t k) {
  const size_t rows = queries.size() / kHeadDim;
  const size_t count = keys.size() / kHeadDim;
  std::vector<float> scores(rows * count);
  ScoreRun(queries, kHeadDim, keys.data(), KvDtype::kFloat32, count, scores.data());
  KeySearchResult result;
  result.keys.assign(rows * k, KeySearchResult::kNoKey);
  result.scores.assign(rows * k, -kInfinity);
  for (size_t row = 0; row < rows; ++row) {
    std::vector<uint32_t> order(count);
    std::iota(order.begin(), order.end(), 0u);
    std::stable_sort(order.begin(), order.end(), [&](uint32_t a, uint32_t b) {
      return scores[a * rows + row] > scores[b * rows + row];
    });
    for (size_t i = 0; i < std::min(k, count); ++i) {
      result.keys[row * k + i] = order[i];
      result.scores[row * k + i] = scores[order[i] * rows + row];
    }
  }
  return result;
}

TEST(ClusterIndexTest, EveryClusterIsAnExactSearchTailIncluded) {
  for (const size_t count : {1u, 5u, 1023u, 1024u, 9000u, 9300u}) {
    SCOPED_TRACE(count);
    const std::vector<float> keys = Normals(count * kHeadDim, 23);
    const std::vector<float> queries = Normals(3 * kHeadDim, 24);
    const auto index = Built(Panels(keys), Normals(64 * kHeadDim, 25));
    KeySearchResult result;
    ASSERT_TRUE(index->Search(queries, {.k = 20, .effort = 100000}, result).ok());
    const KeySearchResult exact = Exact(queries, keys, 20);
    EXPECT_EQ(result.keys, exact.keys);
    EXPECT_EQ(result.scores, exact.scores);
    EXPECT_EQ(result.scored_keys, 3 * count);
  }
}

TEST(ClusterIndexTest, FewClustersFindNearlyAllWhereKeysHaveLocality) {
  const std::vector<float> keys = GroupedRows(16384, 16, 0.1f, 26);
  const std::vector<float> queries = Normals(kHeadDim, 27);
  const auto index = Built(Panels(keys));
  KeySearchResult result;
  ASSERT_TRUE(index->Search(queries, {.k = 50, .effort = 20}, result).ok());
  EXPECT_LE(result.scored_keys, 320u);
  EXPECT_EQ(result.scored_centroids, 1024u);
  const KeySearchResult exact = Exact(queries, keys, 50);
  const std::set<uint32_t> found(result.keys.begin(), result.keys.end());
  size_t hits = 0;
  for (const uint32_t key : exact.keys) hits += found.count(key);
  EXPECT_GE(hits, 48u);
}

TEST(ClusterIndexTest, AppendSealsSegmentsAndKeepsATail) {
  const std::vector<float> keys = Normals(11000 * kHeadDim, 28);
  const std::vector<float> queries = Normals(2 * kHeadDim, 29);
  ComputePool pool(1);
  auto index = *MakeClusterIndex({});
  const auto first = [&](size_t count) {
    return KeyPanels::Contiguous(keys.data(), count, kHeadDim, KvDtype::kFloat32);
  };
  EXPECT_EQ(index->Append(first(10), pool).code(), absl::StatusCode::kFailedPrecondition);
  ASSERT_TRUE(index->Build(first(0), {}, pool).ok());
  KeySearchResult result;
  ASSERT_TRUE(index->Search(queries, {.k = 3}, result).ok());
  EXPECT_EQ(result.keys, std::vector<uint32_t>(6, KeySearchResult::kNoKey));
  for (const size_t count : {500u, 1023u, 1030u, 10500u, 11000u}) {
    ASSERT_TRUE(index->Append(first(count), pool).ok());
    EXPECT_EQ(index->size(), count);
    ASSERT_TRUE(index->Search(queries, {.k = 10, .effort = 100000}, result).ok());
    EXPECT_EQ(
        result.keys,
        Exact(queries, {keys.begin(), keys.begin() + static_cast<ptrdiff_t>(count * kHeadDim)}, 10)
            .keys);
  }
  EXPECT_EQ(index->Append(first(100), pool).code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(index->size(), 11000u);
}

TEST(ClusterIndexTest, BadInputIsNamed) {
  EXPECT_FALSE(MakeClusterIndex({.clustering = {.cluster_keys = 0}}).ok());
  EXPECT_FALSE(MakeClusterIndex({.seal_keys = 0}).ok());
  EXPECT_FALSE(MakeClusterIndex({.seal_keys = kSegmentKeys + 1}).ok());
  std::vector<float> keys = Normals(100 * kHeadDim, 30);
  ComputePool pool(1);
  auto index = *MakeClusterIndex({});
  KeySearchResult result;
  EXPECT_EQ(index->size(), 0u);
  EXPECT_EQ(
      index->Build(KeyPanels::Contiguous(keys.data(), 10, 12, KvDtype::kFloat32), {}, pool).code(),
      absl::StatusCode::kInvalidArgument);
  EXPECT_FALSE(index->Build(Panels(keys), Normals(kHeadDim + 1, 31), pool).ok());
  keys[42 * kHeadDim] = std::numeric_limits<float>::quiet_NaN();
  EXPECT_THAT(index->Build(Panels(keys), {}, pool).message(), HasSubstr("key 42 "));
  keys[42 * kHeadDim] = 0;
  ASSERT_TRUE(index->Build(Panels(keys), {}, pool).ok());
  EXPECT_FALSE(index->Search(Normals(kHeadDim, 32), {.k = 0}, result).ok());
  EXPECT_FALSE(index->Search(Normals(kHeadDim - 1, 32), {}, result).ok());
  EXPECT_FALSE(index->Search(std::vector<float>(kHeadDim, kInfinity), {}, result).ok());
}

TEST(ClusterIndexTest, DegenerateKeysAreFoundLikeOthers) {
  for (const float element : {0.0f, 1e-30f, 5.0f}) {
    const std::vector<float> keys(3000 * kHeadDim, element);
    const auto index = Built(Panels(keys), Normals(16 * kHeadDim, 33));
    KeySearchResult result;
    ASSERT_TRUE(index->Search(Normals(kHeadDim, 34), {.k = 5}, result).ok());
    EXPECT_EQ(result.keys, (std::vector<uint32_t>{0, 1, 2, 3, 4}));
  }
  // Squares of these overflow, which costs quality and nothing else.
  std::vector<float> huge = Normals(3000 * kHeadDim, 35);
  for (float& element : huge) element = element > 0 ? 2e38f : -2e38f;
  const auto index = Built(Panels(huge), Normals(16 * kHeadDim, 36));
  KeySearchResult result;
  EXPECT_TRUE(index->Search(Normals(kHeadDim, 37), {.k = 5}, result).ok());
  EXPECT_EQ(result.keys.size(), 5u);
}

}  // namespace
}  // namespace terrace
