// What Put, Fetch, Drop and SetRetention promise, one tier at a time.

#include <optional>
#include <thread>
#include <utility>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/support/tier_fixture.h"
#include "tiers/tier_manager.h"

namespace terrace {
namespace {

using testing::HasSubstr;

constexpr size_t kBlock = 16 << 10;
constexpr uint64_t kNvme = 4 << 20;

TEST(TierManagerContract, BlocksComeBackFromHbmAsTheyWerePut) {
  TestTier tier(kBlock, {.hbm_slots = 2});
  tier.PutMany(1, 2);
  const absl::StatusOr<Lease> lease = tier.FetchMany({1, 2});
  ASSERT_TRUE(lease.ok()) << lease.status();
  for (uint64_t i = 0; i < 2; ++i) {
    EXPECT_TRUE(tier.Right((*lease)[i], i + 1));
    EXPECT_EQ((*lease)[i].hit_tier, Tier::kHbm);
    EXPECT_TRUE((*lease)[i].in_hbm);
    EXPECT_EQ((*lease)[i].bytes, kBlock);
  }
}

TEST(TierManagerContract, BlocksComeBackFromDramAsTheyWerePut) {
  TestTier tier(kBlock, {.dram_slots = 2});
  tier.PutMany(1, 2);
  const absl::StatusOr<Lease> lease = tier.FetchMany({2, 1});
  ASSERT_TRUE(lease.ok()) << lease.status();
  EXPECT_TRUE(tier.Right((*lease)[0], 2));
  EXPECT_TRUE(tier.Right((*lease)[1], 1));
  EXPECT_EQ((*lease)[0].hit_tier, Tier::kDram);
  EXPECT_FALSE((*lease)[0].in_hbm);
}

TEST(TierManagerContract, BlocksComeBackFromNvmeAsTheyWerePut) {
  TestTier tier(kBlock, {.nvme_bytes = kNvme});
  tier.PutMany(1, 8);
  ASSERT_TRUE(tier->Flush().ok());
  for (uint64_t number = 1; number <= 8; ++number) {
    EXPECT_EQ(tier.Find(number), Tier::kNvme);
    const absl::StatusOr<Lease> lease = tier.Fetch(number);
    ASSERT_TRUE(lease.ok()) << lease.status();
    EXPECT_TRUE(tier.Right((*lease)[0], number));
    EXPECT_EQ((*lease)[0].hit_tier, Tier::kNvme);
  }
  EXPECT_EQ(tier.reads(), 8);
}

TEST(TierManagerContract, BlocksPassThroughAllTiersUnchanged) {
  TestTier tier(kBlock, {.hbm_slots = 2, .dram_slots = 4, .nvme_bytes = kNvme});
  tier.PutMany(0, 32);
  for (int round = 0; round < 3; ++round) {
    for (uint64_t number = 0; number < 32; ++number) {
      ASSERT_TRUE(tier.Serves(number)) << number;
      ASSERT_EQ(tier.Find(number), Tier::kHbm);
    }
  }
  EXPECT_GT(tier.reads(), 0);
}

TEST(TierManagerContract, ABlockNotYetWrittenToNvmeIsServedFromStaging) {
  TestTier tier(kBlock, {.nvme_bytes = kNvme});
  tier.device().HoldAll();
  tier.PutMany(1, 2);
  EXPECT_TRUE(tier.Serves(1));
  EXPECT_TRUE(tier.Serves(2));
  EXPECT_EQ(tier.reads(), 0);
  tier.device().ReleaseAll();
}

TEST(TierManagerContract, ASecondPutKeepsTheFirstBytes) {
  TestTier tier(kBlock, {.dram_slots = 2, .nvme_bytes = kNvme});
  ASSERT_TRUE(tier.Put(1).ok());
  ASSERT_TRUE(tier.Put(1, Retention::kCached, /*version=*/1).ok());
  EXPECT_TRUE(tier.Serves(1));
  tier.PutMany(2, 8);  // block 1 leaves DRAM
  ASSERT_EQ(tier.Find(1), Tier::kNvme);
  ASSERT_TRUE(tier.Put(1, Retention::kCached, /*version=*/2).ok());
  EXPECT_TRUE(tier.Serves(1));
  EXPECT_EQ(tier.Stats().placement.puts, 9);
  EXPECT_EQ(tier.Stats().placement.repeated_puts, 2);
}

TEST(TierManagerContract, ASecondPutCanMakeABlockOwnedButNotCached) {
  TestTier tier(kBlock, {.dram_slots = 2});
  ASSERT_TRUE(tier.Put(1).ok());
  ASSERT_TRUE(tier.Put(1, Retention::kOwned).ok());
  ASSERT_TRUE(tier.Put(1, Retention::kCached).ok());
  tier.PutMany(2, 5);
  EXPECT_TRUE(tier.Serves(1));
}

TEST(TierManagerContract, AMissIsAnOutcomeAmongServedBlocks) {
  TestTier tier(kBlock, {.dram_slots = 4});
  tier.PutMany(1, 2);
  const absl::StatusOr<Lease> lease = tier.FetchMany({1, 77, 2});
  ASSERT_TRUE(lease.ok()) << lease.status();
  EXPECT_TRUE(tier.Right((*lease)[0], 1));
  EXPECT_EQ((*lease)[1].outcome, BlockOutcome::kMiss);
  EXPECT_EQ((*lease)[1].data, nullptr);
  EXPECT_TRUE(tier.Right((*lease)[2], 2));
  EXPECT_EQ(tier.Stats().placement.misses, 1);
}

TEST(TierManagerContract, AnEmptyFetchIsAnEmptyLease) {
  TestTier tier(kBlock, {.dram_slots = 1});
  const absl::StatusOr<Lease> lease = tier.FetchMany({});
  ASSERT_TRUE(lease.ok()) << lease.status();
  EXPECT_EQ(lease->size(), 0);
}

TEST(TierManagerContract, EqualIdsInOneFetchShareASlot) {
  TestTier tier(kBlock, {.dram_slots = 4, .nvme_bytes = kNvme});
  tier.PutMany(1, 12);
  ASSERT_EQ(tier.Find(1), Tier::kNvme);
  const uint64_t reads = tier.reads();
  {
    const absl::StatusOr<Lease> lease = tier.FetchMany({1, 1, 1});
    ASSERT_TRUE(lease.ok()) << lease.status();
    for (size_t i = 0; i < 3; ++i) EXPECT_TRUE(tier.Right((*lease)[i], 1));
  }
  EXPECT_EQ(tier.reads(), reads + 1);
  EXPECT_TRUE(tier.FetchMany({9, 10, 11, 12}).ok());  // nothing stayed pinned
}

// --- Parts ---

// Every aligned part of block 1, wherever it is now.
void ExpectAllPartsRight(TestTier& tier) {
  for (uint32_t offset = 0; offset < kBlock; offset += kPageBytes) {
    for (uint32_t bytes = 0; offset + bytes <= kBlock; bytes += kPageBytes) {
      const BlockRead read = {.id = TestId(1), .offset = offset, .bytes = bytes};
      const absl::StatusOr<Lease> lease = tier->Fetch({&read, 1});
      ASSERT_TRUE(lease.ok()) << lease.status();
      ASSERT_TRUE(tier.Right((*lease)[0], 1, 0, offset)) << offset << " " << bytes;
      ASSERT_EQ((*lease)[0].bytes, bytes > 0 ? bytes : kBlock - offset);
    }
  }
}

TEST(TierManagerParts, ComeFromHbm) {
  TestTier tier(kBlock, {.hbm_slots = 2});
  tier.PutMany(1, 1);
  ExpectAllPartsRight(tier);
  EXPECT_EQ(tier.Find(1), Tier::kHbm);
}

TEST(TierManagerParts, ComeFromDramWithoutPromotion) {
  TestTier tier(kBlock, {.hbm_slots = 2, .dram_slots = 2});
  tier.PutMany(1, 1);
  const BlockRead part = {.id = TestId(1), .offset = kPageBytes};
  ASSERT_TRUE(tier->Fetch({&part, 1}).ok());
  EXPECT_EQ(tier.Find(1), Tier::kDram);
  ExpectAllPartsRight(tier);
}

TEST(TierManagerParts, ComeFromNvmeReadingNoMoreThanThePart) {
  TestTier tier(kBlock, {.dram_slots = 1, .nvme_bytes = kNvme});
  tier.PutMany(1, 1);
  ASSERT_TRUE(tier->Flush().ok());
  tier.PutMany(2, 1);
  ASSERT_EQ(tier.Find(1), Tier::kNvme);
  const uint64_t before = tier.Stats().nvme_read_bytes;
  const BlockRead part = {.id = TestId(1), .offset = 2 * kPageBytes, .bytes = kPageBytes};
  {
    const absl::StatusOr<Lease> lease = tier->Fetch({&part, 1});
    ASSERT_TRUE(lease.ok()) << lease.status();
    EXPECT_TRUE(tier.Right((*lease)[0], 1, 0, 2 * kPageBytes));
    EXPECT_EQ((*lease)[0].hit_tier, Tier::kNvme);
  }
  EXPECT_EQ(tier.Find(1), Tier::kNvme);
  YieldUntil([&] { return tier.Stats().nvme_read_bytes > before; });
  EXPECT_EQ(tier.Stats().nvme_read_bytes - before, kPageBytes);
  ExpectAllPartsRight(tier);
}

TEST(TierManagerParts, OutsideTheBlockOrOffThePagesAreInvalid) {
  TestTier tier(kBlock, {.dram_slots = 2});
  tier.PutMany(1, 1);
  constexpr uint32_t kLastPage = UINT32_MAX - (kPageBytes - 1);
  const BlockRead bad[] = {
      {.id = TestId(1), .offset = 1},
      {.id = TestId(1), .offset = 0, .bytes = 100},
      {.id = TestId(1), .offset = kBlock},
      {.id = TestId(1), .offset = kBlock, .bytes = kPageBytes},
      {.id = TestId(1), .offset = kBlock - kPageBytes, .bytes = 2 * kPageBytes},
      {.id = TestId(1), .offset = 0, .bytes = kBlock + kPageBytes},
      {.id = TestId(1), .offset = kLastPage, .bytes = 2 * kPageBytes},
      {.id = TestId(1), .offset = kPageBytes, .bytes = kLastPage},
  };
  for (const BlockRead& read : bad) {
    const BlockRead batch[] = {{.id = TestId(1)}, read};
    EXPECT_EQ(tier->Fetch(batch).status().code(), absl::StatusCode::kInvalidArgument)
        << read.offset << " " << read.bytes;
    EXPECT_EQ(tier->FetchAsync(batch).status().code(), absl::StatusCode::kInvalidArgument);
  }
  EXPECT_EQ(tier.Stats().placement.hits[1], 0);
}

TEST(TierManagerContract, ATargetWithoutCapacityIsInvalid) {
  TestTier dram(kBlock, {.dram_slots = 2});
  EXPECT_EQ(dram.Fetch(1, Tier::kHbm).status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(dram.Fetch(1, Tier::kNvme).status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(dram.FetchAsync(1, Tier::kNvme).status().code(), absl::StatusCode::kInvalidArgument);
  TestTier hbm(kBlock, {.hbm_slots = 2});
  EXPECT_EQ(hbm.Fetch(1, Tier::kDram).status().code(), absl::StatusCode::kInvalidArgument);
}

TEST(TierManagerContract, APutOfAnotherSizeIsInvalidAndKeepsWhatCameBefore) {
  TestTier tier(kBlock, {.dram_slots = 2});
  const std::vector<std::byte> right = BlockBytes(TestId(1), kBlock);
  const std::vector<std::byte> wrong(kBlock - kPageBytes);
  const BlockWrite batch[] = {{.id = TestId(1), .bytes = right}, {.id = TestId(2), .bytes = wrong}};
  EXPECT_EQ(tier->Put(batch).code(), absl::StatusCode::kInvalidArgument);
  EXPECT_TRUE(tier.Serves(1));
  EXPECT_EQ(tier.Find(2), std::nullopt);
}

// --- Drop and retention ---

TEST(TierManagerContract, ADroppedBlockIsAMissWhereverItWas) {
  TestTier tier(kBlock, {.hbm_slots = 2, .dram_slots = 2, .nvme_bytes = kNvme});
  tier.PutMany(1, 12);
  ASSERT_TRUE(tier->Flush().ok());
  ASSERT_TRUE(tier.Serves(1));
  for (uint64_t number = 1; number <= 12; ++number) {
    ASSERT_NE(tier.Find(number), std::nullopt) << number;
    tier.Drop(number);
    EXPECT_EQ(tier.Find(number), std::nullopt) << number;
    const absl::StatusOr<Lease> lease = tier.Fetch(number);
    ASSERT_TRUE(lease.ok()) << lease.status();
    EXPECT_EQ((*lease)[0].outcome, BlockOutcome::kMiss);
  }
  tier.Drop(1);  // and once more
}

TEST(TierManagerContract, ALeaseOutlivesTheDropOfItsBlock) {
  TestTier tier(kBlock, {.hbm_slots = 1, .dram_slots = 2});
  tier.PutMany(1, 2);
  const absl::StatusOr<Lease> in_hbm = tier.Fetch(1, Tier::kHbm);
  const absl::StatusOr<Lease> in_dram = tier.Fetch(2, Tier::kDram);
  ASSERT_TRUE(in_hbm.ok() && in_dram.ok());
  tier.Drop(1);
  tier.Drop(2);
  // The same ids again, with other bytes: the leases keep theirs.
  ASSERT_TRUE(tier.Put(1, Retention::kCached, /*version=*/1).ok());
  EXPECT_TRUE(tier.Right((*in_hbm)[0], 1));
  EXPECT_TRUE(tier.Right((*in_dram)[0], 2));
  const absl::StatusOr<Lease> again = tier.Fetch(1, Tier::kDram);
  ASSERT_TRUE(again.ok()) << again.status();
  EXPECT_TRUE(tier.Right((*again)[0], 1, /*version=*/1));
}

TEST(TierManagerContract, ADropWhileABlockIsBeingWrittenLeavesNoTrace) {
  TestTier tier(kBlock, {.dram_slots = 4, .nvme_bytes = kNvme});
  tier.PutMany(1, 2);
  tier.device().HoldAll();
  tier.PutMany(3, 2);
  absl::Status overfull;
  std::thread putter([&] { overfull = tier.Put(5); });  // has to write something down first
  tier.device().AwaitHeld(1);
  for (uint64_t number = 1; number <= 4; ++number) tier.Drop(number);
  ASSERT_TRUE(tier.Put(1, Retention::kCached, /*version=*/1).ok());
  tier.device().ReleaseAll();
  putter.join();
  EXPECT_TRUE(overfull.ok()) << overfull;
  ASSERT_TRUE(tier->Flush().ok());
  for (uint64_t number = 2; number <= 4; ++number) EXPECT_EQ(tier.Find(number), std::nullopt);
  const absl::StatusOr<Lease> lease = tier.Fetch(1);
  ASSERT_TRUE(lease.ok()) << lease.status();
  EXPECT_TRUE(tier.Right((*lease)[0], 1, /*version=*/1));
}

TEST(TierManagerContract, OwnedBlocksFillDramAndThenPutsAreRefused) {
  TestTier tier(kBlock, {.dram_slots = 3});
  tier.PutMany(1, 3, Retention::kOwned);
  const absl::Status refused = tier.Put(4);
  EXPECT_EQ(refused.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(refused.message(), HasSubstr("1 slots needed"));
  EXPECT_THAT(refused.message(), HasSubstr("owned"));
  EXPECT_EQ(tier.Find(4), std::nullopt);
  for (uint64_t number = 1; number <= 3; ++number) EXPECT_TRUE(tier.Serves(number));
}

TEST(TierManagerContract, RoomReturnsWhenAnOwnedBlockBecomesCachedOrGoes) {
  TestTier tier(kBlock, {.dram_slots = 2});
  tier.PutMany(1, 2, Retention::kOwned);
  ASSERT_FALSE(tier.Put(3).ok());
  const BlockId second = TestId(2);
  tier->SetRetention({&second, 1}, Retention::kCached);
  EXPECT_TRUE(tier.Put(3, Retention::kOwned).ok());
  EXPECT_EQ(tier.Find(2), std::nullopt);
  ASSERT_FALSE(tier.Put(4).ok());
  tier.Drop(1);
  EXPECT_TRUE(tier.Put(4).ok());
  EXPECT_TRUE(tier.Serves(3));
}

TEST(TierManagerContract, OwnedBlocksMoveDownToNvmeAndComeBack) {
  TestTier tier(kBlock, {.dram_slots = 3, .nvme_bytes = kNvme});
  tier.PutMany(1, 60, Retention::kOwned);
  for (uint64_t number = 1; number <= 60; ++number) EXPECT_TRUE(tier.Serves(number)) << number;
  EXPECT_EQ(tier.Stats().placement.evicted_blocks, 0);
}

TEST(TierManagerContract, OwnedBlocksAreRefusedOnceNvmeIsFullOfThemAndNoneIsLost) {
  TestTier tier(kBlock, {.dram_slots = 2, .nvme_bytes = TinyNvmeBytes(kBlock, 5)});
  uint64_t stored = 0;
  while (stored < 20 && tier.Put(stored, Retention::kOwned).ok()) ++stored;
  EXPECT_GE(stored, 2 + 4);  // one segment may be in reserve
  EXPECT_LE(stored, 2 + 5);
  EXPECT_EQ(tier.Put(99).code(), absl::StatusCode::kResourceExhausted);
  for (uint64_t number = 0; number < stored; ++number) {
    EXPECT_NE(tier.Find(number), std::nullopt) << number;
  }
  tier.Drop(0);
  tier.Drop(1);
  EXPECT_TRUE(tier.Put(100, Retention::kOwned).ok());
}

TEST(TierManagerContract, CountLeadingStopsAtTheFirstMiss) {
  TestTier tier(kBlock, {.dram_slots = 8});
  tier.PutMany(0, 3);
  tier.PutMany(4, 2);
  EXPECT_EQ(tier->CountLeading(TestIds(0, 6)), 3);
  EXPECT_EQ(tier->CountLeading(TestIds(4, 2)), 2);
  EXPECT_EQ(tier->CountLeading({}), 0);
}

}  // namespace
}  // namespace terrace
