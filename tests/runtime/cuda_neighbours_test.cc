// Exact neighbours on a CUDA device, against those of the CPU.

#include "runtime/cuda_neighbours.h"

#include <algorithm>
#include <memory>
#include <random>
#include <set>
#include <string>
#include <thread>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "index/exact_knn.h"
#include "index/kv_convert.h"

namespace terrace {
namespace {

using ::testing::HasSubstr;

constexpr uint64_t kSeed = 17;

// Keys as they are stored, in panels of a size that divides no tile.
struct StoredKeys {
  StoredKeys(const std::vector<float>& keys, size_t head_dim, KvDtype dtype, size_t panel_keys = 13)
      : bytes(keys.size() * KvDtypeBytes(dtype)), panels(head_dim, dtype, panel_keys) {
    EncodeKv(keys.data(), KvDtype::kFloat32, dtype, keys.size(), bytes.data());
    const size_t count = keys.size() / head_dim;
    for (size_t key = 0; key < count; key += panel_keys) {
      panels.Add(bytes.data() + key * panels.key_bytes(), std::min(panel_keys, count - key));
    }
  }
  std::vector<std::byte> bytes;
  KeyPanels panels;
};

// Small integers, of which every sum is exact in any order, so that there are many equal scores.
std::vector<float> Integers(size_t count, uint64_t seed) {
  std::mt19937_64 random(seed);
  std::vector<float> values(count);
  for (float& value : values) value = static_cast<float>(random() % 7) - 3;
  return values;
}

std::vector<float> Normals(size_t count, uint64_t seed) {
  std::mt19937_64 random(seed);
  std::normal_distribution<float> normal;
  std::vector<float> values(count);
  for (float& value : values) value = normal(random);
  return values;
}

TEST(CudaNeighboursTest, WithoutADeviceSayWhatIsMissing) {
  const auto neighbours = MakeCudaNeighbours();
  if (neighbours.ok()) GTEST_SKIP() << "there is a device";
  EXPECT_EQ(neighbours.status().code(), absl::StatusCode::kUnavailable);
  EXPECT_THAT(std::string(neighbours.status().message()), HasSubstr("CUDA neighbours: "));
}

class CudaNeighboursOnDeviceTest : public ::testing::Test {
 protected:
  void SetUp() override {
    auto neighbours = MakeCudaNeighbours();
    if (!neighbours.ok()) GTEST_SKIP() << neighbours.status();
    neighbours_ = *std::move(neighbours);
  }
  // Empty on an error.
  std::vector<uint32_t> Nearest(const std::vector<float>& queries, const KeyPanels& keys,
                                size_t k) {
    const auto found = neighbours_->Nearest(queries, keys, k);
    EXPECT_TRUE(found.ok()) << found.status();
    return found.ok() ? *found : std::vector<uint32_t>();
  }

  std::unique_ptr<NeighbourSearch> neighbours_;
  ComputePool pool_{2};
};

TEST_F(CudaNeighboursOnDeviceTest, AreThoseOfTheCpuAndOfEqualOnesTheSmallerKeys) {
  for (const KvDtype dtype : {KvDtype::kFloat16, KvDtype::kBfloat16, KvDtype::kFloat32}) {
    for (const size_t head_dim : {8, 40, 128}) {
      for (const size_t count : {1, 31, 500}) {
        const StoredKeys keys(Integers(count * head_dim, kSeed), head_dim, dtype);
        for (const size_t rows : {1, 7}) {
          const std::vector<float> queries = Integers(rows * head_dim, kSeed + 1);
          for (const size_t k : {1, 20, 256}) {
            EXPECT_EQ(Nearest(queries, keys.panels, k),
                      ExactNeighbours(queries, keys.panels, k, pool_))
                << count << " keys of " << head_dim << ", " << rows << " rows, k " << k << ", seed "
                << kSeed;
          }
        }
      }
    }
  }
}

TEST_F(CudaNeighboursOnDeviceTest, AreFoundAcrossTilesOfKeysAndOfQueries) {
  constexpr size_t kHeadDim = 16;
  const StoredKeys many_keys(Integers(35000 * kHeadDim, kSeed), kHeadDim, KvDtype::kFloat16, 64);
  const std::vector<float> few_queries = Integers(5 * kHeadDim, kSeed + 1);
  const StoredKeys few_keys(Integers(300 * kHeadDim, kSeed + 2), kHeadDim, KvDtype::kFloat16);
  const std::vector<float> many_queries = Integers(1100 * kHeadDim, kSeed + 3);
  EXPECT_EQ(Nearest(few_queries, many_keys.panels, 100),
            ExactNeighbours(few_queries, many_keys.panels, 100, pool_));
  EXPECT_EQ(Nearest(many_queries, few_keys.panels, 100),
            ExactNeighbours(many_queries, few_keys.panels, 100, pool_));
}

// Keys of which each is better than all before: every one has to be collected.
TEST_F(CudaNeighboursOnDeviceTest, AreFoundWhereEveryKeyBeatsTheLast) {
  constexpr size_t kHeadDim = 8;
  constexpr size_t kCount = 9000;
  std::vector<float> values(kCount * kHeadDim, 0.0f);
  for (size_t key = 0; key < kCount; ++key) values[key * kHeadDim] = static_cast<float>(key) - 4500;
  const StoredKeys keys(values, kHeadDim, KvDtype::kFloat32);
  std::vector<float> queries(2 * kHeadDim, 0.0f);
  queries[0] = 1;
  queries[kHeadDim] = -1;
  for (const size_t k : {1, 255, 256}) {
    EXPECT_EQ(Nearest(queries, keys.panels, k), ExactNeighbours(queries, keys.panels, k, pool_));
  }
}

TEST_F(CudaNeighboursOnDeviceTest, DifferByRoundingAtMost) {
  constexpr size_t kHeadDim = 128;
  constexpr size_t kRows = 40;
  constexpr size_t kBest = 100;
  const StoredKeys keys(Normals(20000 * kHeadDim, kSeed), kHeadDim, KvDtype::kFloat16, 64);
  const std::vector<float> queries = Normals(kRows * kHeadDim, kSeed + 1);
  const std::vector<uint32_t> found = Nearest(queries, keys.panels, kBest);
  const std::vector<uint32_t> expected = ExactNeighbours(queries, keys.panels, kBest, pool_);
  ASSERT_EQ(found.size(), expected.size());
  std::vector<float> key(kHeadDim);
  const auto score = [&](size_t row, uint32_t number) {
    DecodeKv(keys.panels.key(number), keys.panels.dtype(), kHeadDim, key.data());
    double sum = 0;
    for (size_t i = 0; i < kHeadDim; ++i) sum += double{queries[row * kHeadDim + i]} * key[i];
    return sum;
  };
  size_t hits = 0;
  for (size_t row = 0; row < kRows; ++row) {
    const auto first = expected.begin() + static_cast<ptrdiff_t>(row * kBest);
    const std::set<uint32_t> best(first, first + kBest);
    for (size_t i = 0; i < kBest; ++i) {
      const uint32_t number = found[row * kBest + i];
      ASSERT_LT(number, 20000u);
      hits += best.count(number);
      EXPECT_NEAR(score(row, number), score(row, expected[row * kBest + i]), 1e-3);
    }
  }
  EXPECT_GE(static_cast<double>(hits), 0.999 * static_cast<double>(expected.size()));
}

TEST_F(CudaNeighboursOnDeviceTest, SearchesOfAllSizesAndThreadsGetTheirOwn) {
  constexpr size_t kHeadDim = 32;
  const StoredKeys keys(Integers(700 * kHeadDim, kSeed), kHeadDim, KvDtype::kBfloat16);
  std::vector<std::vector<float>> queries;
  std::vector<std::vector<uint32_t>> expected;
  for (const size_t rows : {3, 200, 50, 1}) {
    queries.push_back(Integers(rows * kHeadDim, kSeed + rows));
    expected.push_back(ExactNeighbours(queries.back(), keys.panels, rows, pool_));
  }
  std::vector<std::vector<uint32_t>> found(queries.size());
  std::vector<std::thread> threads;
  for (size_t i = 0; i < queries.size(); ++i) {
    threads.emplace_back(
        [&, i] { found[i] = Nearest(queries[i], keys.panels, queries[i].size() / kHeadDim); });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(found, expected);
  EXPECT_EQ(neighbours_->counts().searches, queries.size());
  EXPECT_EQ(neighbours_->counts().failures, 0u);
}

TEST_F(CudaNeighboursOnDeviceTest, OfNothingAreNoneAndTooManyAreRefused) {
  const StoredKeys keys(Integers(300 * 8, kSeed), 8, KvDtype::kFloat32);
  const KeyPanels none(8, KvDtype::kFloat32, 64);
  EXPECT_TRUE(Nearest({}, keys.panels, 5).empty());
  EXPECT_TRUE(Nearest(Integers(8, kSeed), none, 5).empty());
  const auto refused = neighbours_->Nearest(Integers(8, kSeed), keys.panels, 257);
  EXPECT_EQ(refused.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(refused.status().message()), HasSubstr("257"));
  EXPECT_EQ(neighbours_->counts().failures, 1u);
}

}  // namespace
}  // namespace terrace
