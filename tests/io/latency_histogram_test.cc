#include "io/latency_histogram.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <random>
#include <vector>

#include "gtest/gtest.h"

namespace terrace {
namespace {

TEST(LatencyHistogram, IsZeroWhenEmpty) {
  const LatencyHistogram histogram;
  EXPECT_EQ(histogram.count(), 0u);
  EXPECT_EQ(histogram.max_ns(), 0);
  EXPECT_EQ(histogram.PercentileNs(0.5), 0);
}

TEST(LatencyHistogram, IsExactForSmallValues) {
  LatencyHistogram histogram;
  for (int64_t value = 1; value <= 31; ++value) histogram.RecordNanoseconds(value);
  EXPECT_EQ(histogram.PercentileNs(0), 1);
  EXPECT_EQ(histogram.PercentileNs(16.0 / 31), 16);
  EXPECT_EQ(histogram.PercentileNs(1), 31);
}

TEST(LatencyHistogram, TakesTheRankThatTheShareNames) {
  LatencyHistogram histogram;
  for (int i = 0; i < 7; ++i) histogram.RecordNanoseconds(1);
  for (int i = 0; i < 93; ++i) histogram.RecordNanoseconds(2);
  // 0.07 * 100 is a little more than 7 in binary.
  EXPECT_EQ(histogram.PercentileNs(0.07), 1);
  EXPECT_EQ(histogram.PercentileNs(0.071), 2);
}

TEST(LatencyHistogram, PercentilesAreWithinAStepOfTheTruthAndNeverBelow) {
  for (uint64_t seed = 1; seed <= 20; ++seed) {
    SCOPED_TRACE(testing::Message() << "seed " << seed);
    std::mt19937_64 random(seed);
    std::lognormal_distribution<double> distribution(static_cast<double>(5 + seed), 2);
    std::vector<int64_t> values(5000);
    LatencyHistogram histogram;
    for (int64_t& value : values) {
      value = static_cast<int64_t>(std::min(distribution(random), 1e18));
      histogram.RecordNanoseconds(value);
    }
    std::sort(values.begin(), values.end());
    for (const double share : {0.0, 0.01, 0.5, 0.9, 0.99, 0.999, 1.0}) {
      const size_t rank = static_cast<size_t>(std::ceil(share * 5000 - 1e-6));
      const int64_t truth = values[std::max<size_t>(rank, 1) - 1];
      const int64_t reported = histogram.PercentileNs(share);
      EXPECT_GE(reported, truth) << share;
      EXPECT_LE(static_cast<double>(reported), static_cast<double>(truth) * 1.032) << share;
    }
    EXPECT_EQ(histogram.PercentileNs(1), values.back());
    EXPECT_EQ(histogram.max_ns(), values.back());
  }
}

TEST(LatencyHistogram, TakesTheExtremes) {
  LatencyHistogram histogram;
  histogram.RecordNanoseconds(-5);
  EXPECT_EQ(histogram.PercentileNs(1), 0);
  histogram.Record(absl::InfiniteDuration());
  EXPECT_EQ(histogram.max_ns(), std::numeric_limits<int64_t>::max());
  EXPECT_EQ(histogram.PercentileNs(1), std::numeric_limits<int64_t>::max());
  histogram.Record(absl::Microseconds(3));
  EXPECT_EQ(histogram.count(), 3u);
}

TEST(LatencyHistogram, MergedIsAsIfRecordedInOne) {
  std::mt19937_64 random(3);
  LatencyHistogram parts[2];
  LatencyHistogram whole;
  for (int i = 0; i < 1000; ++i) {
    const int64_t value = static_cast<int64_t>(random() % 1000000);
    parts[i % 2].RecordNanoseconds(value);
    whole.RecordNanoseconds(value);
  }
  parts[0].Merge(parts[1]);
  EXPECT_EQ(parts[0].count(), whole.count());
  EXPECT_EQ(parts[0].max_ns(), whole.max_ns());
  for (const double share : {0.1, 0.5, 0.99}) {
    EXPECT_EQ(parts[0].PercentileNs(share), whole.PercentileNs(share));
  }
}

}  // namespace
}  // namespace terrace
