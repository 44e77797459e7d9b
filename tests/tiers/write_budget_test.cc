#include "tiers/write_budget.h"

#include <cstdint>
#include <limits>
#include <random>

#include "gtest/gtest.h"

namespace terrace {
namespace {

constexpr uint64_t kHourBytes = 1'000'000'000;
constexpr uint64_t kDayBytes = 24 * kHourBytes;

const absl::Time kStart = absl::FromUnixSeconds(1'700'000'000);

TEST(WriteBudget, StartsWithOneHoursShare) {
  WriteBudget budget(kDayBytes);
  EXPECT_TRUE(budget.Allows(kStart));
  budget.Spend(kHourBytes - 1, kStart);
  EXPECT_TRUE(budget.Allows(kStart));
  budget.Spend(1, kStart);
  EXPECT_FALSE(budget.Allows(kStart));
}

TEST(WriteBudget, HoldsNoMoreHoweverLongItIsIdle) {
  WriteBudget budget(kDayBytes);
  budget.Spend(1, kStart);
  const absl::Time later = kStart + absl::Hours(24 * 365 * 100);
  budget.Spend(kHourBytes - 1, later);
  EXPECT_TRUE(budget.Allows(later));
  budget.Spend(1, later);
  EXPECT_FALSE(budget.Allows(later));
}

TEST(WriteBudget, AllowsAgainOnceADebtIsPaid) {
  WriteBudget budget(kDayBytes);
  budget.Spend(4 * kHourBytes, kStart);  // three hours of debt
  EXPECT_FALSE(budget.Allows(kStart));
  const absl::Duration wait = budget.TimeUntilAllowed(kStart);
  EXPECT_GT(wait, absl::Hours(3));
  EXPECT_LT(wait, absl::Hours(3) + absl::Microseconds(1));
  EXPECT_FALSE(budget.Allows(kStart + absl::Hours(3)));
  EXPECT_FALSE(budget.Allows(kStart + wait - absl::Nanoseconds(1)));
  EXPECT_TRUE(budget.Allows(kStart + wait));
  EXPECT_EQ(budget.TimeUntilAllowed(kStart + wait), absl::ZeroDuration());
}

TEST(WriteBudget, FillsContinuously) {
  WriteBudget budget(kDayBytes);
  budget.Spend(kHourBytes, kStart);
  const absl::Time later = kStart + absl::Minutes(6);  // a tenth of the hour's share
  budget.Spend(kHourBytes / 10 - 1, later);
  EXPECT_TRUE(budget.Allows(later));
  budget.Spend(2, later);
  EXPECT_FALSE(budget.Allows(later));
}

// A writer that asks before each block, for a week and at random times.
TEST(WriteBudget, KeepsAWriterThatAsksToItsRate) {
  constexpr uint64_t kBlockBytes = 64 << 10;
  const uint64_t seed = 1;
  SCOPED_TRACE(testing::Message() << "seed " << seed);
  std::mt19937_64 random(seed);
  WriteBudget budget(kDayBytes);
  uint64_t written = 0;
  absl::Time now = kStart;
  const absl::Time end = kStart + absl::Hours(24 * 7);
  while (now < end) {
    if (budget.Allows(now)) {
      budget.Spend(kBlockBytes, now);
      written += kBlockBytes;
    } else {
      now += budget.TimeUntilAllowed(now) + absl::Microseconds(random() % 1000);
    }
  }
  // The bucket that it began with, and at most one block that was begun with less left.
  EXPECT_LE(written, 7 * kDayBytes + kHourBytes + kBlockBytes);
  EXPECT_GE(written, 7 * kDayBytes + kHourBytes - 2 * kBlockBytes);
}

TEST(WriteBudget, WithoutALimitAllowsEverything) {
  WriteBudget budget(0);
  budget.Spend(std::numeric_limits<uint64_t>::max(), kStart);
  EXPECT_TRUE(budget.Allows(kStart));
  EXPECT_EQ(budget.TimeUntilAllowed(kStart), absl::ZeroDuration());
}

TEST(WriteBudget, KeepsItsBalanceWhenTheClockIsSetBack) {
  WriteBudget budget(kDayBytes);
  budget.Spend(2 * kHourBytes, kStart);  // an hour of debt
  EXPECT_FALSE(budget.Allows(kStart + absl::Minutes(30)));
  const absl::Time back = kStart - absl::Hours(24);
  const absl::Duration wait = budget.TimeUntilAllowed(back);
  EXPECT_GT(wait, absl::Minutes(30));
  EXPECT_LT(wait, absl::Minutes(30) + absl::Microseconds(1));
  EXPECT_TRUE(budget.Allows(back + wait));
}

TEST(WriteBudget, GainsNothingByTimesOutOfOrder) {
  WriteBudget budget(kDayBytes);
  budget.Spend(2 * kHourBytes, kStart);
  for (int i = 0; i < 100'000; ++i) {
    EXPECT_FALSE(budget.Allows(kStart + absl::Milliseconds(500)));
    EXPECT_FALSE(budget.Allows(kStart));
  }
  EXPECT_GT(budget.TimeUntilAllowed(kStart), absl::Minutes(59));
}

TEST(WriteBudget, TakesAnyAmountsAndTimes) {
  constexpr uint64_t kMost = std::numeric_limits<uint64_t>::max();
  for (const uint64_t bytes_per_day : {uint64_t{1}, uint64_t{1} << 40, uint64_t{1} << 60, kMost}) {
    SCOPED_TRACE(bytes_per_day);
    WriteBudget budget(bytes_per_day);
    budget.Spend(0, absl::InfinitePast());
    EXPECT_TRUE(budget.Allows(kStart));
    for (int i = 0; i < 10; ++i) budget.Spend(kMost, kStart);
    EXPECT_FALSE(budget.Allows(kStart));
    EXPECT_GT(budget.TimeUntilAllowed(kStart), absl::Hours(24 * 9));
    EXPECT_FALSE(budget.Allows(kStart + absl::Hours(24 * 9)));
    if (bytes_per_day >= uint64_t{1} << 60) {
      EXPECT_TRUE(budget.Allows(kStart + absl::Hours(24 * 161)));
    }
  }
}

}  // namespace
}  // namespace terrace
