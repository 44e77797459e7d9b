#include "index/graph_index.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <memory>
#include <random>
#include <set>
#include <thread>
#include <vector>

#include "index/exact_knn.h"
#include "index/kv_convert.h"

namespace terrace {
namespace {

using ::testing::HasSubstr;

constexpr uint64_t kSeed = 31;
constexpr size_t kQueryDims = 10;

// Queries live in the first kQueryDims elements of a rotated space, where keys vary little; most of
// what keys are is outside, in clusters.
struct Head {
  size_t head_dim = 0;
  std::vector<float> keys;        // [keys, head_dim], as stored
  std::vector<std::byte> stored;  // the same in fp16
  std::vector<float> samples;
  std::vector<float> queries;

  size_t size() const { return keys.size() / head_dim; }
  KeyPanels panels(size_t count) const {
    return KeyPanels::Contiguous(stored.data(), count, head_dim, KvDtype::kFloat16);
  }
};

Head MakeHead(size_t keys, size_t head_dim, size_t samples, size_t queries, uint64_t seed) {
  std::mt19937_64 random(seed);
  std::normal_distribution<float> normal;
  std::vector<float> clusters(32 * head_dim);
  for (float& element : clusters) element = 3 * normal(random);
  Head head;
  head.head_dim = head_dim;
  head.keys.resize(keys * head_dim);
  for (size_t key = 0; key < keys; ++key) {
    const float* const cluster = clusters.data() + random() % 32 * head_dim;
    for (size_t i = 0; i < head_dim; ++i) {
      // Every eighth element is one that queries look at.
      const bool inside = i % 8 == 0 && i / 8 < kQueryDims;
      head.keys[key * head_dim + i] =
          normal(random) * (inside ? 1.0f : 2.0f) + (inside ? 0 : cluster[i]);
    }
  }
  const auto make_queries = [&](size_t count) {
    std::vector<float> rows(count * head_dim, 0.0f);
    for (size_t row = 0; row < count; ++row) {
      for (size_t i = 0; i < head_dim; ++i) {
        const bool inside = i % 8 == 0 && i / 8 < kQueryDims;
        rows[row * head_dim + i] = inside ? 0.7f + normal(random) : 0.02f * normal(random);
      }
    }
    return rows;
  };
  head.samples = make_queries(samples);
  head.queries = make_queries(queries);
  head.stored.resize(head.keys.size() * 2);
  EncodeKv(head.keys.data(), KvDtype::kFloat32, KvDtype::kFloat16, head.keys.size(),
           head.stored.data());
  DecodeKv(head.stored.data(), KvDtype::kFloat16, head.keys.size(), head.keys.data());
  return head;
}

std::unique_ptr<KeyIndex> Make(const GraphOptions& options = {}) {
  return *MakeGraphIndex(options);
}

// The share of the true best keys that `result` has.
double Recall(const Head& head, size_t count, size_t k, const KeySearchResult& result) {
  ComputePool pool(1);
  const std::vector<uint32_t> best = ExactNeighbours(head.queries, head.panels(count), k, pool);
  size_t hits = 0;
  for (size_t row = 0; row < best.size() / k; ++row) {
    const std::set<uint32_t> found(result.keys.begin() + static_cast<ptrdiff_t>(row * k),
                                   result.keys.begin() + static_cast<ptrdiff_t>((row + 1) * k));
    for (size_t i = 0; i < k; ++i) hits += found.count(best[row * k + i]);
  }
  return static_cast<double>(hits) / static_cast<double>(best.size());
}

// What holds of every result, whatever its quality.
void ExpectSound(const Head& head, size_t count, size_t k, absl::Span<const float> queries,
                 const KeySearchResult& result) {
  const size_t rows = queries.size() / head.head_dim;
  ASSERT_EQ(result.keys.size(), rows * k);
  ASSERT_EQ(result.scores.size(), rows * k);
  EXPECT_LE(result.scored_keys, rows * count);
  for (size_t row = 0; row < rows; ++row) {
    std::set<uint32_t> keys;
    for (size_t i = 0; i < k; ++i) {
      const uint32_t key = result.keys[row * k + i];
      const float score = result.scores[row * k + i];
      if (i > 0) {
        EXPECT_LE(score, result.scores[row * k + i - 1]);
      }
      if (key == KeySearchResult::kNoKey) {
        EXPECT_EQ(score, -std::numeric_limits<float>::infinity());
        EXPECT_GE(i, std::min(k, count));
        continue;
      }
      ASSERT_LT(key, count);
      EXPECT_TRUE(keys.insert(key).second) << "key " << key << " twice";
      double expected = 0;
      for (size_t j = 0; j < head.head_dim; ++j) {
        expected +=
            double{queries[row * head.head_dim + j]} * double{head.keys[key * head.head_dim + j]};
      }
      EXPECT_NEAR(score, expected, 1e-3 * (1 + std::abs(expected)));
    }
  }
}

class GraphIndexTest : public ::testing::Test {
 protected:
  static void SetUpTestSuite() { head_ = new Head(MakeHead(16384, 96, 4096, 64, kSeed)); }
  static void TearDownTestSuite() { delete head_; }
  static const Head& head() { return *head_; }

 private:
  static Head* head_;
};
Head* GraphIndexTest::head_ = nullptr;

TEST_F(GraphIndexTest, FindsWhatQueriesOutOfDistributionWant) {
  ComputePool pool(2);
  const auto index = Make();
  ASSERT_TRUE(index->Build(head().panels(16384), head().samples, pool).ok());
  KeySearchResult result;
  ASSERT_TRUE(index->Search(head().queries, {.k = 50, .effort = 80}, result).ok());
  ExpectSound(head(), 16384, 50, head().queries, result);
  EXPECT_GE(Recall(head(), 16384, 50, result), 0.95) << "seed " << kSeed;
  // Distinct keys of 64 rows: far fewer than a scan.
  EXPECT_LE(result.scored_keys, 64u * 16384 / 8);
  EXPECT_GE(result.scored_keys, 64u * 80);
}

TEST_F(GraphIndexTest, MoreEffortFindsMore) {
  ComputePool pool(2);
  const auto index = Make();
  ASSERT_TRUE(index->Build(head().panels(16384), head().samples, pool).ok());
  double last = 0;
  uint64_t last_scored = 0;
  for (const size_t effort : index->Efforts(20)) {
    KeySearchResult result;
    ASSERT_TRUE(index->Search(head().queries, {.k = 20, .effort = effort}, result).ok());
    const double recall = Recall(head(), 16384, 20, result);
    EXPECT_GE(recall, last - 0.005) << "effort " << effort << ", seed " << kSeed;
    EXPECT_GT(result.scored_keys, last_scored);
    last = std::max(last, recall);
    last_scored = result.scored_keys;
  }
  EXPECT_GE(last, 0.99) << "seed " << kSeed;
}

// A beam as wide as there are keys expands whatever it reaches.
TEST_F(GraphIndexTest, EveryKeyIsReachable) {
  ComputePool pool(2);
  const auto index = Make({.degree = 8});
  ASSERT_TRUE(index->Build(head().panels(6000), head().samples, pool).ok());
  KeySearchResult result;
  const auto queries = absl::MakeConstSpan(head().queries).subspan(0, 5 * head().head_dim);
  ASSERT_TRUE(index->Search(queries, {.k = 10, .effort = 6000}, result).ok());
  EXPECT_EQ(result.scored_keys, 5u * 6000);
  ASSERT_TRUE(index->Append(head().panels(9000), pool).ok());
  ASSERT_TRUE(index->Search(queries, {.k = 10, .effort = 9000}, result).ok());
  EXPECT_EQ(result.scored_keys, 5u * 9000);
}

TEST_F(GraphIndexTest, DoesNotDependOnTheNumberOfThreads) {
  std::vector<KeySearchResult> results;
  for (const size_t threads : {1u, 2u, 5u}) {
    ComputePool pool(threads);
    const auto index = Make({.tail_keys = 100});
    ASSERT_TRUE(index->Build(head().panels(5000), head().samples, pool).ok());
    ASSERT_TRUE(index->Append(head().panels(5500), pool).ok());
    results.emplace_back();
    ASSERT_TRUE(index->Search(head().queries, {.k = 30}, results.back()).ok());
  }
  for (const KeySearchResult& result : results) {
    EXPECT_EQ(result.keys, results[0].keys);
    EXPECT_EQ(result.scores, results[0].scores);
    EXPECT_EQ(result.scored_keys, results[0].scored_keys);
  }
}

TEST_F(GraphIndexTest, FindsAppendedKeysWhetherLinkedOrNot) {
  ComputePool pool(2);
  const auto index = Make({.tail_keys = 700});
  ASSERT_TRUE(index->Build(head().panels(8000), head().samples, pool).ok());
  for (size_t count = 8300; count <= 11000; count += 300) {
    ASSERT_TRUE(index->Append(head().panels(count), pool).ok());
    EXPECT_EQ(index->size(), count);
    KeySearchResult result;
    ASSERT_TRUE(index->Search(head().queries, {.k = 50, .effort = 80}, result).ok());
    ExpectSound(head(), count, 50, head().queries, result);
    // Linked ones, a quarter in the end, are not among what samples found.
    EXPECT_GE(Recall(head(), count, 50, result), 0.93) << count << " keys, seed " << kSeed;
    // The tail is never more than it may be, and with it the cost of scanning it.
    EXPECT_LE(result.scored_keys, 64 * (700 + count / 7));
  }
}

TEST_F(GraphIndexTest, AppendedKeysAreFoundAtOnceAndExactly) {
  ComputePool pool(1);
  const auto index = Make();
  ASSERT_TRUE(index->Build(head().panels(1), head().samples, pool).ok());
  ASSERT_TRUE(index->Append(head().panels(1000), pool).ok());
  KeySearchResult result;
  ASSERT_TRUE(index->Search(head().queries, {.k = 50}, result).ok());
  EXPECT_EQ(Recall(head(), 1000, 50, result), 1);
  EXPECT_EQ(result.scored_keys, 64u * 1000);
}

TEST_F(GraphIndexTest, FewerKeysThanNeighboursOrThanK) {
  ComputePool pool(2);
  for (const size_t count : {0u, 1u, 2u, 5u, 33u}) {
    const auto index = Make();
    ASSERT_TRUE(index->Build(head().panels(count), head().samples, pool).ok());
    KeySearchResult result;
    ASSERT_TRUE(index->Search(head().queries, {.k = 40}, result).ok());
    ExpectSound(head(), count, 40, head().queries, result);
    EXPECT_EQ(result.scored_keys, 64 * count);
  }
}

// Which serves queries that are distributed as keys are.
TEST_F(GraphIndexTest, WithoutSamplesKeysTakeTheirPlace) {
  ComputePool pool(2);
  const auto index = Make();
  ASSERT_TRUE(index->Build(head().panels(4000), {}, pool).ok());
  Head alike = head();
  alike.queries.assign(head().keys.begin() + 5000 * 96, head().keys.begin() + 5064 * 96);
  KeySearchResult result;
  ASSERT_TRUE(index->Search(alike.queries, {.k = 10, .effort = 200}, result).ok());
  ExpectSound(alike, 4000, 10, alike.queries, result);
  EXPECT_GE(Recall(alike, 4000, 10, result), 0.9) << "seed " << kSeed;
}

TEST(GraphIndex, TakesKeysThatAreAllTheSameOrZero) {
  constexpr size_t kKeys = 3000;
  ComputePool pool(2);
  for (const uint16_t element : {uint16_t{0}, uint16_t{0x3c00}, uint16_t{0xfbff}}) {
    const std::vector<uint16_t> keys(kKeys * 16, element);
    const auto panels = KeyPanels::Contiguous(keys.data(), kKeys, 16, KvDtype::kFloat16);
    const std::vector<float> query(16, 1.0f);
    for (const bool with_samples : {true, false}) {
      const auto index = Make();
      ASSERT_TRUE(index->Build(panels, with_samples ? query : std::vector<float>(), pool).ok());
      KeySearchResult result;
      ASSERT_TRUE(index->Search(query, {.k = 100, .effort = kKeys}, result).ok());
      EXPECT_EQ(std::set<uint32_t>(result.keys.begin(), result.keys.end()).size(), 100u);
      EXPECT_EQ(result.scored_keys, kKeys);
    }
  }
}

// fp32 keys whose products overflow: an order among them is lost, nothing else.
TEST(GraphIndex, TakesHugeKeys) {
  constexpr size_t kKeys = 600;
  std::mt19937_64 random(kSeed);
  std::normal_distribution<float> normal;
  std::vector<float> keys(kKeys * 16);
  for (float& element : keys) element = normal(random) * 3e37f;
  std::vector<float> queries(8 * 16);
  for (float& element : queries) element = normal(random) * 1e30f;
  ComputePool pool(2);
  const auto index = Make();
  const auto panels = KeyPanels::Contiguous(keys.data(), kKeys, 16, KvDtype::kFloat32);
  ASSERT_TRUE(index->Build(panels, queries, pool).ok());
  KeySearchResult result;
  ASSERT_TRUE(index->Search(queries, {.k = 50, .effort = kKeys}, result).ok());
  EXPECT_EQ(result.scored_keys, 8 * kKeys);
  for (size_t row = 0; row < 8; ++row) {
    const auto first = result.keys.begin() + static_cast<ptrdiff_t>(row * 50);
    const std::set<uint32_t> found(first, first + 50);
    EXPECT_EQ(found.size(), 50u);
    EXPECT_LT(*found.rbegin(), kKeys);
  }
}

TEST(GraphIndex, HoldsAtMost160BytesOfAKey) {
  ComputePool pool(2);
  for (const size_t head_dim : {8u, 64u, 512u}) {
    const Head head = MakeHead(8192, head_dim, 512, 4, kSeed);
    const auto index = Make();
    ASSERT_TRUE(index->Build(head.panels(8000), head.samples, pool).ok());
    KeySearchResult result;
    ASSERT_TRUE(index->Search(head.queries, {.k = 100}, result).ok());
    EXPECT_LE(index->memory_bytes(), 160u * 8000) << "head_dim " << head_dim;
    EXPECT_GE(index->memory_bytes(), 128u * 8000);
    ASSERT_TRUE(index->Append(head.panels(8192), pool).ok());
    EXPECT_LE(index->memory_bytes(), 160u * 8192) << "head_dim " << head_dim;
  }
}

TEST(GraphIndex, NamesBadOptionsAndStaysAsItWasAfterABadBuild) {
  EXPECT_THAT(MakeGraphIndex({.degree = 37}).status().message(), HasSubstr("degree: 37"));
  EXPECT_THAT(MakeGraphIndex({.keys_per_sample = 0}).status().message(),
              HasSubstr("keys_per_sample: 0"));
  ComputePool pool(1);
  Head head = MakeHead(64, 16, 8, 2, kSeed);
  const auto index = Make();
  ASSERT_TRUE(index->Build(head.panels(32), head.samples, pool).ok());
  reinterpret_cast<uint16_t*>(head.stored.data())[40 * 16 + 3] = 0x7c00;
  EXPECT_TRUE(absl::IsInvalidArgument(index->Build(head.panels(64), {}, pool)));
  EXPECT_TRUE(absl::IsInvalidArgument(index->Append(head.panels(64), pool)));
  EXPECT_EQ(index->size(), 32u);
}

TEST(GraphIndex, SearchesWhileKeysAreAppended) {
  const Head head = MakeHead(4000, 32, 256, 8, kSeed);
  ComputePool pool(1);
  const auto index = Make({.tail_keys = 64});
  ASSERT_TRUE(index->Build(head.panels(2000), head.samples, pool).ok());
  std::vector<std::thread> threads;
  for (size_t t = 0; t < 2; ++t) {
    threads.emplace_back([&] {
      KeySearchResult result;
      for (size_t i = 0; i < 50; ++i) {
        ASSERT_TRUE(index->Search(head.queries, {.k = 20}, result).ok());
        ExpectSound(head, 4000, 20, head.queries, result);
      }
    });
  }
  for (size_t count = 2100; count <= 4000; count += 100) {
    ASSERT_TRUE(index->Append(head.panels(count), pool).ok());
  }
  for (std::thread& thread : threads) thread.join();
}

TEST(GraphIndex, ReportsProgress) {
  const Head head = MakeHead(500, 16, 64, 1, kSeed);
  ComputePool pool(1);
  std::vector<double> shares;
  const auto index = Make({.progress = [&](double share) { shares.push_back(share); }});
  ASSERT_TRUE(index->Build(head.panels(500), head.samples, pool).ok());
  ASSERT_GE(shares.size(), 3u);
  EXPECT_TRUE(std::is_sorted(shares.begin(), shares.end()));
  EXPECT_EQ(shares.back(), 1);
}

// Does what the CPU does, or fails.
class FakeNeighbours final : public NeighbourSearch {
 public:
  absl::StatusOr<std::vector<uint32_t>> Nearest(absl::Span<const float> queries,
                                                const KeyPanels& keys, size_t k) override {
    ++(fails ? counts_.failures : counts_.searches);
    if (fails) return absl::UnavailableError("lost");
    ComputePool pool(1);
    std::vector<uint32_t> found = ExactNeighbours(queries, keys, k, pool);
    if (worst) std::fill(found.begin(), found.end(), 0u);
    return found;
  }
  Counts counts() const override { return counts_; }

  bool fails = false;
  bool worst = false;  // finds one key alone

 private:
  Counts counts_;
};

TEST(GraphIndexNeighbours, AreAskedForAndDoneWithoutWhereTheyFail) {
  const Head head = MakeHead(1500, 32, 300, 1, kSeed + 5);
  ComputePool pool(2);
  const auto built = [&](NeighbourSearch* neighbours) {
    GraphOptions options;
    options.neighbours = neighbours;
    const std::unique_ptr<GraphIndex> index = *MakeGraphIndex(options);
    EXPECT_TRUE(index->Build(head.panels(1500), head.samples, pool).ok());
    std::vector<std::byte> bytes;
    index->Save(bytes);
    return bytes;
  };
  const std::vector<std::byte> expected = built(nullptr);
  FakeNeighbours neighbours;
  EXPECT_TRUE(built(&neighbours) == expected);
  EXPECT_EQ(neighbours.counts().searches, 1u);
  neighbours.worst = true;
  EXPECT_FALSE(built(&neighbours) == expected) << "what they find is not used";
  neighbours.fails = true;
  EXPECT_TRUE(built(&neighbours) == expected);
  EXPECT_EQ(neighbours.counts().failures, 1u);
}

}  // namespace
}  // namespace terrace
