// What is counted where: blocks, hits, bytes and the room that is left.

#include <array>
#include <optional>

#include "gtest/gtest.h"
#include "io/aligned_buffer.h"
#include "tests/support/tier_fixture.h"
#include "tiers/tier_manager.h"

namespace terrace {
namespace {

constexpr size_t kBlock = 16 << 10;
constexpr uint64_t kNvme = 4 << 20;

uint64_t TotalBlocks(const TierStats& stats) {
  return stats.tiers[0].blocks + stats.tiers[1].blocks + stats.tiers[2].blocks;
}

TEST(TierManagerAccounting, ABlockCountsInTheFastestTierAlone) {
  TestTier tier(kBlock, {.hbm_slots = 2, .dram_slots = 4, .nvme_bytes = kNvme});
  tier.PutMany(1, 1);
  EXPECT_EQ(tier.Stats().tiers[1].blocks, 1);
  ASSERT_TRUE(tier->Flush().ok());  // on NVMe as well
  EXPECT_EQ(tier.Stats().tiers[1].blocks, 1);
  EXPECT_EQ(tier.Stats().tiers[2].blocks, 0);
  ASSERT_TRUE(tier.Serves(1));  // in HBM as well
  const TierStats stats = tier.Stats();
  EXPECT_EQ(stats.tiers[0].blocks, 1);
  EXPECT_EQ(TotalBlocks(stats), 1);
  tier.Drop(1);
  EXPECT_EQ(TotalBlocks(tier.Stats()), 0);
}

TEST(TierManagerAccounting, AHitCountsOnceAtTheFastestTier) {
  TestTier tier(kBlock, {.hbm_slots = 2, .dram_slots = 2, .nvme_bytes = kNvme});
  tier.PutMany(1, 6);
  ASSERT_TRUE(tier->Flush().ok());
  ASSERT_EQ(tier.Find(1), Tier::kNvme);
  ASSERT_EQ(tier.Find(6), Tier::kDram);
  const std::array<uint64_t, kTierCount> none = {};
  EXPECT_EQ(tier.Stats().placement.hits, none);
  ASSERT_TRUE(tier.Serves(6));
  EXPECT_EQ(tier.Stats().placement.hits, (std::array<uint64_t, kTierCount>{0, 1, 0}));
  ASSERT_TRUE(tier.Serves(6));
  EXPECT_EQ(tier.Stats().placement.hits, (std::array<uint64_t, kTierCount>{1, 1, 0}));
  ASSERT_TRUE(tier.Serves(1));
  EXPECT_EQ(tier.Stats().placement.hits, (std::array<uint64_t, kTierCount>{1, 1, 1}));
  ASSERT_TRUE(tier.Serves(1));
  EXPECT_EQ(tier.Stats().placement.hits, (std::array<uint64_t, kTierCount>{2, 1, 1}));
  EXPECT_FALSE(tier.Serves(99));
  EXPECT_EQ(tier.Stats().placement.misses, 1);
}

TEST(TierManagerAccounting, AFailedFetchCountsNoHit) {
  TestTier tier(kBlock, {.hbm_slots = 1, .dram_slots = 4});
  tier.PutMany(1, 2);
  ASSERT_FALSE(tier.FetchMany({1, 2, 99}).ok());
  EXPECT_EQ(tier.Stats().placement.hits[1], 0);
  EXPECT_EQ(tier.Stats().placement.misses, 0);
}

TEST(TierManagerAccounting, ATierHoldsExactlyItsCapacityInBlocks) {
  TierManagerOptions options = TestTierOptions(kBlock, {.hbm_slots = 3, .dram_slots = 5});
  options.hbm_bytes += kBlock - 1;  // rounds down
  options.dram_bytes += 1;
  TestTier tier(options);
  tier.PutMany(0, 30);
  for (uint64_t number = 20; number < 30; ++number) {
    const absl::StatusOr<Lease> lease = tier.Fetch(number);
    ASSERT_TRUE(lease.ok()) << lease.status();
  }
  TierStats stats = tier.Stats();
  EXPECT_EQ(stats.tiers[0].slots, 3);
  EXPECT_EQ(stats.tiers[1].slots, 5);
  EXPECT_EQ(stats.tiers[2].slots, 0);
  EXPECT_LE(stats.tiers[0].blocks, 3);
  EXPECT_LE(stats.tiers[1].blocks, 5);
  tier.PutMany(100, 30);
  stats = tier.Stats();
  EXPECT_EQ(stats.tiers[1].blocks, 5);
}

TEST(TierManagerAccounting, DramAloneIsAPlainLruCache) {
  TestTier tier(kBlock, {.dram_slots = 3});
  tier.PutMany(1, 3);
  ASSERT_TRUE(tier.Serves(1));
  tier.PutMany(4, 1);
  EXPECT_EQ(tier.Find(2), std::nullopt);
  ASSERT_TRUE(tier.Put(3).ok());  // counts as a use
  tier.PutMany(5, 1);
  EXPECT_EQ(tier.Find(1), std::nullopt);
  EXPECT_EQ(tier.Find(3), Tier::kDram);
  EXPECT_EQ(tier.Find(4), Tier::kDram);
  EXPECT_EQ(tier.Stats().placement.evicted_blocks, 2);
}

TEST(TierManagerAccounting, APromotedBlocksDramCopyIsTheFirstVictim) {
  TestTier tier(kBlock, {.hbm_slots = 2, .dram_slots = 3});
  tier.PutMany(1, 3);
  ASSERT_TRUE(tier.Serves(3));
  tier.PutMany(4, 1);  // in the place of the copy of 3, though 1 and 2 are older
  for (uint64_t number = 1; number <= 4; ++number) EXPECT_NE(tier.Find(number), std::nullopt);
  EXPECT_EQ(tier.Stats().placement.evicted_blocks, 0);
}

TEST(TierManagerAccounting, NvmeNeverHoldsMoreThanItsCapacity) {
  const uint64_t bytes = TinyNvmeBytes(kBlock, 6);
  TestTier tier(kBlock, {.dram_slots = 2, .nvme_bytes = bytes});
  for (uint64_t number = 0; number < 60; ++number) {
    ASSERT_TRUE(tier.Put(number).ok());
    const TierStats stats = tier.Stats();
    ASSERT_LE(stats.tiers[2].blocks, 6);
    ASSERT_LE(stats.nvme_peak_bytes, bytes);
  }
  EXPECT_GT(tier.Stats().placement.evicted_segments, 0);
}

TEST(TierManagerAccounting, EveryBlockIsFoundEvictedOrDropped) {
  TestTier tier(kBlock, {.hbm_slots = 2, .dram_slots = 3, .nvme_bytes = TinyNvmeBytes(kBlock, 8)});
  tier.PutMany(0, 80);
  for (uint64_t number = 70; number < 80; ++number) EXPECT_TRUE(tier.Serves(number));
  const TierStats stats = tier.Stats();
  EXPECT_EQ(TotalBlocks(stats) + stats.placement.evicted_blocks, 80);
  EXPECT_EQ(stats.placement.puts, 80);
}

TEST(TierManagerFlush, PutsEveryBlockOnNvme) {
  for (const TierSizes& sizes :
       {TierSizes{.nvme_bytes = kNvme}, TierSizes{.dram_slots = 8, .nvme_bytes = kNvme},
        TierSizes{.hbm_slots = 8, .nvme_bytes = kNvme},
        TierSizes{.hbm_slots = 4, .dram_slots = 8, .nvme_bytes = kNvme}}) {
    TestTier tier(kBlock, sizes);
    tier.PutMany(1, 20);
    for (uint64_t number = 17; number <= 20; ++number) ASSERT_TRUE(tier.Serves(number));
    const uint64_t syncs = tier.syncs();
    ASSERT_TRUE(tier->Flush().ok());
    EXPECT_GT(tier.syncs(), syncs);  // one, and those of segments that were sealed meanwhile
    for (uint64_t number = 1; number <= 20; ++number) {
      EXPECT_TRUE(tier.OnNvme(number)) << number;
      ASSERT_TRUE(tier->NvmeOffset(TestId(number)).has_value());
      EXPECT_EQ(*tier->NvmeOffset(TestId(number)) % kPageBytes, 0);
    }
    const uint64_t writes = tier.writes();
    ASSERT_TRUE(tier->Flush().ok());
    EXPECT_EQ(tier.writes(), writes);  // nothing is written twice
  }
}

TEST(TierManagerFlush, WithoutNvmeIsAFailedPrecondition) {
  TestTier tier(kBlock, {.hbm_slots = 1, .dram_slots = 1});
  EXPECT_EQ(tier->Flush().code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_FALSE(tier->NvmeOffset(TestId(1)).has_value());
}

TEST(TierManagerFlush, IsRefusedWhenOwnedBlocksLeaveNoRoom) {
  TestTier tier(kBlock, {.dram_slots = 4, .nvme_bytes = TinyNvmeBytes(kBlock, 2)});
  tier.PutMany(1, 4, Retention::kOwned);
  EXPECT_EQ(tier->Flush().code(), absl::StatusCode::kResourceExhausted);
  for (uint64_t number = 1; number <= 4; ++number) EXPECT_TRUE(tier.Serves(number));
  tier.Drop(1);
  tier.Drop(2);
  tier.Drop(3);
  EXPECT_TRUE(tier->Flush().ok());
  EXPECT_TRUE(tier.OnNvme(4));
}

TEST(TierManagerStats, BytesAreWhatTheDeviceMoved) {
  TestTier tier(kBlock, {.hbm_slots = 1, .dram_slots = 1, .nvme_bytes = kNvme});
  const NvmeGeometry geometry = *PlanNvmeGeometry(kNvme, kBlock);
  const uint64_t opened = tier.Stats().nvme_written_bytes;
  EXPECT_EQ(opened, geometry.log_start() * kPageBytes);  // superblocks and a blank manifest
  tier.PutMany(1, 1);
  ASSERT_TRUE(tier->Flush().ok());
  EXPECT_EQ(tier.Stats().nvme_written_bytes - opened,
            kPageBytes + kBlock + geometry.manifest_pages * kPageBytes);  // a header and a mark
  tier.PutMany(2, 1);
  ASSERT_EQ(tier.Find(1), Tier::kNvme);
  EXPECT_EQ(tier.Stats().hbm_copied_bytes, 0);
  ASSERT_TRUE(tier.Serves(1));
  YieldUntil([&] { return tier.Stats().nvme_read_bytes == kBlock; });
  EXPECT_EQ(tier.Stats().hbm_copied_bytes, kBlock);
  ASSERT_TRUE(tier.Serves(2));  // up, after the demotion of 1
  EXPECT_EQ(tier.Stats().nvme_read_bytes, kBlock);
}

TEST(TierManagerStats, DescribeTheTiers) {
  TestTier tier(kBlock, {.hbm_slots = 2, .dram_slots = 3, .nvme_bytes = kNvme});
  const TierStats stats = tier.Stats();
  EXPECT_EQ(stats.tiers[0].capacity_bytes, 2 * kBlock);
  EXPECT_EQ(stats.tiers[1].capacity_bytes, 3 * kBlock);
  EXPECT_EQ(stats.tiers[2].capacity_bytes, kNvme);
  EXPECT_GT(stats.tiers[2].slots, 0);
  EXPECT_LE(stats.tiers[2].slots * kBlock, kNvme);
  EXPECT_TRUE(stats.nvme_accepts_writes);
  EXPECT_TRUE(stats.nvme_error.ok());
  EXPECT_EQ(stats.device.engine, IoEngine::kMemory);
  EXPECT_GT(stats.metadata_bytes, 0);
  EXPECT_GT(stats.staging_bytes, 0);
  EXPECT_EQ(stats.copy_engine, "faulty");
}

}  // namespace
}  // namespace terrace
