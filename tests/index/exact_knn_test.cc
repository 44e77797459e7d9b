#include "index/exact_knn.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <numeric>
#include <random>
#include <tuple>
#include <vector>

#include "hwy/targets.h"
#include "index/kv_convert.h"

namespace terrace {
namespace {

constexpr uint64_t kSeed = 11;

// Small integers, of which every sum is exact in any order, so that there are many equal scores.
std::vector<float> Integers(size_t count, uint64_t seed) {
  std::mt19937_64 random(seed);
  std::vector<float> values(count);
  for (float& value : values) value = static_cast<float>(random() % 7) - 3;
  return values;
}

// Best first, of equal ones the smaller key first.
std::vector<uint32_t> Expected(const std::vector<float>& queries, const std::vector<float>& keys,
                               size_t head_dim, size_t k) {
  const size_t count = keys.size() / head_dim;
  std::vector<uint32_t> expected;
  for (size_t row = 0; row < queries.size() / head_dim; ++row) {
    std::vector<double> scores(count, 0);
    for (size_t key = 0; key < count; ++key) {
      for (size_t i = 0; i < head_dim; ++i) {
        scores[key] += double{queries[row * head_dim + i]} * double{keys[key * head_dim + i]};
      }
    }
    std::vector<uint32_t> order(count);
    std::iota(order.begin(), order.end(), 0u);
    std::stable_sort(order.begin(), order.end(),
                     [&](uint32_t a, uint32_t b) { return scores[a] > scores[b]; });
    order.resize(std::min(k, count));
    expected.insert(expected.end(), order.begin(), order.end());
  }
  return expected;
}

class ExactNeighboursTest : public ::testing::TestWithParam<std::tuple<size_t, KvDtype>> {};

TEST_P(ExactNeighboursTest, AreThoseOfAFullSort) {
  const auto [head_dim, dtype] = GetParam();
  for (const size_t count : {1u, 31u, 33u, 500u}) {
    for (const size_t rows : {1u, 6u, 7u, 400u}) {
      const std::vector<float> keys = Integers(count * head_dim, kSeed);
      const std::vector<float> queries = Integers(rows * head_dim, kSeed + 1);
      std::vector<std::byte> stored(keys.size() * KvDtypeBytes(dtype));
      EncodeKv(keys.data(), KvDtype::kFloat32, dtype, keys.size(), stored.data());
      // Panels that no tile of keys divides.
      KeyPanels panels(head_dim, dtype, 13);
      for (size_t key = 0; key < count; key += 13) {
        panels.Add(stored.data() + key * panels.key_bytes(), std::min<size_t>(13, count - key));
      }
      for (const size_t threads : {1u, 2u}) {
        ComputePool pool(threads);
        EXPECT_EQ(ExactNeighbours(queries, panels, 20, pool), Expected(queries, keys, head_dim, 20))
            << count << " keys, " << rows << " rows, seed " << kSeed;
      }
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Shapes, ExactNeighboursTest,
                         ::testing::Combine(::testing::Values(8, 40, 128),
                                            ::testing::Values(KvDtype::kFloat16, KvDtype::kBfloat16,
                                                              KvDtype::kFloat32)));

TEST(ExactNeighbours, AreTheSameOnEveryInstructionSet) {
  const std::vector<float> keys = Integers(300 * 24, kSeed);
  const std::vector<float> queries = Integers(10 * 24, kSeed + 1);
  const auto panels = KeyPanels::Contiguous(keys.data(), 300, 24, KvDtype::kFloat32);
  ComputePool pool(1);
  for (const int64_t target : hwy::SupportedAndGeneratedTargets()) {
    hwy::SetSupportedTargetsForTest(target);
    EXPECT_EQ(ExactNeighbours(queries, panels, 12, pool), Expected(queries, keys, 24, 12))
        << hwy::TargetName(target);
  }
  hwy::SetSupportedTargetsForTest(0);
}

TEST(ExactNeighbours, OfNothingAreNone) {
  const std::vector<float> keys = Integers(8, kSeed);
  ComputePool pool(1);
  const auto panels = KeyPanels::Contiguous(keys.data(), 1, 8, KvDtype::kFloat32);
  EXPECT_TRUE(ExactNeighbours({}, panels, 5, pool).empty());
  const auto none = KeyPanels::Contiguous(nullptr, 0, 8, KvDtype::kFloat32);
  EXPECT_TRUE(ExactNeighbours(keys, none, 5, pool).empty());
}

}  // namespace
}  // namespace terrace
