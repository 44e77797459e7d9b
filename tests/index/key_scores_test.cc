#include "index/key_scores.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include "hwy/targets.h"
#include "index/kv_convert.h"

namespace terrace {
namespace {

constexpr KvDtype kDtypes[] = {KvDtype::kFloat32, KvDtype::kFloat16, KvDtype::kBfloat16};
constexpr size_t kMostRows = 9;
constexpr float kUntouched = -12345;

std::vector<float> Normals(size_t count, uint64_t seed) {
  std::mt19937_64 random(seed);
  std::normal_distribution<float> normal;
  std::vector<float> values(count);
  for (float& value : values) value = normal(random);
  return values;
}

struct Keys {
  std::vector<float> values;      // [count, head_dim], as stored
  std::vector<std::byte> stored;  // the same in the dtype
};

Keys Store(const std::vector<float>& values, KvDtype dtype) {
  Keys keys{std::vector<float>(values.size()),
            std::vector<std::byte>(values.size() * KvDtypeBytes(dtype))};
  EXPECT_EQ(EncodeKv(values.data(), KvDtype::kFloat32, dtype, values.size(), keys.stored.data()),
            std::nullopt);
  DecodeKv(keys.stored.data(), dtype, values.size(), keys.values.data());
  return keys;
}

// Against float64, with the most that a sum of fp32 products can be off in any order.
void ExpectScore(float score, const float* query, const float* key, size_t head_dim) {
  double sum = 0;
  double magnitude = 0;
  for (size_t i = 0; i < head_dim; ++i) {
    sum += double{query[i]} * double{key[i]};
    magnitude += std::abs(double{query[i]} * double{key[i]});
  }
  const double epsilon = std::numeric_limits<float>::epsilon();
  ASSERT_NEAR(score, sum, static_cast<double>(head_dim) * epsilon * magnitude);
}

// Every instruction set of this processor that the library has code for.
class KeyScoresTest : public ::testing::TestWithParam<int64_t> {
 protected:
  void SetUp() override { hwy::SetSupportedTargetsForTest(GetParam()); }
  void TearDown() override { hwy::SetSupportedTargetsForTest(0); }
};

TEST_P(KeyScoresTest, RunsScoreAsInFloat64ForEveryShape) {
  constexpr size_t kCount = 5;
  for (const KvDtype dtype : kDtypes) {
    for (size_t head_dim = 8; head_dim <= 256; head_dim += 8) {
      const Keys keys = Store(Normals(kCount * head_dim, head_dim), dtype);
      const std::vector<float> queries = Normals(kMostRows * head_dim, 1000 + head_dim);
      for (size_t rows = 1; rows <= kMostRows; ++rows) {
        SCOPED_TRACE(::testing::Message()
                     << KvDtypeName(dtype) << ", head_dim " << head_dim << ", rows " << rows);
        std::vector<float> scores(kCount * rows + 1, kUntouched);
        ScoreRun({queries.data(), rows * head_dim}, head_dim, keys.stored.data(), dtype, kCount,
                 scores.data());
        for (size_t key = 0; key < kCount; ++key) {
          for (size_t row = 0; row < rows; ++row) {
            ExpectScore(scores[key * rows + row], queries.data() + row * head_dim,
                        keys.values.data() + key * head_dim, head_dim);
          }
        }
        ASSERT_EQ(scores.back(), kUntouched);
      }
    }
  }
}

TEST_P(KeyScoresTest, KeysByIdScoreAsInFloat64InPanelsOfAnySize) {
  constexpr size_t kCount = 23;
  for (const KvDtype dtype : kDtypes) {
    for (const size_t head_dim : {8u, 40u, 128u, 256u}) {
      const Keys keys = Store(Normals(kCount * head_dim, head_dim), dtype);
      const std::vector<float> queries = Normals(kMostRows * head_dim, 1000 + head_dim);
      for (const size_t panel_keys : {1u, 7u, 23u, 100u}) {
        KeyPanels panels(head_dim, dtype, panel_keys);
        for (size_t key = 0; key < kCount; key += panel_keys) {
          panels.Add(keys.stored.data() + key * panels.key_bytes(),
                     std::min(panel_keys, kCount - key));
        }
        for (size_t count = 0; count < 20; ++count) {
          std::vector<uint32_t> ids(count);
          for (size_t i = 0; i < count; ++i) ids[i] = static_cast<uint32_t>((i * 7 + 3) % kCount);
          for (const size_t rows : {1u, 2u, 4u, 7u}) {
            std::vector<float> scores(count * rows + 1, kUntouched);
            ScoreKeys({queries.data(), rows * head_dim}, panels, ids, scores.data());
            for (size_t i = 0; i < count; ++i) {
              for (size_t row = 0; row < rows; ++row) {
                ExpectScore(scores[i * rows + row], queries.data() + row * head_dim,
                            keys.values.data() + ids[i] * head_dim, head_dim);
              }
            }
            ASSERT_EQ(scores.back(), kUntouched);
          }
        }
      }
    }
  }
}

TEST_P(KeyScoresTest, PairsScoreAsInFloat64) {
  for (const KvDtype dtype : kDtypes) {
    for (size_t head_dim = 8; head_dim <= 256; head_dim += 8) {
      const Keys keys = Store(Normals(2 * head_dim, head_dim), dtype);
      const float score = ScorePair(
          keys.stored.data(), keys.stored.data() + head_dim * KvDtypeBytes(dtype), dtype, head_dim);
      ExpectScore(score, keys.values.data(), keys.values.data() + head_dim, head_dim);
    }
  }
}

TEST_P(KeyScoresTest, ExtremeHalvesKeepTheirValue) {
  // The largest, the smallest normal and two subnormal numbers of fp16, and zeros.
  std::vector<float> values = {65504,    -65504,     0x1p-14f, -0x1p-14f,
                               0x1p-24f, 0x3ffp-24f, 0.0f,     -0.0f};
  const size_t head_dim = values.size();
  const Keys keys = Store(values, KvDtype::kFloat16);
  for (size_t element = 0; element < head_dim; ++element) {
    std::vector<float> query(head_dim, 0.0f);
    query[element] = 1;
    float score;
    ScoreRun(query, head_dim, keys.stored.data(), KvDtype::kFloat16, 1, &score);
    EXPECT_EQ(score, values[element]) << element;
  }
}

TEST_P(KeyScoresTest, ARowScoresTheSameAloneAndInAGroup) {
  constexpr size_t kHeadDim = 128;
  const Keys keys = Store(Normals(3 * kHeadDim, 1), KvDtype::kFloat16);
  const std::vector<float> queries = Normals(kMostRows * kHeadDim, 2);
  std::vector<float> together(3 * kMostRows);
  ScoreRun(queries, kHeadDim, keys.stored.data(), KvDtype::kFloat16, 3, together.data());
  for (size_t row = 0; row < kMostRows; ++row) {
    float alone[3];
    ScoreRun({queries.data() + row * kHeadDim, kHeadDim}, kHeadDim, keys.stored.data(),
             KvDtype::kFloat16, 3, alone);
    for (size_t key = 0; key < 3; ++key) EXPECT_EQ(alone[key], together[key * kMostRows + row]);
  }
}

INSTANTIATE_TEST_SUITE_P(Targets, KeyScoresTest,
                         ::testing::ValuesIn(hwy::SupportedAndGeneratedTargets()),
                         [](const ::testing::TestParamInfo<int64_t>& target) {
                           return std::string(hwy::TargetName(target.param));
                         });

}  // namespace
}  // namespace terrace
