// Nobody waits for ever, nothing leaks, and destruction is safe, whatever is under way.

#include <thread>
#include <utility>
#include <vector>

#include "gtest/gtest.h"
#include "tests/support/tier_fixture.h"
#include "tiers/tier_manager.h"

namespace terrace {
namespace {

constexpr size_t kBlock = 16 << 10;
constexpr uint64_t kNvme = 4 << 20;
// Blocks so large that there are four staging slots, and one block to a write group.
constexpr size_t kLarge = 4 << 20;

bool IsRead(const IoRequest& request) { return request.op == IoOp::kRead; }
bool IsWrite(const IoRequest& request) { return request.op == IoOp::kWrite; }

TEST(TierManagerProgress, ReadsThatWaitForStagingStartWhenAWriteGivesItBack) {
  TestTier tier(kLarge, {.hbm_slots = 4, .nvme_bytes = 16 * kLarge});
  tier.PutMany(1, 4);
  ASSERT_TRUE(tier->Flush().ok());
  tier.PutMany(11, 4);  // 1 to 4 are on NVMe alone
  tier.device().HoldWhen(IsWrite);
  std::thread fetcher([&] {
    const absl::StatusOr<Lease> lease = tier.FetchMany({1, 2, 3, 4});
    ASSERT_TRUE(lease.ok()) << lease.status();
    for (uint64_t i = 0; i < 4; ++i) EXPECT_TRUE(tier.Right((*lease)[i], i + 1));
  });
  // Writes of this size go one at a time; the staging slots of the others wait behind it.
  tier.device().AwaitHeld(1);
  // The fetch has its slots in HBM and cannot start reading.
  YieldUntil([&] { return tier.Find(1) == Tier::kHbm || tier.Stats().placement.hits[2] == 4; });
  tier.device().ReleaseAll();
  fetcher.join();
}

TEST(TierManagerProgress, ReadsThatNobodyWaitsForStartWhenAWriteGivesStagingBack) {
  TestTier tier(kLarge, {.hbm_slots = 4, .nvme_bytes = 16 * kLarge});
  tier.PutMany(1, 4);
  ASSERT_TRUE(tier->Flush().ok());
  tier.PutMany(11, 4);
  tier.device().HoldWhen(IsWrite);
  const std::vector<BlockRead> reads = {
      {.id = TestId(1)}, {.id = TestId(2)}, {.id = TestId(3)}, {.id = TestId(4)}};
  absl::StatusOr<Ticket> ticket;
  YieldUntil([&] {
    ticket = tier->FetchAsync(reads);
    return ticket.ok() || !absl::IsUnavailable(ticket.status());
  });
  ASSERT_TRUE(ticket.ok()) << ticket.status();
  tier.device().AwaitHeld(1);
  tier.device().ReleaseAll();
  YieldUntil([&] { return ticket->Done(); });
  const Lease lease = ticket->Wait();
  for (uint64_t i = 0; i < 4; ++i) EXPECT_TRUE(tier.Right(lease[i], i + 1));
}

TEST(TierManagerProgress, APromotionWhoseSourceIsLostEndsItsFetch) {
  TestTier tier(kBlock, {.hbm_slots = 1, .dram_slots = 2, .nvme_bytes = kNvme});
  tier.PutMany(1, 1);
  tier.PutMany(2, 2);
  ASSERT_TRUE(tier->Flush().ok());
  ASSERT_EQ(tier.Find(1), Tier::kNvme);
  tier.device().FlipBitWhen(IsRead);
  tier.device().HoldWhen(IsRead);
  absl::StatusOr<Ticket> to_dram = tier.FetchAsync(1, Tier::kDram);
  absl::StatusOr<Ticket> to_hbm = tier.FetchAsync(1, Tier::kHbm);  // copies what DRAM is to get
  ASSERT_TRUE(to_dram.ok() && to_hbm.ok());
  tier.device().AwaitHeld(1);
  std::thread waiter([&] { EXPECT_EQ(to_hbm->Wait()[0].outcome, BlockOutcome::kLost); });
  // Long enough for it to sleep, so that nobody else does the work.
  for (int i = 0; i < 2000; ++i) std::this_thread::yield();
  tier.device().ReleaseAll();
  waiter.join();
  EXPECT_EQ(to_dram->Wait()[0].outcome, BlockOutcome::kLost);
  EXPECT_EQ(tier.Find(1), std::nullopt);
  EXPECT_EQ(tier.Stats().placement.lost_blocks, 1);
  tier.device().FlipBitWhen(nullptr);
  tier.PutMany(5, 8);
  EXPECT_TRUE(tier.Serves(12));
}

TEST(TierManagerProgress, APrefetchToHbmWhoseSourceIsLostLeavesTheSlotFree) {
  TestTier tier(kBlock, {.hbm_slots = 8, .dram_slots = 8, .nvme_bytes = kNvme});
  tier.PutMany(1, 9);
  ASSERT_TRUE(tier->Flush().ok());
  tier.device().FlipBitWhen(IsRead);
  tier.device().HoldWhen(IsRead);
  ASSERT_EQ(tier->Prefetch(TestIds(1, 1), Tier::kDram), 1);
  ASSERT_EQ(tier->Prefetch(TestIds(1, 1), Tier::kHbm), 1);
  tier.device().ReleaseAll();
  YieldUntil([&] { return tier.Find(1) == std::nullopt; });
  tier.device().FlipBitWhen(nullptr);
  EXPECT_TRUE(tier.FetchMany({2, 3, 4, 5, 6, 7, 8, 9}).ok());
}

TEST(TierManagerProgress, DestructionWaitsForWritesInFlight) {
  TestTier tier(kBlock, {.dram_slots = 2, .nvme_bytes = kNvme});
  tier.PutMany(1, 2);
  tier.device().HoldWhen(IsWrite);
  std::thread putter([&] {
    // Needs a write, and gets it when the destructor of the block below releases it.
    EXPECT_TRUE(tier.Put(3).ok());
  });
  tier.device().AwaitHeld(1);
  tier.device().Release(1);
  putter.join();
  std::thread flusher([&] { static_cast<void>(tier->Flush()); });
  tier.device().AwaitHeld(1);
  tier.device().ReleaseAll();
  flusher.join();
  tier.Destroy();
}

TEST(TierManagerProgress, DestructionWhileWritesAreHeldIsSafe) {
  // Write-back runs ahead of need, so a write is in flight that nobody waits for.
  TestTier tier(kLarge, {.dram_slots = 8, .nvme_bytes = 16 * kLarge});
  tier.device().HoldWhen(IsWrite);
  tier.PutMany(1, 8);
  tier.device().AwaitHeld(1);
  tier.Destroy();
}

TEST(TierManagerProgress, DestructionWhilePrefetchesAreHeldIsSafe) {
  TestTier tier(kBlock, {.hbm_slots = 12, .dram_slots = 12, .nvme_bytes = kNvme});
  tier.PutMany(1, 40);
  ASSERT_TRUE(tier->Flush().ok());
  tier.device().HoldWhen(IsRead);
  EXPECT_EQ(tier->Prefetch(TestIds(2, 1), Tier::kHbm), 1);
  EXPECT_EQ(tier->Prefetch(TestIds(1, 1), Tier::kDram), 1);
  EXPECT_EQ(tier->Prefetch(TestIds(1, 1), Tier::kHbm), 1);
  tier.device().AwaitHeld(2);
  tier.Destroy();
}

TEST(TierManagerProgress, FlushCoversABlockThatIsMovingDownFromHbm) {
  TestTier tier(kBlock, {.hbm_slots = 1, .dram_slots = 4, .nvme_bytes = kNvme});
  ASSERT_TRUE(tier.Put(1, Retention::kOwned).ok());
  ASSERT_TRUE(tier.Serves(1));
  tier.PutMany(2, 4);  // takes the DRAM copy of 1
  ASSERT_EQ(tier.Find(1), Tier::kHbm);
  ASSERT_FALSE(tier.OnNvme(1));
  tier.Drop(4);  // room in DRAM, at once
  tier.copies().HoldWhen(CopyDirection::kDeviceToHost);
  ASSERT_TRUE(absl::IsUnavailable(tier.FetchAsync(5, Tier::kHbm).status()));
  tier.copies().AwaitHeld();  // the copy down has begun
  std::thread releaser([&] {
    // Long enough for a flush that forgets the block to end.
    for (int i = 0; i < 2000; ++i) std::this_thread::yield();
    tier.copies().Release();
  });
  const absl::Status flushed = tier->Flush();
  const bool on_nvme = tier.OnNvme(1);
  releaser.join();
  EXPECT_TRUE(flushed.ok()) << flushed;
  EXPECT_TRUE(on_nvme);
}

TEST(TierManagerProgress, AVoidedPlaceInAGroupIsWrittenAndSkipped) {
  TestTier tier(kBlock, {.nvme_bytes = kNvme});
  tier.PutMany(1, 3);
  tier.Drop(2);
  ASSERT_TRUE(tier->Flush().ok());
  EXPECT_TRUE(tier.Serves(1));
  EXPECT_EQ(tier.Find(2), std::nullopt);
  EXPECT_TRUE(tier.Serves(3));
  tier.PutMany(4, 1);
  tier.Drop(4);
  EXPECT_TRUE(tier->Flush().ok());
}

TEST(TierManagerProgress, WritingAheadEndsWhereNvmeHoldsFewerBlocksThanItWants) {
  // Each block that is written takes the place of another, which is dirty again.
  TestTier tier(kBlock, {.dram_slots = 32, .nvme_bytes = TinyNvmeBytes(kBlock, 2)});
  tier.PutMany(0, 400);
  for (uint64_t number = 368; number < 400; ++number) EXPECT_TRUE(tier.Serves(number)) << number;
}

TEST(TierManagerProgress, StagingSlotsComeBackAfterEveryUse) {
  TestTier tier(kLarge, {.hbm_slots = 2, .nvme_bytes = 16 * kLarge});
  for (uint64_t round = 0; round < 3; ++round) {
    tier.PutMany(10 * round, 6);
    for (uint64_t number = 10 * round; number < 10 * round + 6; ++number) {
      ASSERT_TRUE(tier.Serves(number)) << number;
      const BlockRead part = {.id = TestId(number), .offset = kPageBytes, .bytes = kPageBytes};
      ASSERT_TRUE(tier->Fetch({&part, 1}).ok());
    }
    tier.Drop(10 * round + 1);
    ASSERT_TRUE(tier->Flush().ok());
  }
}

}  // namespace
}  // namespace terrace
