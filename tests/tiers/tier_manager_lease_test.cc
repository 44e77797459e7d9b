// Leases, tickets, deadlines and prefetches: who waits for what, and what keeps a block in place.

#include <memory>
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

bool IsRead(const IoRequest& request) { return request.op == IoOp::kRead; }

// A tier with DRAM slots and NVMe, where blocks [1, count] are on NVMe alone.
std::unique_ptr<TestTier> TierWithBlocksOnNvme(const TierSizes& sizes, uint64_t count) {
  auto tier = std::make_unique<TestTier>(kBlock, sizes);
  tier->PutMany(1, count);
  EXPECT_TRUE((*tier)->Flush().ok());
  // Others take every slot.
  tier->PutMany(1000, sizes.hbm_slots + sizes.dram_slots);
  for (uint64_t i = 0; i < sizes.hbm_slots; ++i) EXPECT_TRUE(tier->Serves(1000 + i));
  EXPECT_TRUE((*tier)->Flush().ok());
  for (uint64_t number = 1; number <= count; ++number) {
    EXPECT_EQ(tier->Find(number), Tier::kNvme) << number;
  }
  return tier;
}

// --- Reservation ---

TEST(TierManagerLease, AFetchLargerThanTheTierFailsAtOnceAndPinsNothing) {
  TestTier tier(kBlock, {.hbm_slots = 2, .dram_slots = 8});
  tier.PutMany(1, 6);
  EXPECT_EQ(tier->max_fetch_blocks(), 2);
  const absl::Status status = tier.FetchMany({1, 2, 3}).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(status.message(), HasSubstr("3 slots needed"));
  EXPECT_THAT(status.message(), HasSubstr("2 of 2 can be had"));
  EXPECT_TRUE(tier.FetchMany({4, 5}).ok());
  EXPECT_TRUE(tier.FetchMany({1, 2}).ok());
  for (uint64_t number = 1; number <= 6; ++number) EXPECT_NE(tier.Find(number), std::nullopt);
}

TEST(TierManagerLease, AFetchThatFailsLeavesOwnedBlocksAsMovableAsTheyWere) {
  // Block 1 can leave HBM only by taking the DRAM slot of 2 or 3, which the large fetch pins.
  TestTier tier(kBlock, {.hbm_slots = 2, .dram_slots = 2});
  ASSERT_TRUE(tier.Put(1, Retention::kOwned).ok());
  ASSERT_TRUE(tier.Serves(1));
  ASSERT_TRUE(tier.Put(10, Retention::kOwned).ok());
  ASSERT_TRUE(tier.Serves(10));
  tier.PutMany(2, 2);
  ASSERT_EQ(tier.Find(1), Tier::kHbm);
  EXPECT_EQ(tier.FetchMany({2, 3}).status().code(), absl::StatusCode::kResourceExhausted);
  EXPECT_TRUE(tier.Serves(2));
  EXPECT_NE(tier.Find(1), std::nullopt);
  EXPECT_NE(tier.Find(10), std::nullopt);
}

TEST(TierManagerLease, LeasedBlocksSurviveAnyPressure) {
  TestTier tier(kBlock, {.hbm_slots = 2, .dram_slots = 4, .nvme_bytes = kNvme});
  tier.PutMany(1, 2);
  absl::StatusOr<Lease> hbm = tier.Fetch(1, Tier::kHbm);
  absl::StatusOr<Lease> dram = tier.Fetch(2, Tier::kDram);
  ASSERT_TRUE(hbm.ok() && dram.ok());
  tier.PutMany(100, 400);
  for (uint64_t number = 480; number < 500; ++number) EXPECT_TRUE(tier.Serves(number));
  EXPECT_EQ(tier.Find(1), Tier::kHbm);
  EXPECT_EQ(tier.Find(2), Tier::kDram);
  EXPECT_TRUE(tier.Right((*hbm)[0], 1));
  EXPECT_TRUE(tier.Right((*dram)[0], 2));
}

TEST(TierManagerLease, APutIsRefusedWhileAllIsLeasedAndWorksAfterRelease) {
  for (const TierSizes& sizes : {TierSizes{.dram_slots = 2}, TierSizes{.hbm_slots = 2},
                                 TierSizes{.dram_slots = 2, .nvme_bytes = kNvme},
                                 TierSizes{.hbm_slots = 2, .nvme_bytes = kNvme}}) {
    TestTier tier(kBlock, sizes);
    tier.PutMany(1, 2);
    absl::StatusOr<Lease> lease = tier.FetchMany({1, 2});
    ASSERT_TRUE(lease.ok()) << lease.status();
    const absl::Status refused = tier.Put(3);
    EXPECT_EQ(refused.code(), absl::StatusCode::kResourceExhausted);
    EXPECT_THAT(refused.message(), HasSubstr("0 of 2 can be had"));
    EXPECT_TRUE(tier.Right((*lease)[1], 2));
    lease->Release();
    lease->Release();
    EXPECT_TRUE(tier.Put(3).ok());
    EXPECT_TRUE(tier.Serves(3));
  }
}

TEST(TierManagerLease, OwnedBlocksThatALeaseBlockedMoveAgainAfterRelease) {
  TestTier tier(kBlock, {.hbm_slots = 1, .dram_slots = 2});
  ASSERT_TRUE(tier.Put(1, Retention::kOwned).ok());
  ASSERT_TRUE(tier.Serves(1));
  tier.PutMany(2, 2);  // take both DRAM slots; block 1 is in HBM alone
  ASSERT_EQ(tier.Find(1), Tier::kHbm);
  absl::StatusOr<Lease> lease = tier.Fetch(2, Tier::kDram);
  ASSERT_TRUE(lease.ok()) << lease.status();
  EXPECT_EQ(tier.Fetch(3).status().code(), absl::StatusCode::kResourceExhausted);
  lease->Release();
  EXPECT_TRUE(tier.Serves(3));
  EXPECT_TRUE(tier.Serves(1));
}

TEST(TierManagerLease, AnOwnedBlockThatReachedHbmFreesItsDramSlotAfterARefusal) {
  TestTier tier(kBlock, {.hbm_slots = 2, .dram_slots = 2});
  tier.PutMany(1, 2, Retention::kOwned);
  ASSERT_EQ(tier.Put(3).code(), absl::StatusCode::kResourceExhausted);
  ASSERT_TRUE(tier.Serves(1));
  EXPECT_TRUE(tier.Put(3).ok());
  EXPECT_TRUE(tier.Serves(1));
  EXPECT_NE(tier.Find(2), std::nullopt);
}

TEST(TierManagerLease, LeasesMoveAndCountTheirPinsOnce) {
  TestTier tier(kBlock, {.dram_slots = 1});
  tier.PutMany(1, 1);
  absl::StatusOr<Lease> first = tier.Fetch(1);
  absl::StatusOr<Lease> second = tier.Fetch(1);
  ASSERT_TRUE(first.ok() && second.ok());
  Lease moved = *std::move(first);
  first->Release();
  EXPECT_TRUE(tier.Right(moved[0], 1));
  moved = *std::move(second);  // releases the first
  EXPECT_FALSE(tier.Put(2).ok());
  moved = Lease();
  EXPECT_TRUE(tier.Put(2).ok());
}

TEST(TierManagerLease, LeasesOnStagingLeaveRoomForTransfersToHbm) {
  // Few staging slots. Leases on parts of blocks that wait there for NVMe must not take them all.
  constexpr size_t kLarge = 2 << 20;
  TestTier tier(kLarge, {.hbm_slots = 4, .nvme_bytes = 64 * kLarge});
  tier.PutMany(1, 1);
  ASSERT_TRUE(tier->Flush().ok());
  tier.PutMany(2, 4);
  ASSERT_EQ(tier.Find(1), Tier::kNvme);
  tier.device().HoldAll();
  tier.PutMany(6, 4);  // moves 2 to 5 to staging
  std::vector<Lease> leases;
  for (uint64_t number = 2; number <= 5; ++number) {
    const BlockRead part = {.id = TestId(number), .bytes = kPageBytes};
    absl::StatusOr<Lease> lease = tier->Fetch({&part, 1});
    if (!lease.ok()) {
      EXPECT_EQ(lease.status().code(), absl::StatusCode::kResourceExhausted);
      continue;
    }
    EXPECT_TRUE(tier.Right((*lease)[0], number));
    leases.push_back(*std::move(lease));
  }
  EXPECT_FALSE(leases.empty());
  tier.device().ReleaseAll();
  EXPECT_TRUE(tier.Serves(1));
}

// --- Tickets ---

TEST(TierManagerTicket, CancelledWhileTheReadIsHeldLandsByItself) {
  auto tier = TierWithBlocksOnNvme({.dram_slots = 2, .nvme_bytes = kNvme}, 2);
  tier->device().HoldWhen(IsRead);
  {
    absl::StatusOr<Ticket> ticket = tier->FetchAsync(1);
    ASSERT_TRUE(ticket.ok()) << ticket.status();
    tier->device().AwaitHeld(1);
    EXPECT_FALSE(ticket->Done());
    ticket->Cancel();
    ticket->Cancel();
  }
  const uint64_t reads = tier->reads();
  tier->device().ReleaseAll();
  EXPECT_TRUE(tier->Serves(1));
  EXPECT_EQ(tier->reads(), reads + 1);
}

TEST(TierManagerTicket, DestroyedWithTheManagerWhileTheReadIsHeldIsSafe) {
  auto tier = TierWithBlocksOnNvme({.hbm_slots = 1, .dram_slots = 2, .nvme_bytes = kNvme}, 2);
  tier->device().HoldWhen(IsRead);
  for (uint64_t number = 1; number <= 2; ++number) {
    const BlockRead part = {.id = TestId(number), .offset = kPageBytes};
    ASSERT_TRUE((*tier)->FetchAsync({&part, 1}).ok());
  }
  tier->device().AwaitHeld(2);
  tier->Destroy();
}

TEST(TierManagerTicket, ACancelledPartGivesItsStagingSlotBack) {
  constexpr size_t kLarge = 4 << 20;  // four staging slots, of which leases may have two
  TestTier tier(kLarge, {.dram_slots = 1, .nvme_bytes = 8 * kLarge});
  tier.PutMany(1, 1);
  ASSERT_TRUE(tier->Flush().ok());
  tier.PutMany(2, 1);
  const BlockRead part = {.id = TestId(1), .bytes = kPageBytes};
  for (int round = 0; round < 8; ++round) {
    tier.device().HoldWhen(IsRead);
    {
      absl::StatusOr<Ticket> ticket = tier->FetchAsync({&part, 1});
      ASSERT_TRUE(ticket.ok()) << ticket.status();
      tier.device().AwaitHeld(1);
    }
    tier.device().ReleaseAll();
    absl::StatusOr<Lease> lease = tier->Fetch({&part, 1});
    ASSERT_TRUE(lease.ok()) << lease.status();
    EXPECT_TRUE(tier.Right((*lease)[0], 1));
  }
}

TEST(TierManagerTicket, TheBytesOfADropThatCameInBetweenAreStillServed) {
  auto tier = TierWithBlocksOnNvme({.dram_slots = 3, .nvme_bytes = kNvme}, 2);
  tier->device().HoldWhen(IsRead);
  absl::StatusOr<Ticket> ticket = tier->FetchAsync(1);
  ASSERT_TRUE(ticket.ok()) << ticket.status();
  tier->device().AwaitHeld(1);
  tier->Drop(1);
  ASSERT_TRUE(tier->Put(1, Retention::kCached, /*version=*/1).ok());
  tier->device().ReleaseAll();
  const Lease old = ticket->Wait();
  EXPECT_TRUE(tier->Right(old[0], 1));
  const absl::StatusOr<Lease> fresh = tier->Fetch(1);
  ASSERT_TRUE(fresh.ok()) << fresh.status();
  EXPECT_TRUE(tier->Right((*fresh)[0], 1, /*version=*/1));
}

TEST(TierManagerTicket, IsDoneWithoutAnybodyWaiting) {
  auto tier = TierWithBlocksOnNvme({.hbm_slots = 2, .dram_slots = 2, .nvme_bytes = kNvme}, 2);
  absl::StatusOr<Ticket> ticket;
  YieldUntil([&] {
    ticket = tier->FetchAsync(1);
    return ticket.ok() || ticket.status().code() != absl::StatusCode::kUnavailable;
  });
  ASSERT_TRUE(ticket.ok()) << ticket.status();
  YieldUntil([&] { return ticket->Done(); });
  const Lease lease = ticket->Wait();
  EXPECT_TRUE(tier->Right(lease[0], 1));
}

TEST(TierManagerTicket, ConcurrentFetchesOfABlockShareOneRead) {
  auto tier = TierWithBlocksOnNvme({.hbm_slots = 2, .dram_slots = 2, .nvme_bytes = kNvme}, 1);
  const uint64_t reads = tier->reads();
  tier->device().HoldWhen(IsRead);
  absl::StatusOr<Ticket> first = tier->FetchAsync(1, Tier::kDram);
  absl::StatusOr<Ticket> second = tier->FetchAsync(1, Tier::kDram);
  ASSERT_TRUE(first.ok() && second.ok());
  std::vector<std::thread> threads;
  for (int i = 0; i < 2; ++i) {
    threads.emplace_back([&] { EXPECT_TRUE(tier->Serves(1, Tier::kDram)); });
  }
  tier->device().AwaitHeld(1);
  tier->device().ReleaseAll();
  for (std::thread& thread : threads) thread.join();
  EXPECT_TRUE(tier->Right(first->Wait()[0], 1));
  EXPECT_TRUE(tier->Right(second->Wait()[0], 1));
  EXPECT_TRUE(tier->Serves(1, Tier::kHbm));
  EXPECT_EQ(tier->reads(), reads + 1);
}

// --- Deadlines ---

TEST(TierManagerDeadline, ALateBlockIsReadAllTheSameAndServedLater) {
  auto tier = TierWithBlocksOnNvme({.dram_slots = 2, .nvme_bytes = kNvme}, 2);
  const uint64_t reads = tier->reads();
  tier->device().HoldWhen(IsRead);
  const BlockRead batch[] = {{.id = TestId(1)}, {.id = TestId(1000)}, {.id = TestId(7777)}};
  const absl::StatusOr<Lease> late =
      (*tier)->Fetch({batch, 1}, {.target = std::nullopt, .deadline = absl::InfinitePast()});
  ASSERT_TRUE(late.ok()) << late.status();
  EXPECT_EQ((*late)[0].outcome, BlockOutcome::kLate);
  EXPECT_EQ((*late)[0].data, nullptr);
  tier->device().AwaitHeld(1);
  tier->device().ReleaseAll();
  EXPECT_TRUE(tier->Serves(1));
  EXPECT_EQ(tier->reads(), reads + 1);
}

TEST(TierManagerDeadline, APassedDeadlineStillServesWhatIsThere) {
  auto tier = TierWithBlocksOnNvme({.dram_slots = 3, .nvme_bytes = kNvme}, 2);
  ASSERT_TRUE(tier->Serves(1));
  tier->device().HoldWhen(IsRead);
  const BlockRead batch[] = {{.id = TestId(2)}, {.id = TestId(1)}, {.id = TestId(7777)}};
  const absl::StatusOr<Lease> lease =
      (*tier)->Fetch(batch, {.target = std::nullopt, .deadline = absl::InfinitePast()});
  ASSERT_TRUE(lease.ok()) << lease.status();
  EXPECT_EQ((*lease)[0].outcome, BlockOutcome::kLate);
  EXPECT_TRUE(tier->Right((*lease)[1], 1));
  EXPECT_EQ((*lease)[2].outcome, BlockOutcome::kMiss);
  tier->device().ReleaseAll();
}

TEST(TierManagerDeadline, ATicketPastItsDeadlineIsDone) {
  auto tier = TierWithBlocksOnNvme({.dram_slots = 2, .nvme_bytes = kNvme}, 2);
  tier->device().HoldWhen(IsRead);
  absl::StatusOr<Ticket> ticket = tier->FetchAsync(1, std::nullopt, absl::InfinitePast());
  ASSERT_TRUE(ticket.ok()) << ticket.status();
  EXPECT_TRUE(ticket->Done());
  EXPECT_EQ(ticket->Wait()[0].outcome, BlockOutcome::kLate);
  tier->device().ReleaseAll();
}

// --- Prefetch ---

TEST(TierManagerPrefetch, BringsABlockThatNobodyWaitsFor) {
  auto tier = TierWithBlocksOnNvme({.dram_slots = 8, .nvme_bytes = kNvme}, 2);
  EXPECT_EQ((*tier)->Prefetch(TestIds(1, 2)), 2);
  YieldUntil([&] { return tier->Stats().placement.prefetched_blocks == 2; });
  const uint64_t reads = tier->reads();
  EXPECT_EQ(tier->Find(1), Tier::kDram);
  EXPECT_TRUE(tier->Serves(1));
  EXPECT_TRUE(tier->Serves(2));
  EXPECT_EQ(tier->reads(), reads);
}

TEST(TierManagerPrefetch, PinsNothing) {
  auto tier = TierWithBlocksOnNvme({.dram_slots = 4, .nvme_bytes = kNvme}, 4);
  EXPECT_EQ((*tier)->Prefetch(TestIds(1, 1)), 1);
  YieldUntil([&] { return tier->Stats().placement.prefetched_blocks == 1; });
  EXPECT_TRUE(tier->FetchMany({1000, 1001, 1002, 1003}).ok());
}

TEST(TierManagerPrefetch, IsCappedAndDroppedHintsAreCounted) {
  auto tier = TierWithBlocksOnNvme({.dram_slots = 8, .nvme_bytes = kNvme}, 8);
  tier->device().HoldWhen(IsRead);
  const size_t started = (*tier)->Prefetch(TestIds(1, 8));
  EXPECT_GE(started, 1);
  EXPECT_LT(started, 8);
  EXPECT_EQ(tier->Stats().placement.prefetch_dropped, 8 - started);
  tier->device().ReleaseAll();
  for (uint64_t number = 1; number <= 8; ++number) EXPECT_TRUE(tier->Serves(number));
}

TEST(TierManagerPrefetch, IsDroppedWhenEverySlotIsLeased) {
  auto tier = TierWithBlocksOnNvme({.dram_slots = 2, .nvme_bytes = kNvme}, 1);
  const absl::StatusOr<Lease> lease = tier->FetchMany({1000, 1001});
  ASSERT_TRUE(lease.ok()) << lease.status();
  EXPECT_EQ((*tier)->Prefetch(TestIds(1, 1)), 0);
  EXPECT_EQ(tier->Stats().placement.prefetch_dropped, 1);
  EXPECT_EQ(tier->Find(1), Tier::kNvme);
}

TEST(TierManagerPrefetch, OfUnknownOrPresentBlocksDoesNothing) {
  TestTier tier(kBlock, {.dram_slots = 4});
  tier.PutMany(1, 2);
  EXPECT_EQ(tier->Prefetch(TestIds(1, 4)), 0);
  EXPECT_EQ(tier->Prefetch(TestIds(1, 2), Tier::kHbm), 0);
  EXPECT_EQ(tier.Stats().placement.prefetch_dropped, 0);
}

TEST(TierManagerPrefetch, ADemandFetchJoinsItWithoutASecondRead) {
  auto tier = TierWithBlocksOnNvme({.dram_slots = 8, .nvme_bytes = kNvme}, 2);
  const uint64_t reads = tier->reads();
  tier->device().HoldWhen(IsRead);
  ASSERT_EQ((*tier)->Prefetch(TestIds(1, 1)), 1);
  tier->device().AwaitHeld(1);
  absl::StatusOr<Ticket> ticket = tier->FetchAsync(1);
  ASSERT_TRUE(ticket.ok()) << ticket.status();
  EXPECT_EQ((*tier)->Prefetch(TestIds(1, 1)), 0);
  tier->device().ReleaseAll();
  const Lease lease = ticket->Wait();
  EXPECT_TRUE(tier->Right(lease[0], 1));
  EXPECT_EQ(lease[0].hit_tier, Tier::kNvme);
  EXPECT_EQ(tier->reads(), reads + 1);
  EXPECT_EQ(tier->Stats().placement.prefetched_blocks, 0);
}

}  // namespace
}  // namespace terrace
