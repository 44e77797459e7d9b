#include "tiers/slot_table.h"

#include <memory>
#include <random>
#include <set>
#include <vector>

#include "gtest/gtest.h"

namespace terrace {
namespace {

constexpr EntryIndex kEntry{7};

SlotTable MakeTable(size_t slots) {
  return SlotTable(slots, /*pages_per_slot=*/2, *MakeEvictionPolicy("lru", slots));
}

std::vector<SlotIndex> Order(const SlotTable& table) {
  std::vector<SlotIndex> order;
  table.policy().VisitColdest([&](SlotIndex slot) {
    order.push_back(slot);
    return true;
  });
  return order;
}

TEST(SlotTable, HandsOutEverySlotOnce) {
  SlotTable table = MakeTable(5);
  std::set<SlotIndex> slots;
  for (int i = 0; i < 5; ++i) slots.insert(table.Reserve(kEntry));
  EXPECT_EQ(slots.size(), 5u);
  EXPECT_EQ(table.free_count(), 0u);
}

TEST(SlotTable, AnAttachedSlotStaysWhenItsLastPinGoes) {
  SlotTable table = MakeTable(1);
  const SlotIndex slot = table.Reserve(kEntry);
  table.Pin(slot);
  table.Land(slot);
  EXPECT_EQ(table.pinned_count(), 1u);
  table.Unpin(slot);
  EXPECT_EQ(table.pinned_count(), 0u);
  EXPECT_EQ(table.state(slot), CopyState::kResident);
  EXPECT_EQ(table.entry(slot), kEntry);
  EXPECT_EQ(table.free_count(), 0u);
}

TEST(SlotTable, ADetachedSlotIsFreedWithItsLastPin) {
  SlotTable table = MakeTable(1);
  const SlotIndex slot = table.Reserve(kEntry);
  table.Land(slot);
  table.Pin(slot);
  table.Pin(slot);
  table.Detach(slot);
  table.Unpin(slot);
  EXPECT_EQ(table.state(slot), CopyState::kResident);
  EXPECT_EQ(table.free_count(), 0u);
  table.Unpin(slot);
  EXPECT_EQ(table.state(slot), CopyState::kEmpty);
  EXPECT_EQ(table.free_count(), 1u);
}

TEST(SlotTable, ASlotIsNotFreedWhileBytesAreOnTheWayToIt) {
  SlotTable table = MakeTable(2);
  const SlotIndex detached = table.Reserve(kEntry);
  table.Detach(detached);
  EXPECT_EQ(table.state(detached), CopyState::kFilling);
  const SlotIndex pinned = table.Reserve(kNoEntry);
  table.Pin(pinned);
  table.Unpin(pinned);
  EXPECT_EQ(table.free_count(), 0u);
  table.Land(detached);
  table.Land(pinned);
  EXPECT_EQ(table.free_count(), 2u);
}

TEST(SlotTable, AFailedFillIsKeptUntilItsLastWaiterHasSeenIt) {
  SlotTable table = MakeTable(2);
  const SlotIndex unseen = table.Reserve(kEntry);
  table.Fail(unseen);
  EXPECT_EQ(table.state(unseen), CopyState::kEmpty);
  const SlotIndex waited = table.Reserve(kEntry);
  table.Pin(waited);
  table.Fail(waited);
  EXPECT_EQ(table.state(waited), CopyState::kFailed);
  EXPECT_EQ(table.entry(waited), kNoEntry);
  table.Unpin(waited);
  EXPECT_EQ(table.state(waited), CopyState::kEmpty);
  EXPECT_EQ(table.free_count(), 2u);
}

TEST(SlotTable, SlotsWithoutABlockLeaveTheEvictionOrder) {
  SlotTable table = MakeTable(3);
  SlotIndex slots[3];
  for (SlotIndex& slot : slots) {
    slot = table.Reserve(kEntry);
    table.Track(slot, {});
  }
  table.Land(slots[0]);
  table.Touch(slots[0]);
  EXPECT_EQ(Order(table), (std::vector<SlotIndex>{slots[1], slots[2], slots[0]}));
  table.MakeColdest(slots[2]);
  EXPECT_EQ(Order(table), (std::vector<SlotIndex>{slots[2], slots[1], slots[0]}));
  table.Fail(slots[1]);
  table.Detach(slots[0]);
  EXPECT_EQ(Order(table), (std::vector<SlotIndex>{slots[2]}));
  table.Untrack(slots[2]);
  table.Touch(slots[2]);
  table.MakeColdest(slots[2]);
  EXPECT_TRUE(Order(table).empty());
}

TEST(SlotTable, CountsALentSlotOnceUntilItsLastLeaseGaveItBack) {
  SlotTable table = MakeTable(2);
  const SlotIndex slot = table.Reserve(kNoEntry);
  table.Pin(slot);
  table.Land(slot);
  EXPECT_FALSE(table.lent(slot));
  for (int lease = 0; lease < 2; ++lease) {
    table.Lend(slot);
    table.Pin(slot);
  }
  EXPECT_TRUE(table.lent(slot));
  EXPECT_EQ(table.lent_count(), 1u);
  table.TakeBack(slot);
  table.Unpin(slot);
  EXPECT_EQ(table.lent_count(), 1u);
  table.TakeBack(slot);
  EXPECT_EQ(table.lent_count(), 0u);
  EXPECT_DEATH(table.TakeBack(slot), "leases");
}

TEST(SlotTable, ALoanOfASlotThatIsBeingFilledLastsUntilTheFillEnds) {
  SlotTable table = MakeTable(1);
  for (const bool lands : {true, false}) {
    const SlotIndex slot = table.Reserve(kNoEntry);
    table.Lend(slot);
    table.TakeBack(slot);
    EXPECT_EQ(table.lent_count(), 1u);
    EXPECT_EQ(table.falling_count(), 1u);
    lands ? table.Land(slot) : table.Fail(slot);
    EXPECT_EQ(table.lent_count(), 0u);
    EXPECT_EQ(table.falling_count(), 0u);
  }
}

TEST(SlotTable, AReservedSlotForgetsItsLastFill) {
  SlotTable table = MakeTable(1);
  const SlotIndex slot = table.Reserve(kNoEntry);
  table.fill(slot).queued = true;
  table.fill(slot).group = 3;
  table.Land(slot);
  EXPECT_EQ(table.Reserve(kNoEntry), slot);
  EXPECT_FALSE(table.fill(slot).queued);
  EXPECT_FALSE(table.fill(slot).group.has_value());
}

TEST(SlotTable, ChecksumsOfSlotsDoNotOverlap) {
  SlotTable table = MakeTable(3);
  for (uint32_t slot = 0; slot < 3; ++slot) {
    for (PageChecksum& checksum : table.checksums(SlotIndex{slot})) checksum = slot + 1;
  }
  for (uint32_t slot = 0; slot < 3; ++slot) {
    const absl::Span<PageChecksum> checksums = table.checksums(SlotIndex{slot});
    EXPECT_EQ(std::vector<PageChecksum>(checksums.begin(), checksums.end()),
              std::vector<PageChecksum>(2, slot + 1));
  }
}

// Random legal use against a plain model: which slots are free, pinned and tracked follows from
// state, pins and attachment alone.
TEST(SlotTable, FreeAndPinnedSlotsAddUpUnderRandomUse) {
  const uint64_t seed = 31;
  SCOPED_TRACE(testing::Message() << "seed " << seed);
  std::mt19937_64 random(seed);
  constexpr uint32_t kSlots = 6;
  SlotTable table = MakeTable(kSlots);
  for (int step = 0; step < 20000; ++step) {
    const SlotIndex slot{static_cast<uint32_t>(random() % kSlots)};
    const CopyState state = table.state(slot);
    switch (random() % 6) {
      case 0:
        if (table.free_count() > 0) {
          const bool attached = random() % 2 == 0;
          const SlotIndex reserved = table.Reserve(attached ? kEntry : kNoEntry);
          if (attached) table.Track(reserved, {});
        }
        break;
      case 1:
        if (state == CopyState::kFilling) table.Land(slot);
        break;
      case 2:
        if (state == CopyState::kFilling) table.Fail(slot);
        break;
      case 3:
        if (state == CopyState::kFilling || state == CopyState::kResident) table.Pin(slot);
        break;
      case 4:
        if (table.pins(slot) > 0) table.Unpin(slot);
        break;
      case 5:
        if (table.entry(slot) != kNoEntry) table.Detach(slot);
        break;
    }
    size_t empty = 0;
    size_t pinned = 0;
    size_t attached = 0;
    for (uint32_t i = 0; i < kSlots; ++i) {
      const SlotIndex each{i};
      if (table.state(each) == CopyState::kEmpty) ++empty;
      if (table.pins(each) > 0) ++pinned;
      if (table.entry(each) != kNoEntry) ++attached;
      const bool kept_for_nobody = table.entry(each) == kNoEntry && table.pins(each) == 0 &&
                                   table.state(each) != CopyState::kFilling;
      ASSERT_EQ(kept_for_nobody, table.state(each) == CopyState::kEmpty) << "step " << step;
    }
    ASSERT_EQ(table.free_count(), empty) << "step " << step;
    ASSERT_EQ(table.pinned_count(), pinned) << "step " << step;
    ASSERT_EQ(Order(table).size(), attached) << "step " << step;
  }
}

TEST(SlotTableDeathTest, AbortsOnMisuse) {
  SlotTable table = MakeTable(1);
  const SlotIndex slot = table.Reserve(kEntry);
  EXPECT_DEATH(table.Reserve(kEntry), "free_");
  EXPECT_DEATH(table.Unpin(slot), "pins");
  table.Land(slot);
  EXPECT_DEATH(table.Land(slot), "kLegalTransition");
  table.Track(slot, {});
  EXPECT_DEATH(table.Track(slot, {}), "tracked");
}

}  // namespace
}  // namespace terrace
