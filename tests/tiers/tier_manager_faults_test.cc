// A failing disk or copy engine never fails the caller, and never serves a wrong byte.

#include <cerrno>
#include <numeric>
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

FaultyDevice::Failure FailEvery(IoOp op, int error) {
  return [op, error](const IoRequest& request) {
    return request.op == op ? std::optional<int>(error) : std::nullopt;
  };
}

BlockOutcome OutcomeOf(TestTier& tier, uint64_t number, std::optional<Tier> target = std::nullopt) {
  const absl::StatusOr<Lease> lease = tier.Fetch(number, target);
  EXPECT_TRUE(lease.ok()) << lease.status();
  return lease.ok() ? (*lease)[0].outcome : BlockOutcome::kMiss;
}

// Capacities in which blocks [1, 8] end up on NVMe, and where they are read to.
class TierManagerReadFault : public testing::TestWithParam<TierSizes> {
 protected:
  TierManagerReadFault() : tier_(kBlock, GetParam()) {
    tier_.PutMany(1, 8);
    EXPECT_TRUE(tier_->Flush().ok());
    tier_.PutMany(100, 4);
    const uint64_t hbm_slots = GetParam().hbm_slots;
    for (uint64_t i = 0; i < hbm_slots; ++i) EXPECT_TRUE(tier_.Serves(100 + i));
    for (uint64_t number = 1; number <= 8; ++number) EXPECT_EQ(tier_.Find(number), Tier::kNvme);
  }
  TestTier tier_;
};

TEST_P(TierManagerReadFault, AnUnreadableBlockIsLostAndCountedAndTheRestIsServed) {
  const uint64_t offset = *tier_->NvmeOffset(TestId(3));
  tier_.device().FailWhen([offset](const IoRequest& request) {
    return request.op == IoOp::kRead && request.offset == offset ? std::optional<int>(EIO)
                                                                 : std::nullopt;
  });
  EXPECT_EQ(OutcomeOf(tier_, 3), BlockOutcome::kLost);
  EXPECT_EQ(OutcomeOf(tier_, 3), BlockOutcome::kMiss);
  EXPECT_EQ(tier_.Find(3), std::nullopt);
  EXPECT_EQ(tier_.Stats().placement.lost_blocks, 1);
  for (uint64_t number = 1; number <= 8; ++number) {
    EXPECT_EQ(tier_.Serves(number), number != 3) << number;
  }
  // It can be put again, and then it is there.
  ASSERT_TRUE(tier_.Put(3).ok());
  EXPECT_TRUE(tier_.Serves(3));
  EXPECT_TRUE(tier_.Stats().nvme_accepts_writes);
}

TEST_P(TierManagerReadFault, AFlippedBitIsNeverServed) {
  tier_.device().FlipBitWhen([](const IoRequest& request) { return request.op == IoOp::kRead; });
  for (uint64_t number = 1; number <= 4; ++number) {
    EXPECT_EQ(OutcomeOf(tier_, number), BlockOutcome::kLost);
    EXPECT_EQ(tier_.Find(number), std::nullopt);
  }
  EXPECT_EQ(tier_.device().flipped_count(), 8);  // each block was read twice
  EXPECT_EQ(tier_.Stats().placement.lost_blocks, 4);
  tier_.device().FlipBitWhen(nullptr);
  for (uint64_t number = 5; number <= 8; ++number) EXPECT_TRUE(tier_.Serves(number));
}

TEST_P(TierManagerReadFault, AFlippedBitInAPartLosesTheBlock) {
  tier_.device().FlipBitWhen([](const IoRequest& request) { return request.op == IoOp::kRead; });
  const BlockRead part = {.id = TestId(2), .offset = kPageBytes, .bytes = kPageBytes};
  const absl::StatusOr<Lease> lease = tier_->Fetch({&part, 1});
  ASSERT_TRUE(lease.ok()) << lease.status();
  EXPECT_EQ((*lease)[0].outcome, BlockOutcome::kLost);
  EXPECT_EQ(tier_.Find(2), std::nullopt);
  EXPECT_EQ(tier_.Stats().placement.lost_blocks, 1);
}

TEST_P(TierManagerReadFault, OneLostBlockLeavesTheOthersOfItsFetchServed) {
  const uint64_t offset = *tier_->NvmeOffset(TestId(2));
  tier_.device().FlipBitWhen(
      [offset](const IoRequest& request) { return request.offset == offset; });
  const absl::StatusOr<Lease> lease = tier_.FetchMany({1, 2});
  ASSERT_TRUE(lease.ok()) << lease.status();
  EXPECT_TRUE(tier_.Right((*lease)[0], 1));
  EXPECT_EQ((*lease)[1].outcome, BlockOutcome::kLost);
}

INSTANTIATE_TEST_SUITE_P(
    Tiers, TierManagerReadFault,
    testing::Values(TierSizes{.nvme_bytes = kNvme}, TierSizes{.dram_slots = 4, .nvme_bytes = kNvme},
                    TierSizes{.hbm_slots = 2, .nvme_bytes = kNvme},
                    TierSizes{.hbm_slots = 2, .dram_slots = 2, .nvme_bytes = kNvme}));

// --- Writes ---

TEST(TierManagerWriteFault, OwnedBlocksStayInHbmUntilTheirWriteSucceeded) {
  TestTier tier(kBlock, {.hbm_slots = 4, .nvme_bytes = kNvme});
  tier.device().FailWhen(FailEvery(IoOp::kWrite, ENOSPC));
  tier.PutMany(1, 4, Retention::kOwned);
  EXPECT_TRUE(absl::IsResourceExhausted(tier.Put(5, Retention::kOwned)));
  for (uint64_t number = 1; number <= 4; ++number) EXPECT_TRUE(tier.Serves(number)) << number;
  EXPECT_EQ(tier.Stats().placement.lost_blocks, 0);
}

TEST(TierManagerWriteFault, OwnedBlocksLeaveHbmWhenTheirWriteSucceeds) {
  TestTier tier(kBlock, {.hbm_slots = 4, .nvme_bytes = kNvme});
  tier.PutMany(1, 12, Retention::kOwned);
  for (uint64_t number = 1; number <= 12; ++number) EXPECT_TRUE(tier.Serves(number)) << number;
}

TEST(TierManagerWriteFault, NvmeStopsTakingBlocksAndTheRestGoesOn) {
  TestTier tier(kBlock, {.hbm_slots = 2, .dram_slots = 4, .nvme_bytes = kNvme});
  tier.PutMany(1, 6);
  ASSERT_TRUE(tier->Flush().ok());
  tier.device().FailWhen(FailEvery(IoOp::kWrite, ENOSPC));
  tier.PutMany(10, 20);
  const TierStats stats = tier.Stats();
  EXPECT_FALSE(stats.nvme_accepts_writes);
  EXPECT_EQ(stats.nvme_error.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(tier->Flush(), stats.nvme_error);
  EXPECT_GT(stats.placement.evicted_blocks, 0);
  // What was on NVMe is still served; what is put last is in DRAM; HBM works.
  for (uint64_t number = 1; number <= 6; ++number) EXPECT_TRUE(tier.Serves(number)) << number;
  tier.PutMany(40, 1);
  EXPECT_TRUE(tier.Serves(40));
  EXPECT_EQ(tier.Find(40), Tier::kHbm);
  // The disk works again; the tier has stopped for good, and says so.
  tier.device().FailWhen(nullptr);
  tier.PutMany(50, 10);
  EXPECT_FALSE(tier.Stats().nvme_accepts_writes);
  EXPECT_FALSE(tier->Flush().ok());
}

TEST(TierManagerWriteFault, FlushReportsTheErrorOfItsOwnWrite) {
  TestTier tier(kBlock, {.dram_slots = 4, .nvme_bytes = kNvme});
  tier.PutMany(1, 2, Retention::kOwned);
  tier.device().FailWhen(FailEvery(IoOp::kWrite, EIO));
  const absl::Status flushed = tier->Flush();
  EXPECT_EQ(flushed.code(), absl::StatusCode::kDataLoss);
  EXPECT_THAT(flushed.message(), HasSubstr("write"));
  EXPECT_EQ(tier.Stats().nvme_error, flushed);
  EXPECT_TRUE(tier.Serves(1));
  EXPECT_TRUE(tier.Serves(2));
  EXPECT_FALSE(tier.OnNvme(1));
  EXPECT_EQ(tier.Stats().placement.lost_blocks, 0);
}

TEST(TierManagerWriteFault, OwnedBlocksAreKeptAndPutsRefused) {
  for (const TierSizes& sizes : {TierSizes{.dram_slots = 4, .nvme_bytes = kNvme},
                                 TierSizes{.hbm_slots = 2, .dram_slots = 4, .nvme_bytes = kNvme}}) {
    TestTier tier(kBlock, sizes);
    tier.device().FailWhen(FailEvery(IoOp::kWrite, EIO));
    uint64_t stored = 0;
    absl::Status status;
    for (; stored < 20; ++stored) {
      status = tier.Put(stored, Retention::kOwned);
      if (!status.ok()) break;
    }
    EXPECT_EQ(stored, 4);
    EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted);
    EXPECT_THAT(status.message(), HasSubstr("takes no writes"));
    for (uint64_t number = 0; number < stored; ++number) EXPECT_TRUE(tier.Serves(number));
    EXPECT_EQ(tier.Stats().placement.lost_blocks, 0);
  }
}

TEST(TierManagerWriteFault, WithoutMemoryTiersTheBlocksOfAFailedWriteAreLostAndCounted) {
  TestTier tier(kBlock, {.nvme_bytes = kNvme});
  tier.PutMany(1, 2);
  ASSERT_TRUE(tier->Flush().ok());
  tier.device().FailWhen(FailEvery(IoOp::kWrite, EIO));
  tier.PutMany(3, 2);
  EXPECT_EQ(tier->Flush().code(), absl::StatusCode::kDataLoss);
  EXPECT_EQ(tier.Stats().placement.lost_blocks, 2);
  EXPECT_EQ(OutcomeOf(tier, 3), BlockOutcome::kMiss);
  EXPECT_TRUE(tier.Serves(1));
  EXPECT_EQ(tier.Put(5).code(), absl::StatusCode::kResourceExhausted);
  EXPECT_TRUE(tier.Serves(2));
}

TEST(TierManagerWriteFault, ALeaseOnABlockWhoseWriteFailsStaysValid) {
  TestTier tier(kBlock, {.nvme_bytes = kNvme});
  tier.device().HoldAll();
  tier.PutMany(1, 1);
  absl::StatusOr<Lease> lease = tier.Fetch(1);
  ASSERT_TRUE(lease.ok()) << lease.status();
  tier.device().FailWhen(FailEvery(IoOp::kWrite, EIO));
  tier.device().ReleaseAll();
  EXPECT_FALSE(tier->Flush().ok());
  EXPECT_TRUE(tier.Right((*lease)[0], 1));
  EXPECT_EQ(tier.Find(1), std::nullopt);
}

TEST(TierManagerWriteFault, OwnedBlocksOfHbmThatCannotBeWrittenAreNeverLostSilently) {
  TestTier tier(kBlock, {.hbm_slots = 2, .nvme_bytes = kNvme});
  tier.device().FailWhen(FailEvery(IoOp::kWrite, EIO));
  uint64_t stored = 0;
  while (stored < 20 && tier.Put(stored, Retention::kOwned).ok()) ++stored;
  EXPECT_FALSE(tier->Flush().ok());
  uint64_t found = 0;
  for (uint64_t number = 0; number < stored; ++number) {
    if (!tier.Find(number)) continue;
    ++found;
    EXPECT_TRUE(tier.Serves(number)) << number;
  }
  EXPECT_EQ(found + tier.Stats().placement.lost_blocks, stored);
  EXPECT_GE(found, 2);
}

TEST(TierManagerWriteFault, AFailedSyncIsReportedAndNoLaterFlushPretendsOtherwise) {
  TestTier tier(kBlock, {.dram_slots = 4, .nvme_bytes = kNvme});
  tier.PutMany(1, 2);
  tier.device().FailWhen(FailEvery(IoOp::kSync, EIO));
  EXPECT_EQ(tier->Flush().code(), absl::StatusCode::kDataLoss);
  // What was written before a failed sync may be gone from the cache of the disk without a trace.
  tier.device().FailWhen(nullptr);
  EXPECT_FALSE(tier->Flush().ok());
  EXPECT_TRUE(tier.Serves(1));
}

TEST(TierManagerWriteFault, AFailureInTheMiddleOfManyWritesKeepsEveryOwnedBlock) {
  TestTier tier(256 << 10, {.dram_slots = 16, .nvme_bytes = 64 << 20});
  uint64_t stored = 0;
  absl::Status status;
  for (; stored < 60 && status.ok(); ++stored) {
    if (stored == 30) tier.device().FailWhen(FailEvery(IoOp::kWrite, EIO));
    status = tier.Put(stored, Retention::kOwned);
  }
  EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted);
  for (uint64_t number = 0; number + 1 < stored; ++number) {
    // DRAM is full of blocks that cannot leave; the others come through staging, in parts.
    const BlockRead parts[] = {{.id = TestId(number), .offset = 0, .bytes = kPageBytes},
                               {.id = TestId(number), .offset = kPageBytes}};
    const absl::StatusOr<Lease> lease = tier->Fetch(parts);
    ASSERT_TRUE(lease.ok()) << lease.status();
    EXPECT_TRUE(tier.Right((*lease)[0], number)) << number;
    EXPECT_TRUE(tier.Right((*lease)[1], number, 0, kPageBytes)) << number;
  }
}

// --- The copy engine ---

TEST(TierManagerCopyFault, ABlockThatCannotReachHbmStaysWhereItWas) {
  TestTier tier(kBlock, {.hbm_slots = 2, .dram_slots = 1, .nvme_bytes = kNvme});
  tier.PutMany(1, 1);
  ASSERT_TRUE(tier->Flush().ok());
  tier.PutMany(2, 1);
  ASSERT_EQ(tier.Find(1), Tier::kNvme);
  tier.copies().FailWhen(CopyDirection::kHostToDevice);
  EXPECT_EQ(OutcomeOf(tier, 1, Tier::kHbm), BlockOutcome::kLost);
  EXPECT_EQ(OutcomeOf(tier, 2, Tier::kHbm), BlockOutcome::kLost);
  EXPECT_EQ(tier.Find(1), Tier::kNvme);
  EXPECT_EQ(tier.Find(2), Tier::kDram);
  tier.copies().FailWhen(std::nullopt);
  EXPECT_TRUE(tier.Serves(1));
  EXPECT_TRUE(tier.Serves(2));
  EXPECT_EQ(tier.Stats().placement.lost_blocks, 0);
}

// Two batches are under way at once, and blocks from NVMe are copied some at a time.
TEST(TierManagerCopyFault, BlocksOfABatchThatFailsLateAreNotServedAndStayWhereTheyWere) {
  constexpr uint64_t kBlocks = 96;
  for (const uint64_t dram_slots : {kBlocks, uint64_t{2}}) {
    SCOPED_TRACE(dram_slots);
    TestTier tier(
        kBlock, {.hbm_slots = kBlocks, .dram_slots = dram_slots, .nvme_bytes = uint64_t{16} << 20});
    tier.PutMany(1, kBlocks);
    ASSERT_TRUE(tier->Flush().ok());
    std::vector<uint64_t> numbers(kBlocks);
    std::iota(numbers.begin(), numbers.end(), 1);
    tier.copies().FailWaits(1);
    size_t served = 0;
    {
      const auto lease = tier.FetchMany(numbers, Tier::kHbm);
      ASSERT_TRUE(lease.ok()) << lease.status();
      for (size_t i = 0; i < kBlocks; ++i) {
        if ((*lease)[i].outcome != BlockOutcome::kServed) continue;
        ++served;
        EXPECT_TRUE(tier.Right((*lease)[i], numbers[i])) << numbers[i];
      }
    }
    EXPECT_LT(served, kBlocks);
    const auto again = tier.FetchMany(numbers, Tier::kHbm);
    ASSERT_TRUE(again.ok()) << again.status();
    for (size_t i = 0; i < kBlocks; ++i) EXPECT_TRUE(tier.Right((*again)[i], numbers[i]));
    EXPECT_EQ(tier.Stats().placement.lost_blocks, 0);
  }
}

TEST(TierManagerCopyFault, APutThatCannotReachHbmFailsAndLeavesNothing) {
  TestTier tier(kBlock, {.hbm_slots = 2, .nvme_bytes = kNvme});
  tier.copies().FailWhen(CopyDirection::kHostToDevice);
  EXPECT_EQ(tier.Put(1).code(), absl::StatusCode::kUnavailable);
  EXPECT_EQ(tier.Find(1), std::nullopt);
  tier.copies().FailWhen(std::nullopt);
  EXPECT_TRUE(tier.Put(1).ok());
  EXPECT_TRUE(tier.Serves(1));
}

TEST(TierManagerCopyFault, ABlockThatCannotLeaveHbmIsCountedAsLost) {
  for (const TierSizes& sizes : {TierSizes{.hbm_slots = 1, .nvme_bytes = kNvme},
                                 TierSizes{.hbm_slots = 1, .dram_slots = 2}}) {
    TestTier tier(kBlock, sizes);
    ASSERT_TRUE(tier.Put(1).ok());
    ASSERT_TRUE(tier.Serves(1));
    tier.PutMany(2, sizes.dram_slots);  // takes the DRAM copy of 1
    ASSERT_EQ(tier.Find(1), Tier::kHbm);
    tier.copies().FailWhen(CopyDirection::kDeviceToHost);
    EXPECT_TRUE(tier.Put(3).ok());
    EXPECT_TRUE(tier.Fetch(3).ok());
    EXPECT_EQ(tier.Find(1), std::nullopt);
    EXPECT_EQ(tier.Stats().placement.lost_blocks, 1);
  }
}

TEST(TierManagerCopyFault, FlushDoesNotPromiseWhatItCouldNotCopyOutOfHbm) {
  TestTier tier(kBlock, {.hbm_slots = 2, .nvme_bytes = kNvme});
  ASSERT_TRUE(tier.Put(1, Retention::kOwned).ok());
  tier.copies().FailWhen(CopyDirection::kDeviceToHost);
  EXPECT_FALSE(tier->Flush().ok());
  tier.copies().FailWhen(std::nullopt);
  EXPECT_TRUE(tier.Serves(1));
  EXPECT_TRUE(tier->Flush().ok());
  EXPECT_TRUE(tier.OnNvme(1));
}

}  // namespace
}  // namespace terrace
