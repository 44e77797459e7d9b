#include "runtime/query_samples.h"

#include <gtest/gtest.h>

#include <cmath>
#include <vector>

namespace terrace {
namespace {

constexpr size_t kHeadDim = 8;

std::vector<float> Row(float element) { return std::vector<float>(kHeadDim, element); }

TEST(QuerySamples, HoldsAllUntilItIsFull) {
  QuerySamples samples(kHeadDim, 3);
  for (const float element : {1.0f, 2.0f, 3.0f}) samples.Add(Row(element));
  std::vector<float> expected = Row(1);
  for (const float element : {2.0f, 3.0f}) expected.insert(expected.end(), kHeadDim, element);
  EXPECT_EQ(samples.Rows(), expected);
  samples.Add(Row(4));
  EXPECT_EQ(samples.size(), 3u);
}

// Of 4,096 numbered queries, 512 are held: their mean is within five standard errors of the mean.
TEST(QuerySamples, EveryQueryIsAsLikelyToStay) {
  constexpr size_t kQueries = 4096;
  constexpr size_t kHeld = 512;
  QuerySamples samples(kHeadDim, kHeld);
  for (size_t i = 0; i < kQueries; ++i) samples.Add(Row(static_cast<float>(i) / 4));
  const std::vector<float> rows = samples.Rows();
  ASSERT_EQ(rows.size(), kHeld * kHeadDim);
  double mean = 0;
  for (size_t i = 0; i < kHeld; ++i) mean += static_cast<double>(rows[i * kHeadDim]) / kHeld;
  const double deviation = kQueries / 4.0 / std::sqrt(12.0);
  EXPECT_NEAR(mean, kQueries / 8.0, 5 * deviation / std::sqrt(kHeld));
}

TEST(QuerySamples, WhatFp16CannotHoldIsLeftOut) {
  QuerySamples samples(kHeadDim, 4);
  samples.Add(Row(1e5f));
  EXPECT_EQ(samples.size(), 0u);
  samples.Add(Row(65504));
  EXPECT_EQ(samples.Rows(), Row(65504));
}

TEST(QuerySamples, GoesOnAfterLoadAsBefore) {
  QuerySamples samples(kHeadDim, 5);
  for (int i = 0; i < 40; ++i) samples.Add(Row(static_cast<float>(i)));
  std::vector<std::byte> bytes;
  samples.Save(bytes);
  QuerySamples loaded(kHeadDim, 5);
  ASSERT_TRUE(loaded.Load(bytes));
  for (int i = 40; i < 80; ++i) {
    samples.Add(Row(static_cast<float>(i)));
    loaded.Add(Row(static_cast<float>(i)));
  }
  EXPECT_EQ(loaded.Rows(), samples.Rows());
  EXPECT_FALSE(QuerySamples(kHeadDim, 4).Load(bytes)) << "more than it holds";
  EXPECT_FALSE(QuerySamples(16, 5).Load(bytes)) << "of another size";
  bytes.pop_back();
  EXPECT_FALSE(loaded.Load(bytes)) << "cut short";
  EXPECT_EQ(loaded.size(), 0u);
}

}  // namespace
}  // namespace terrace
