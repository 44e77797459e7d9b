// What every KeyIndex promises, whatever it does inside.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cmath>
#include <cstring>
#include <functional>
#include <limits>
#include <memory>
#include <ostream>
#include <set>
#include <string>
#include <thread>
#include <vector>

#include "index/cluster_index.h"
#include "index/compute_pool.h"
#include "index/faiss_hnsw_index.h"
#include "index/faiss_ivf_index.h"
#include "index/flat_index.h"
#include "index/graph_index.h"
#include "index/key_index.h"
#include "tests/support/made_up_keys.h"

namespace terrace {
namespace {

using ::testing::HasSubstr;

constexpr size_t kNoLimit = std::numeric_limits<size_t>::max();

struct IndexCase {
  std::string name;
  std::function<std::unique_ptr<KeyIndex>()> make;
  double full_recall;  // at the highest effort, of queries in distribution
};
// For the names of tests, which would hold the bytes of the object otherwise.
void PrintTo(const IndexCase& index, std::ostream* out) { *out << index.name; }

const std::vector<IndexCase>& Cases() {
  static const auto* const cases = new std::vector<IndexCase>{
      {"flat", [] { return MakeFlatIndex(); }, 1},
      {"ivf", [] { return *MakeFaissIvfIndex({}); }, 1},
      {"hnsw", [] { return *MakeFaissHnswIndex({}); }, 0.99},
      {"graph", [] { return *MakeGraphIndex({}); }, 0.99},
      {"cluster", [] { return *MakeClusterIndex({}); }, 1},
  };
  return *cases;
}

class KeyIndexTest : public ::testing::TestWithParam<IndexCase> {
 protected:
  std::unique_ptr<KeyIndex> Make() const { return GetParam().make(); }
  double full_recall() const { return GetParam().full_recall; }

  // Of an index of the keys' first `count`.
  void Build(KeyIndex& index, const MadeUpKeys& keys, size_t count = kNoLimit) {
    const absl::Status built = index.Build(keys.Prefix(std::min(count, keys.size())),
                                           ClusteredRows(64, keys.head_dim(), /*seed=*/101), pool_);
    ASSERT_TRUE(built.ok()) << built;
    ASSERT_EQ(index.size(), std::min(count, keys.size()));
  }

  // The highest effort by default.
  static KeySearchResult Search(const KeyIndex& index, const std::vector<float>& queries, size_t k,
                                size_t effort = kNoLimit) {
    KeySearchResult result;
    if (effort == kNoLimit) effort = index.Efforts(k).back();
    const absl::Status searched = index.Search(queries, {.k = k, .effort = effort}, result);
    EXPECT_TRUE(searched.ok()) << searched;
    return result;
  }

  ComputePool pool_{2};
};

// Of [rows, k] over the first `count` keys: right shapes, best first, distinct, with right scores,
// and the rest empty.
void ExpectSound(const KeySearchResult& result, const MadeUpKeys& keys, size_t count,
                 const std::vector<float>& queries, size_t k) {
  const size_t rows = queries.size() / keys.head_dim();
  ASSERT_EQ(result.keys.size(), rows * k);
  ASSERT_EQ(result.scores.size(), rows * k);
  size_t found = 0;
  for (size_t row = 0; row < rows; ++row) {
    const float* const query = queries.data() + row * keys.head_dim();
    std::set<uint32_t> seen;
    for (size_t rank = 0; rank < k; ++rank) {
      const uint32_t key = result.keys[row * k + rank];
      const float score = result.scores[row * k + rank];
      if (rank > 0) {
        ASSERT_LE(score, result.scores[row * k + rank - 1]) << "row " << row << ", rank " << rank;
      }
      if (key == KeySearchResult::kNoKey) {
        ASSERT_EQ(score, -std::numeric_limits<float>::infinity());
        continue;
      }
      ASSERT_EQ(seen.size(), rank) << "a key after none, row " << row;
      ASSERT_LT(key, count);
      ASSERT_TRUE(seen.insert(key).second) << "key " << key << " twice in row " << row;
      ASSERT_NEAR(score, keys.Score(query, key), keys.Tolerance(query, key)) << "key " << key;
    }
    found += seen.size();
  }
  ASSERT_GE(result.scored_keys, found);
  ASSERT_LE(result.scored_keys, rows * count);
}

// The share of the k best keys that was found; equal scores are equally good.
double Recall(const KeySearchResult& result, const MadeUpKeys& keys, size_t count,
              const std::vector<float>& queries, size_t k) {
  const size_t rows = queries.size() / keys.head_dim();
  const size_t best = std::min(k, count);
  size_t found = 0;
  for (size_t row = 0; row < rows; ++row) {
    const float* const query = queries.data() + row * keys.head_dim();
    const double least = keys.ScoreOfRank(query, count, best);
    for (size_t rank = 0; rank < best; ++rank) {
      const uint32_t key = result.keys[row * k + rank];
      if (key == KeySearchResult::kNoKey) break;
      if (keys.Score(query, key) >= least - keys.Tolerance(query, key)) ++found;
    }
  }
  return static_cast<double>(found) / static_cast<double>(rows * best);
}

TEST_P(KeyIndexTest, FindsTheBestKeysOfEveryDtypeAndHeadDim) {
  for (const KvDtype dtype : {KvDtype::kFloat32, KvDtype::kFloat16, KvDtype::kBfloat16}) {
    for (const size_t head_dim : {8u, 24u, 128u}) {
      SCOPED_TRACE(::testing::Message() << KvDtypeName(dtype) << ", head_dim " << head_dim);
      const MadeUpKeys keys = MadeUpKeys::Clustered(1000, head_dim, dtype, /*panel_keys=*/37);
      const std::vector<float> queries = ClusteredRows(16, head_dim, /*seed=*/102);
      const auto index = Make();
      ASSERT_NO_FATAL_FAILURE(Build(*index, keys));
      const KeySearchResult result = Search(*index, queries, 20);
      ASSERT_NO_FATAL_FAILURE(ExpectSound(result, keys, keys.size(), queries, 20));
      EXPECT_GE(Recall(result, keys, keys.size(), queries, 20), full_recall());
    }
  }
}

TEST_P(KeyIndexTest, PanelsOfAnySizeGiveTheSameResult) {
  const std::vector<float> queries = ClusteredRows(5, 32, /*seed=*/103);
  std::vector<KeySearchResult> results;
  for (const size_t panel_keys : {1u, 31u, 128u, 5000u}) {
    const MadeUpKeys keys = MadeUpKeys::Clustered(700, 32, KvDtype::kFloat16, panel_keys);
    const auto index = Make();
    ASSERT_NO_FATAL_FAILURE(Build(*index, keys));
    results.push_back(Search(*index, queries, 15, /*effort=*/0));
    EXPECT_EQ(results.back().keys, results.front().keys) << panel_keys;
    EXPECT_EQ(results.back().scores, results.front().scores) << panel_keys;
  }
}

TEST_P(KeyIndexTest, MoreEffortFindsMoreForMoreWork) {
  const MadeUpKeys keys = MadeUpKeys::Clustered(3000, 64, KvDtype::kFloat16, 128);
  const std::vector<float> queries = ClusteredRows(24, 64, /*seed=*/104);
  const auto index = Make();
  ASSERT_NO_FATAL_FAILURE(Build(*index, keys));
  const std::vector<size_t> efforts = index->Efforts(10);
  ASSERT_FALSE(efforts.empty());
  EXPECT_TRUE(std::is_sorted(efforts.begin(), efforts.end(), std::less_equal<>()));
  double best = 0;
  uint64_t most_scored = 0;
  for (const size_t effort : efforts) {
    const KeySearchResult result = Search(*index, queries, 10, effort);
    ASSERT_NO_FATAL_FAILURE(ExpectSound(result, keys, keys.size(), queries, 10));
    const double recall = Recall(result, keys, keys.size(), queries, 10);
    EXPECT_GE(recall, best - 0.02) << "effort " << effort;
    EXPECT_GE(result.scored_keys, most_scored) << "effort " << effort;
    best = std::max(best, recall);
    most_scored = result.scored_keys;
  }
  EXPECT_GE(best, full_recall());
}

TEST_P(KeyIndexTest, FewerKeysThanKAreAllFound) {
  for (const size_t count : {1u, 2u, 7u, 30u}) {
    const MadeUpKeys keys = MadeUpKeys::Clustered(count, 16, KvDtype::kFloat16, 8);
    const std::vector<float> queries = ClusteredRows(3, 16, /*seed=*/105);
    const auto index = Make();
    ASSERT_NO_FATAL_FAILURE(Build(*index, keys));
    const KeySearchResult result = Search(*index, queries, 50);
    ASSERT_NO_FATAL_FAILURE(ExpectSound(result, keys, count, queries, 50));
    EXPECT_EQ(Recall(result, keys, count, queries, 50), 1) << count << " keys";
  }
}

TEST_P(KeyIndexTest, AnIndexWithoutKeysFindsNoneAndMayGrow) {
  const MadeUpKeys keys = MadeUpKeys::Clustered(400, 16, KvDtype::kFloat16, 50);
  const std::vector<float> queries = ClusteredRows(3, 16, /*seed=*/106);
  const auto index = Make();
  ASSERT_NO_FATAL_FAILURE(Build(*index, keys, 0));
  KeySearchResult result = Search(*index, queries, 4);
  EXPECT_EQ(result.keys, std::vector<uint32_t>(12, KeySearchResult::kNoKey));
  EXPECT_EQ(result.scores, std::vector<float>(12, -std::numeric_limits<float>::infinity()));
  EXPECT_EQ(result.scored_keys, 0u);
  ASSERT_TRUE(index->Append(keys.All(), pool_).ok());
  result = Search(*index, queries, 4);
  ASSERT_NO_FATAL_FAILURE(ExpectSound(result, keys, keys.size(), queries, 4));
  EXPECT_GE(Recall(result, keys, keys.size(), queries, 4), full_recall());
}

TEST_P(KeyIndexTest, BeforeBuildThereIsNothingToAppendToOrToFind) {
  const MadeUpKeys keys = MadeUpKeys::Clustered(10, 16, KvDtype::kFloat16, 50);
  const auto index = Make();
  EXPECT_EQ(index->Append(keys.All(), pool_).code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ(index->size(), 0u);
  KeySearchResult result;
  EXPECT_EQ(index->Search(ClusteredRows(1, 16, 1), {.k = 3}, result).code(),
            absl::StatusCode::kFailedPrecondition);
}

TEST_P(KeyIndexTest, ARepeatedBuildForgetsWhatWasThere) {
  const MadeUpKeys before = MadeUpKeys::Clustered(300, 16, KvDtype::kFloat16, 50);
  const MadeUpKeys after = MadeUpKeys::Clustered(90, 24, KvDtype::kBfloat16, 11);
  const std::vector<float> queries = ClusteredRows(2, 24, /*seed=*/107);
  const auto index = Make();
  ASSERT_NO_FATAL_FAILURE(Build(*index, before));
  ASSERT_NO_FATAL_FAILURE(Build(*index, after));
  const KeySearchResult result = Search(*index, queries, 5);
  ASSERT_NO_FATAL_FAILURE(ExpectSound(result, after, after.size(), queries, 5));
  EXPECT_GE(Recall(result, after, after.size(), queries, 5), full_recall());
}

TEST_P(KeyIndexTest, AppendedKeysAreFoundAsBuiltOnesAre) {
  const MadeUpKeys keys = MadeUpKeys::Clustered(2000, 32, KvDtype::kFloat16, 64);
  const std::vector<float> queries = ClusteredRows(16, 32, /*seed=*/108);
  const auto index = Make();
  ASSERT_NO_FATAL_FAILURE(Build(*index, keys, 900));
  for (const size_t count : {900u, 901u, 1000u, 2000u}) {
    ASSERT_TRUE(index->Append(keys.Prefix(count), pool_).ok());
    ASSERT_EQ(index->size(), count);
    const KeySearchResult result = Search(*index, queries, 10);
    ASSERT_NO_FATAL_FAILURE(ExpectSound(result, keys, count, queries, 10));
    EXPECT_GE(Recall(result, keys, count, queries, 10), full_recall()) << count;
  }
  if (index->name() != "flat") return;
  const auto built = Make();
  ASSERT_NO_FATAL_FAILURE(Build(*built, keys));
  const KeySearchResult expected = Search(*built, queries, 10);
  const KeySearchResult result = Search(*index, queries, 10);
  EXPECT_EQ(result.keys, expected.keys);
  EXPECT_EQ(result.scores, expected.scores);
}

TEST_P(KeyIndexTest, DuplicateKeysAreDistinctResults) {
  constexpr size_t kHeadDim = 16;
  const std::vector<float> distinct = ClusteredRows(5, kHeadDim, /*seed=*/109);
  std::vector<float> values;
  for (size_t i = 0; i < 100; ++i) values.insert(values.end(), distinct.begin(), distinct.end());
  const MadeUpKeys keys(values, kHeadDim, KvDtype::kFloat16, 33);
  const std::vector<float> queries = ClusteredRows(4, kHeadDim, /*seed=*/110);
  const auto index = Make();
  ASSERT_NO_FATAL_FAILURE(Build(*index, keys));
  const KeySearchResult result = Search(*index, queries, 20);
  ASSERT_NO_FATAL_FAILURE(ExpectSound(result, keys, keys.size(), queries, 20));
  EXPECT_EQ(std::count(result.keys.begin(), result.keys.end(), KeySearchResult::kNoKey), 0);
}

TEST_P(KeyIndexTest, KeysOfZerosAreFoundWithScoresOfZero) {
  const MadeUpKeys keys(std::vector<float>(300 * 16), 16, KvDtype::kFloat16, 64);
  const std::vector<float> queries = ClusteredRows(2, 16, /*seed=*/111);
  const auto index = Make();
  ASSERT_NO_FATAL_FAILURE(Build(*index, keys));
  const KeySearchResult result = Search(*index, queries, 10);
  ASSERT_NO_FATAL_FAILURE(ExpectSound(result, keys, keys.size(), queries, 10));
  EXPECT_EQ(result.scores, std::vector<float>(20, 0.0f));
}

TEST_P(KeyIndexTest, QueriesOfZerosFindKeys) {
  const MadeUpKeys keys = MadeUpKeys::Clustered(300, 16, KvDtype::kFloat16, 64);
  const std::vector<float> queries(16);
  const auto index = Make();
  ASSERT_NO_FATAL_FAILURE(Build(*index, keys));
  const KeySearchResult result = Search(*index, queries, 10);
  ASSERT_NO_FATAL_FAILURE(ExpectSound(result, keys, keys.size(), queries, 10));
  EXPECT_EQ(result.scores, std::vector<float>(10, 0.0f));
}

TEST_P(KeyIndexTest, TheLargestHalvesDoNotOverflow) {
  constexpr size_t kHeadDim = 128;
  std::vector<float> values = ClusteredRows(400, kHeadDim, /*seed=*/112);
  for (float& value : values) value = value > 0 ? 65504.0f : -65504.0f;
  const MadeUpKeys keys(values, kHeadDim, KvDtype::kFloat16, 64);
  const std::vector<float> queries(values.begin(), values.begin() + 3 * kHeadDim);
  const auto index = Make();
  ASSERT_NO_FATAL_FAILURE(Build(*index, keys));
  const KeySearchResult result = Search(*index, queries, 10);
  ASSERT_NO_FATAL_FAILURE(ExpectSound(result, keys, keys.size(), queries, 10));
  for (size_t row = 0; row < 3; ++row) {
    EXPECT_EQ(result.keys[row * 10], row);
    EXPECT_TRUE(std::isfinite(result.scores[row * 10]));
  }
}

// Sums that no float holds: nothing to promise but that no result is NaN or found twice.
TEST_P(KeyIndexTest, SumsThatOverflowDoNoHarm) {
  constexpr size_t kHeadDim = 16;
  std::vector<float> values = ClusteredRows(300, kHeadDim, /*seed=*/113);
  for (float& value : values) value *= 3e37f;
  for (const KvDtype dtype : {KvDtype::kFloat32, KvDtype::kBfloat16}) {
    const MadeUpKeys keys(values, kHeadDim, dtype, 64);
    const auto index = Make();
    const std::vector<float> queries(values.begin(), values.begin() + 4 * kHeadDim);
    const absl::Status built = index->Build(keys.All(), queries, pool_);
    ASSERT_TRUE(built.ok()) << built;
    for (const size_t effort : {size_t{0}, index->Efforts(10).back()}) {
      const KeySearchResult result = Search(*index, queries, 10, effort);
      ASSERT_EQ(result.keys.size(), 40u);
      for (size_t row = 0; row < 4; ++row) {
        std::set<uint32_t> seen;
        for (size_t rank = 0; rank < 10; ++rank) {
          const uint32_t key = result.keys[row * 10 + rank];
          EXPECT_FALSE(std::isnan(result.scores[row * 10 + rank]));
          if (key == KeySearchResult::kNoKey) continue;
          EXPECT_LT(key, keys.size());
          EXPECT_TRUE(seen.insert(key).second);
        }
      }
    }
  }
}

TEST_P(KeyIndexTest, KeysThatAreNotFiniteAreNamed) {
  constexpr size_t kHeadDim = 16;
  for (const KvDtype dtype : {KvDtype::kFloat32, KvDtype::kFloat16, KvDtype::kBfloat16}) {
    for (const float bad : {std::nanf(""), INFINITY, -INFINITY}) {
      const MadeUpKeys keys = MadeUpKeys::Clustered(300, kHeadDim, dtype, 300);
      std::vector<std::byte> copy(keys.All().key(0),
                                  keys.All().key(0) + 300 * keys.All().key_bytes());
      for (const size_t key : {123u, 222u}) {
        const size_t at = (key * kHeadDim + 5) * KvDtypeBytes(dtype);
        uint32_t bits;
        std::memcpy(&bits, &bad, sizeof(bits));
        if (dtype != KvDtype::kFloat32) bits >>= 16;
        if (dtype == KvDtype::kFloat16) bits = std::isnan(bad) ? 0x7e00 : bad > 0 ? 0x7c00 : 0xfc00;
        std::memcpy(copy.data() + at, &bits, KvDtypeBytes(dtype));
      }
      const KeyPanels bad_keys = KeyPanels::Contiguous(copy.data(), 300, kHeadDim, dtype);
      const auto index = Make();
      const absl::Status built = index->Build(bad_keys, {}, pool_);
      EXPECT_EQ(built.code(), absl::StatusCode::kInvalidArgument);
      EXPECT_THAT(std::string(built.message()), HasSubstr("key 123 "));

      ASSERT_NO_FATAL_FAILURE(Build(*index, keys, 200));
      const absl::Status appended = index->Append(bad_keys, pool_);
      EXPECT_EQ(appended.code(), absl::StatusCode::kInvalidArgument);
      EXPECT_THAT(std::string(appended.message()), HasSubstr("key 222 "));
      // As if that had not been asked for.
      EXPECT_EQ(index->size(), 200u);
      const std::vector<float> queries = ClusteredRows(2, kHeadDim, /*seed=*/114);
      ASSERT_NO_FATAL_FAILURE(ExpectSound(Search(*index, queries, 5), keys, 200, queries, 5));
    }
  }
}

TEST_P(KeyIndexTest, BadSearchesAreRefused) {
  const MadeUpKeys keys = MadeUpKeys::Clustered(100, 16, KvDtype::kFloat16, 64);
  const auto index = Make();
  ASSERT_NO_FATAL_FAILURE(Build(*index, keys));
  KeySearchResult result;
  std::vector<float> queries = ClusteredRows(3, 16, /*seed=*/115);
  EXPECT_EQ(index->Search(queries, {.k = 0}, result).code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(index->Search(absl::MakeSpan(queries).subspan(1), {.k = 3}, result).code(),
            absl::StatusCode::kInvalidArgument);
  for (const float bad : {std::nanf(""), INFINITY, -INFINITY}) {
    std::vector<float> bad_queries = queries;
    bad_queries[2 * 16 + 3] = bad;
    const absl::Status status = index->Search(bad_queries, {.k = 3}, result);
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
    EXPECT_THAT(std::string(status.message()), HasSubstr("query 2 "));
  }
  EXPECT_TRUE(index->Search({}, {.k = 3}, result).ok());
  EXPECT_TRUE(result.keys.empty());
  EXPECT_EQ(result.scored_keys, 0u);
}

TEST_P(KeyIndexTest, BadBuildsAreRefused) {
  const std::vector<float> values(1024 * 4);
  for (const size_t head_dim : {4u, 12u, 127u, 1032u}) {
    const absl::Status status = Make()->Build(
        KeyPanels::Contiguous(values.data(), 2, head_dim, KvDtype::kFloat32), {}, pool_);
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
    EXPECT_THAT(std::string(status.message()), HasSubstr(std::to_string(head_dim)));
  }
  const KeyPanels keys = KeyPanels::Contiguous(values.data(), 8, 16, KvDtype::kFloat32);
  std::vector<float> samples(40, 1.0f);
  EXPECT_EQ(Make()->Build(keys, samples, pool_).code(), absl::StatusCode::kInvalidArgument);
  samples.resize(48, std::nanf(""));
  EXPECT_EQ(Make()->Build(keys, samples, pool_).code(), absl::StatusCode::kInvalidArgument);
}

TEST_P(KeyIndexTest, BadAppendsAreRefused) {
  const MadeUpKeys keys = MadeUpKeys::Clustered(100, 16, KvDtype::kFloat16, 64);
  const auto index = Make();
  ASSERT_NO_FATAL_FAILURE(Build(*index, keys));
  EXPECT_EQ(index->Append(keys.Prefix(99), pool_).code(), absl::StatusCode::kInvalidArgument);
  for (const MadeUpKeys& other : {MadeUpKeys::Clustered(120, 24, KvDtype::kFloat16, 64),
                                  MadeUpKeys::Clustered(120, 16, KvDtype::kBfloat16, 64)}) {
    EXPECT_EQ(index->Append(other.All(), pool_).code(), absl::StatusCode::kInvalidArgument);
  }
  EXPECT_EQ(index->size(), 100u);
}

TEST_P(KeyIndexTest, SampleQueriesMayBeMissing) {
  const MadeUpKeys keys = MadeUpKeys::Clustered(800, 32, KvDtype::kFloat16, 64);
  const std::vector<float> queries = ClusteredRows(8, 32, /*seed=*/116);
  const auto index = Make();
  ASSERT_TRUE(index->Build(keys.All(), {}, pool_).ok());
  const KeySearchResult result = Search(*index, queries, 10);
  ASSERT_NO_FATAL_FAILURE(ExpectSound(result, keys, keys.size(), queries, 10));
  EXPECT_GE(Recall(result, keys, keys.size(), queries, 10), full_recall());
}

TEST_P(KeyIndexTest, MemoryIsReportedAndHoldsNoCopyOfTheKeysInFp32) {
  constexpr size_t kHeadDim = 256;
  const MadeUpKeys keys = MadeUpKeys::Clustered(3000, kHeadDim, KvDtype::kFloat16, 128);
  const auto index = Make();
  ASSERT_NO_FATAL_FAILURE(Build(*index, keys, 1000));
  const size_t small = index->memory_bytes();
  EXPECT_GT(small, 0u);
  ASSERT_TRUE(index->Append(keys.All(), pool_).ok());
  Search(*index, ClusteredRows(2, kHeadDim, /*seed=*/117), 10);
  EXPECT_GT(index->memory_bytes(), small);
  EXPECT_LT(index->memory_bytes(), keys.size() * kHeadDim * sizeof(float) * 3 / 4);
  if (index->name() != "flat") {
    EXPECT_GE(index->memory_bytes(), keys.size() * sizeof(uint32_t));
  }
}

TEST_P(KeyIndexTest, ABuildDoesNotDependOnThreadsOrChance) {
  const MadeUpKeys keys = MadeUpKeys::Clustered(2500, 32, KvDtype::kFloat16, 64);
  const std::vector<float> queries = ClusteredRows(12, 32, /*seed=*/118);
  std::vector<KeySearchResult> results;
  for (const size_t threads : {1u, 2u, 3u, 2u}) {
    ComputePool pool(threads);
    const auto index = Make();
    ASSERT_TRUE(index->Build(keys.Prefix(2000), ClusteredRows(200, 32, /*seed=*/119), pool).ok());
    ASSERT_TRUE(index->Append(keys.All(), pool).ok());
    results.push_back(Search(*index, queries, 10, /*effort=*/0));
    EXPECT_EQ(results.back().keys, results.front().keys) << threads << " threads";
    EXPECT_EQ(results.back().scores, results.front().scores) << threads << " threads";
    EXPECT_EQ(results.back().scored_keys, results.front().scored_keys) << threads << " threads";
  }
}

TEST_P(KeyIndexTest, SearchesRunBesideAppends) {
  constexpr size_t kHeadDim = 32;
  constexpr auto kTimeLimit = std::chrono::seconds(60);  // far above what it takes
  const MadeUpKeys keys = MadeUpKeys::Clustered(2000, kHeadDim, KvDtype::kFloat16, 64);
  const std::vector<float> queries = ClusteredRows(3, kHeadDim, /*seed=*/120);
  const auto index = Make();
  ASSERT_NO_FATAL_FAILURE(Build(*index, keys, 600));
  const auto begin = std::chrono::steady_clock::now();
  std::atomic<bool> grown = false;
  std::atomic<size_t> searches = 0;
  const auto search = [&] {
    // One more search after the last Append, which sees all keys.
    for (bool last = false; !last; ++searches) {
      last = grown;
      const KeySearchResult result = Search(*index, queries, 10, /*effort=*/0);
      ExpectSound(result, keys, last ? keys.size() : index->size(), queries, 10);
    }
  };
  std::thread first(search);
  std::thread second(search);
  for (size_t count = 650; count <= keys.size(); count += 50) {
    EXPECT_TRUE(index->Append(keys.Prefix(count), pool_).ok());
  }
  grown = true;
  first.join();
  second.join();
  EXPECT_GE(searches, 2u);
  EXPECT_LT(std::chrono::steady_clock::now() - begin, kTimeLimit);
  const KeySearchResult result = Search(*index, queries, 10);
  EXPECT_GE(Recall(result, keys, keys.size(), queries, 10), full_recall());
}

INSTANTIATE_TEST_SUITE_P(Indexes, KeyIndexTest, ::testing::ValuesIn(Cases()),
                         [](const ::testing::TestParamInfo<IndexCase>& index) {
                           return index.param.name;
                         });

}  // namespace
}  // namespace terrace
