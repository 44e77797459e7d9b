// Blocks that are kept when their segment is evicted, what that costs, and the endurance budget.

#include <cstdint>
#include <vector>

#include "gtest/gtest.h"
#include "tests/support/tier_fixture.h"
#include "tiers/tier_manager.h"

namespace terrace {
namespace {

constexpr size_t kBlock = 16 << 10;
// 32 segments of six blocks.
constexpr uint64_t kNvme = 4 << 20;

TierManagerOptions Options(double amplification) {
  TierManagerOptions options = TestTierOptions(kBlock, {.dram_slots = 8, .nvme_bytes = kNvme});
  options.max_write_amplification = amplification;
  return options;
}

double Amplification(const PlacementStats& stats) {
  return static_cast<double>(stats.written_blocks) /
         static_cast<double>(stats.written_blocks - stats.rewritten_blocks);
}

TEST(TierManagerRewrite, OwnedBlocksStayWhileEverythingAroundThemGoes) {
  TestTier tier(Options(1.5));
  // One in each segment, so that every segment that is evicted has one.
  for (uint64_t number = 0; number < 150; ++number) {
    const Retention retention = number % 6 == 0 ? Retention::kOwned : Retention::kCached;
    ASSERT_TRUE(tier.Put(number, retention).ok()) << number;
  }
  // Round and round the log.
  for (uint64_t number = 1000; number < 3000; ++number)
    ASSERT_TRUE(tier.Put(number).ok()) << number;
  ASSERT_TRUE(tier->Flush().ok());
  for (uint64_t number = 0; number < 150; ++number) {
    EXPECT_EQ(tier.Serves(number), number % 6 == 0) << number;
  }
  const TierStats stats = tier.Stats();
  EXPECT_GT(stats.placement.rewritten_blocks, 25u);
  EXPECT_EQ(stats.placement.lost_blocks, 0u);
  EXPECT_LE(stats.nvme_peak_bytes, kNvme);
}

TEST(TierManagerRewrite, TheTierHoldsOwnedBlocksUpToItsShareAndThenRefuses) {
  TestTier tier(Options(1));
  uint64_t owned = 0;
  while (tier.Put(owned, Retention::kOwned).ok()) ++owned;
  const TierStats stats = tier.Stats();
  EXPECT_LE(stats.nvme_peak_bytes, kNvme);
  EXPECT_GE(owned, stats.tiers[2].slots * 3 / 4);
  // Those that came last have only DRAM, and leave it no room for others.
  EXPECT_EQ(tier.Fetch(0).status().code(), absl::StatusCode::kResourceExhausted);
  while (!tier.OnNvme(owned - 1)) tier.Drop(--owned);
  for (uint64_t number = 0; number < owned; ++number) EXPECT_TRUE(tier.Serves(number)) << number;
  // What is given back can be taken again.
  for (uint64_t number = 0; number < owned / 2; ++number) tier.Drop(number);
  for (uint64_t number = 0; number < owned / 4; ++number) {
    EXPECT_TRUE(tier.Put(10000 + number, Retention::kOwned).ok()) << number;
  }
  for (uint64_t number = owned / 2; number < owned; ++number) EXPECT_TRUE(tier.Serves(number));
}

TEST(TierManagerRewrite, BlocksThatAreUsedOutliveThoseThatAreNot) {
  for (const double amplification : {1.0, 2.0}) {
    TestTier tier(Options(amplification));
    uint64_t served = 0;
    for (uint64_t number = 0; number < 2000; ++number) {
      ASSERT_TRUE(tier.Put(1000 + number).ok());
      // Eight blocks in regular use, each long after it left DRAM.
      const uint64_t used = number / 10 % 8;
      if (number % 10 != 0) continue;
      if (tier.Find(used)) {
        EXPECT_TRUE(tier.Serves(used));
        ++served;
      } else {
        ASSERT_TRUE(tier.Put(used).ok());
      }
    }
    const PlacementStats stats = tier.Stats().placement;
    if (amplification == 1.0) {
      EXPECT_EQ(stats.rewritten_blocks, 0u);
      EXPECT_LT(served, 190u);
    } else {
      EXPECT_GT(stats.rewritten_blocks, 0u);
      EXPECT_GE(served, 192u);  // all but the first use of each
    }
  }
}

TEST(TierManagerRewrite, WriteAmplificationStaysWithinItsBound) {
  for (const double bound : {1.25, 1.5, 2.0}) {
    TestTier tier(Options(bound));
    for (uint64_t number = 0; number < 3000; ++number) {
      ASSERT_TRUE(tier.Put(number).ok());
      // Nearly everything is used once it is on NVMe.
      if (number >= 40) tier.Serves(number - 40);
    }
    ASSERT_TRUE(tier->Flush().ok());
    EXPECT_LE(Amplification(tier.Stats().placement), bound + 0.01);
  }
}

// --- Endurance ---

TEST(TierManagerEndurance, BeyondTheBudgetCachedBlocksAreDroppedAndOwnedOnesWritten) {
  TierManagerOptions options = Options(1);
  // An hour's share is a few groups, and what a day brings to this test is less than a block.
  options.nvme_write_bytes_per_day = 24 * (512 << 10);
  TestTier tier(options);
  tier.PutMany(0, 400);
  const TierStats stats = tier.Stats();
  EXPECT_GT(stats.placement.budget_dropped, 300u);
  EXPECT_LT(stats.nvme_written_bytes, 2u << 20);
  EXPECT_TRUE(stats.nvme_accepts_writes);
  tier.PutMany(1000, 40, Retention::kOwned);
  ASSERT_TRUE(tier->Flush().ok());
  for (uint64_t number = 1000; number < 1040; ++number) EXPECT_TRUE(tier.OnNvme(number)) << number;
}

TEST(TierManagerEndurance, WithoutABudgetNothingIsDroppedForIt) {
  TestTier tier(Options(1));
  tier.PutMany(0, 400);
  EXPECT_EQ(tier.Stats().placement.budget_dropped, 0u);
}

}  // namespace
}  // namespace terrace
