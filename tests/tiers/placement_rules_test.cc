// The rules of Placement one by one, in the smallest tiers that show them.

#include <array>
#include <memory>
#include <optional>
#include <vector>

#include "gtest/gtest.h"
#include "tests/support/placement_driver.h"
#include "tests/support/placement_invariants.h"
#include "tiers/placement.h"

namespace terrace {
namespace {

using PutOutcome = Placement::PutOutcome;

BlockId Id(uint64_t number) { return PlacementDriver::Id(number); }

// Blocks of two pages; every segment holds one group.
struct Sizes {
  size_t hbm = 0;
  size_t dram = 0;
  uint32_t segments = 0;  // 0: no NVMe tier
  uint32_t group_blocks = 1;
  size_t transit = 4;
};

class PlacementRulesTest : public testing::Test {
 protected:
  void Open(const Sizes& sizes) {
    PlacementOptions options;
    options.block_bytes = 2 * kPageBytes;
    options.slots = {sizes.hbm, sizes.dram, sizes.segments > 0 ? sizes.transit : 0};
    if (sizes.segments > 0) {
      options.nvme = NvmeGeometry{.pages_per_block = 2,
                                  .segment_pages = 1 + 2 * sizes.group_blocks,
                                  .segment_count = sizes.segments,
                                  .group_blocks = sizes.group_blocks,
                                  .header_pages = 1};
    }
    driver_ = std::make_unique<PlacementDriver>(options, PlacementDriver::Pace::kLate, /*seed=*/1);
  }
  void TearDown() override {
    std::vector<BlockId> ids;
    for (uint64_t i = 0; i < 64; ++i) ids.push_back(Id(i));
    EXPECT_EQ(FindInconsistency(placement(), ids), "");
    EXPECT_EQ(driver_->problem(), "");
  }

  Placement& placement() { return driver_->placement(); }
  std::optional<Tier> Find(uint64_t block) { return placement().Find(Id(block)); }
  PutOutcome Put(uint64_t block, Retention retention = Retention::kCached) {
    return driver_->Put(Id(block), retention);
  }
  // Fetches and lets go again.
  Room Fetch(const std::vector<uint64_t>& blocks, std::optional<Pool> target = std::nullopt) {
    std::vector<FetchItem> items = Items(blocks);
    return driver_->Fetch(items, target.value_or(driver_->fast_pool()));
  }
  std::vector<FetchItem> Items(const std::vector<uint64_t>& blocks) {
    std::vector<FetchItem> items;
    for (uint64_t block : blocks) items.push_back(driver_->WholeBlock(Id(block)));
    return items;
  }
  // Fetches and keeps. REQUIRES: there is room.
  std::vector<FetchItem> Hold(const std::vector<uint64_t>& blocks,
                              std::optional<Pool> target = std::nullopt) {
    std::vector<FetchItem> items = Items(blocks);
    EXPECT_EQ(
        placement().ReserveFetch(absl::MakeSpan(items), target.value_or(driver_->fast_pool())),
        Room::kOk);
    for (const FetchItem& item : items) {
      for (driver_->Start(); !driver_->Landed(item); driver_->Start()) driver_->FinishAny();
    }
    return items;
  }
  void Release(const std::vector<FetchItem>& items) {
    for (const FetchItem& item : items) {
      driver_->CheckWords(item);
      placement().Unpin(item.place);
    }
  }

  std::unique_ptr<PlacementDriver> driver_;
};

// --- Owned blocks ---

TEST_F(PlacementRulesTest, APutThatWouldEvictAnOwnedBlockIsRefused) {
  for (const Sizes& sizes : {Sizes{.hbm = 2}, Sizes{.dram = 2}, Sizes{.segments = 2}}) {
    Open(sizes);
    EXPECT_EQ(Put(1, Retention::kOwned), PutOutcome::kReserved);
    EXPECT_EQ(Put(2, Retention::kOwned), PutOutcome::kReserved);
    EXPECT_EQ(Put(3), PutOutcome::kFull);
    EXPECT_TRUE(Find(1) && Find(2) && !Find(3));
    placement().SetRetention(Id(1), Retention::kCached);
    EXPECT_EQ(Put(3), PutOutcome::kReserved);
    EXPECT_TRUE(!Find(1) && Find(2) && Find(3));
    placement().Drop(Id(2));
    EXPECT_EQ(Put(4), PutOutcome::kReserved);
  }
}

TEST_F(PlacementRulesTest, CachedBlocksGoBeforeOwnedOnesHoweverWarm) {
  Open({.dram = 3});
  Put(1, Retention::kOwned);
  Put(2);
  Put(3, Retention::kOwned);
  Put(4);
  EXPECT_EQ(Put(5), PutOutcome::kReserved);
  EXPECT_TRUE(Find(1) && !Find(2) && Find(3) && !Find(4) && Find(5));
}

TEST_F(PlacementRulesTest, OwnedBlocksFillEveryTierToTheLastSlot) {
  Open({.hbm = 2, .dram = 3, .segments = 3});
  uint64_t accepted = 0;
  for (uint64_t block = 0; block < 20; ++block) {
    if (Put(block, Retention::kOwned) != PutOutcome::kReserved) break;
    ++accepted;
    Fetch({block});
  }
  EXPECT_EQ(accepted, 8u);
  for (uint64_t block = 0; block < accepted; ++block) EXPECT_TRUE(Find(block)) << block;
}

TEST_F(PlacementRulesTest, APutOfAKnownBlockMayMakeItOwnedButNotCached) {
  Open({.dram = 1});
  Put(1);
  EXPECT_EQ(Put(1, Retention::kOwned), PutOutcome::kAlreadyHere);
  EXPECT_EQ(Put(1), PutOutcome::kAlreadyHere);
  EXPECT_EQ(Put(2), PutOutcome::kFull);
  EXPECT_TRUE(Find(1));
}

// A slot whose owned block had nowhere to go must be asked again once there is somewhere.
TEST_F(PlacementRulesTest, OwnedBlocksMoveAgainOnceALeaseBelowIsReleased) {
  Open({.hbm = 1, .dram = 1});
  Put(1, Retention::kOwned);
  EXPECT_EQ(Fetch({1}), Room::kOk);
  Put(2);
  ASSERT_EQ(Find(1), Tier::kHbm);
  const std::vector<FetchItem> lease = Hold({2}, Pool::kDram);
  EXPECT_EQ(Fetch({2}), Room::kFull);
  Release(lease);
  Put(3);
  EXPECT_EQ(Fetch({3}), Room::kFull);  // DRAM has one slot, and it is 3's own
  placement().Drop(Id(3));
  std::vector<FetchItem> items = Items({1});
  EXPECT_EQ(driver_->Fetch(items, Pool::kDram), Room::kOk);
  EXPECT_NE(items[0].place.slot, kNoSlot);
}

TEST_F(PlacementRulesTest, AFullLowerTierIsNotRememberedAfterItsLeasesEnded) {
  Open({.hbm = 1, .dram = 2});
  Put(1, Retention::kOwned);
  Fetch({1});
  Put(2);
  Put(3);
  ASSERT_EQ(Find(1), Tier::kHbm);
  const std::vector<FetchItem> lease = Hold({2, 3}, Pool::kDram);
  EXPECT_EQ(Fetch({2}), Room::kFull);
  Release(lease);
  EXPECT_EQ(Fetch({2}), Room::kOk);
  EXPECT_EQ(Find(2), Tier::kHbm);
  EXPECT_EQ(Find(1), Tier::kDram);
}

// --- HBM, DRAM and NVMe ---

TEST_F(PlacementRulesTest, APromotedBlockLeavesADramCopyThatIsTheFirstVictim) {
  Open({.hbm = 2, .dram = 2});
  Put(1);
  Put(2);
  EXPECT_EQ(Fetch({2}), Room::kOk);
  EXPECT_EQ(placement().CountBlocks(), (std::array<uint64_t, kTierCount>{1, 1, 0}));
  Put(3);
  EXPECT_EQ(Find(1), Tier::kDram);
  EXPECT_EQ(Find(2), Tier::kHbm);
  EXPECT_EQ(placement().stats().evicted_blocks, 0u);
}

TEST_F(PlacementRulesTest, AFetchThatNeedsAllOfDramLosesNothingWhileNvmeHasRoom) {
  for (Retention retention : {Retention::kCached, Retention::kOwned}) {
    Open({.hbm = 2, .dram = 2, .segments = 8});
    Put(1, retention);
    Put(2, retention);
    Fetch({1, 2});
    Put(3, retention);
    Put(4, retention);
    ASSERT_TRUE(Find(1) == Tier::kHbm && Find(2) == Tier::kHbm);
    ASSERT_TRUE(Find(3) == Tier::kDram && Find(4) == Tier::kDram);
    EXPECT_EQ(Fetch({3, 4}), Room::kOk);
    EXPECT_TRUE(Find(3) == Tier::kHbm && Find(4) == Tier::kHbm);
    EXPECT_TRUE(Find(1) && Find(2));
    EXPECT_EQ(placement().stats().evicted_blocks, 0u);
  }
}

TEST_F(PlacementRulesTest, ABlockBeingFlushedFromHbmIsNotEvictedFromUnderItsWrite) {
  Open({.hbm = 1, .dram = 1, .segments = 8});
  Put(1);
  Fetch({1});
  Put(2);
  ASSERT_EQ(Find(1), Tier::kHbm);
  Placement::FlushCursor cursor = placement().BeginFlush();
  ASSERT_EQ(placement().SelectDirty(cursor), Room::kOk);
  driver_->Start();
  // The copies land, the writes do not.
  for (size_t i = 0; i < driver_->in_flight();) {
    const bool write = driver_->transfer(i).kind == PlacementDriver::Transfer::Kind::kGroup;
    write ? void(++i) : driver_->Finish(i);
  }
  std::vector<FetchItem> items = Items({2});
  placement().ReserveFetch(absl::MakeSpan(items), Pool::kHbm);
  EXPECT_TRUE(Find(1));
  EXPECT_EQ(Fetch({1}), Room::kOk);
  EXPECT_EQ(placement().stats().evicted_blocks, 0u);
  if (items[0].place.slot != kNoSlot) placement().Unpin(items[0].place);
}

TEST_F(PlacementRulesTest, AFlushTakesBlocksThatAreMovingDown) {
  Open({.hbm = 1, .dram = 2, .segments = 8});
  Put(1);
  Fetch({1});
  Put(2);
  Put(3);
  ASSERT_EQ(Find(1), Tier::kHbm);
  placement().Drop(Id(2));
  std::vector<FetchItem> items = Items({3});
  ASSERT_EQ(placement().ReserveFetch(absl::MakeSpan(items), Pool::kHbm), Room::kWait);
  ASSERT_EQ(Find(1), Tier::kDram);  // on its way
  EXPECT_TRUE(driver_->Flush());
  for (uint64_t block : {1, 3}) EXPECT_TRUE(placement().OnNvme(Id(block))) << block;
}

// --- Leases in transit ---

TEST_F(PlacementRulesTest, ALeaseOnABlockThatNvmeEvictsEndsWithoutALeak) {
  Open({.segments = 2});
  Put(1);
  driver_->Settle();
  const std::vector<FetchItem> lease = Hold({1});
  for (uint64_t block = 2; block < 6; ++block) EXPECT_EQ(Put(block), PutOutcome::kReserved);
  driver_->Settle();
  EXPECT_FALSE(Find(1));
  Release(lease);
  const SlotTable& transit = placement().table(Pool::kTransit);
  EXPECT_EQ(transit.free_count(), transit.size());
  EXPECT_EQ(transit.lent_count(), 0u);
}

TEST_F(PlacementRulesTest, LeasesHoldAtMostHalfOfTheTransitPool) {
  Open({.segments = 8});
  std::vector<std::vector<FetchItem>> leases;
  for (uint64_t block = 0; block < 3; ++block) {
    Put(block);
    // Still on its way down, so it is served where it is.
    std::vector<FetchItem> items = Items({block});
    const Room room = placement().ReserveFetch(absl::MakeSpan(items), Pool::kTransit);
    EXPECT_EQ(room, block < 2 ? Room::kOk : Room::kFull);
    if (room == Room::kOk) leases.push_back(items);
  }
  EXPECT_EQ(placement().table(Pool::kTransit).lent_count(), 2u);
  EXPECT_EQ(Put(10), PutOutcome::kReserved);
  for (const auto& lease : leases) Release(lease);
  EXPECT_EQ(placement().table(Pool::kTransit).lent_count(), 0u);
  EXPECT_EQ(Fetch({0, 1}), Room::kOk);
}

// A read to HBM arrives in transit. What a group collects there must not stand in its way, since
// nobody else may come to close the group.
TEST_F(PlacementRulesTest, AnOpenGroupLeavesTransitSlotsForReads) {
  Open({.hbm = 4, .segments = 8, .group_blocks = 4});
  for (uint64_t block = 0; block < 4; ++block) Put(block);
  EXPECT_TRUE(driver_->Flush());
  for (uint64_t block = 4; block < 8; ++block) Put(block);
  driver_->Settle();
  ASSERT_EQ(Find(0), Tier::kNvme);
  std::vector<FetchItem> parts = Items({0, 1});
  for (FetchItem& part : parts) part.page_count = 1;
  ASSERT_EQ(placement().ReserveFetch(absl::MakeSpan(parts), Pool::kHbm), Room::kOk);
  driver_->Settle();
  // Two blocks of HBM move to the open group.
  for (uint64_t block = 8; block < 10; ++block) EXPECT_EQ(Put(block), PutOutcome::kReserved);
  driver_->Settle();
  placement().Drop(Id(9));
  EXPECT_EQ(Fetch({3}), Room::kOk);
  Release(parts);
}

// --- Prefetch, drop, failures ---

TEST_F(PlacementRulesTest, AFetchJoinsAPrefetchAndRaisesIt) {
  Open({.dram = 2, .segments = 8});
  Put(1);
  driver_->Flush();
  Put(2);
  Put(3);
  driver_->Flush();
  ASSERT_EQ(Find(1), Tier::kNvme);
  const BlockId ids[] = {Id(1)};
  EXPECT_EQ(placement().ReservePrefetch(ids, Pool::kDram, 1), 1u);
  EXPECT_EQ(placement().NextRead(/*allow_prefetch=*/false), std::nullopt);
  std::vector<FetchItem> items = Items({1});
  ASSERT_EQ(placement().ReserveFetch(absl::MakeSpan(items), Pool::kDram), Room::kOk);
  EXPECT_EQ(items[0].hit_tier, Tier::kNvme);
  EXPECT_FALSE(items[0].was_prefetching);  // it had not been submitted
  const std::optional<Place> read = placement().NextRead(/*allow_prefetch=*/false);
  ASSERT_EQ(read, items[0].place);
  EXPECT_EQ(placement().NextRead(/*allow_prefetch=*/true), std::nullopt);  // one read, not two
  placement().FillLanded(*read);
  EXPECT_EQ(placement().stats().prefetched_blocks, 0u);
  placement().Unpin(items[0].place);
}

TEST_F(PlacementRulesTest, PrefetchesBeyondTheCapAreDroppedAndCounted) {
  Open({.dram = 4, .segments = 8});
  for (uint64_t block = 0; block < 7; ++block) Put(block);
  driver_->Flush();
  const BlockId ids[] = {Id(0), Id(1), Id(2)};
  EXPECT_EQ(placement().ReservePrefetch(ids, Pool::kDram, 2), 2u);
  EXPECT_EQ(placement().stats().prefetch_dropped, 1u);
  driver_->Settle();
  EXPECT_EQ(placement().stats().prefetched_blocks, 2u);
  EXPECT_EQ(Find(0), Tier::kDram);
}

TEST_F(PlacementRulesTest, ADroppedBlockIsAMissAtOnceAndItsLeaseStaysGood) {
  Open({.hbm = 1, .dram = 1, .segments = 4});
  Put(1, Retention::kOwned);
  const std::vector<FetchItem> lease = Hold({1});
  placement().Drop(Id(1));
  EXPECT_FALSE(Find(1));
  Put(1);  // anew, beside the old bytes
  Release(lease);
  EXPECT_EQ(Fetch({1}), Room::kOk);
}

TEST_F(PlacementRulesTest, ALostReadIsCountedOnceAndTheBlockIsGone) {
  Open({.dram = 1, .segments = 8});
  Put(1);
  Put(2);
  driver_->Settle();
  ASSERT_EQ(Find(1), Tier::kNvme);
  std::vector<FetchItem> items = Items({1, 1});
  items.pop_back();
  while (placement().ReserveFetch(absl::MakeSpan(items), Pool::kDram) == Room::kWait) {
    driver_->Settle();
  }
  driver_->Start();
  ASSERT_EQ(driver_->in_flight(), 1u);
  driver_->Fail(0);
  EXPECT_EQ(placement().table(Pool::kDram).state(items[0].place.slot), CopyState::kFailed);
  EXPECT_FALSE(Find(1));
  EXPECT_EQ(placement().stats().lost_blocks, 1u);
  placement().Unpin(items[0].place);
  EXPECT_EQ(Put(1), PutOutcome::kReserved);
}

TEST_F(PlacementRulesTest, AFailedWriteLosesNothingThatMemoryHolds) {
  Open({.dram = 2, .segments = 8});
  Put(1, Retention::kOwned);
  Placement::FlushCursor cursor = placement().BeginFlush();
  ASSERT_EQ(placement().SelectDirty(cursor), Room::kOk);
  driver_->Start();
  ASSERT_EQ(driver_->in_flight(), 1u);
  driver_->Fail(0);
  EXPECT_EQ(Find(1), Tier::kDram);
  EXPECT_FALSE(placement().OnNvme(Id(1)));
  EXPECT_EQ(placement().stats().lost_blocks, 0u);
  EXPECT_FALSE(driver_->Flush());
}

}  // namespace
}  // namespace terrace
