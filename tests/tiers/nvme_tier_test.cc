#include "tiers/nvme_tier.h"

#include <algorithm>
#include <optional>
#include <vector>

#include "gtest/gtest.h"

namespace terrace {
namespace {

// Four segments of 12 pages: two groups of a header page and two blocks of two pages, and two over.
constexpr NvmeGeometry kGeometry = {.pages_per_block = 2,
                                    .segment_pages = 12,
                                    .segment_count = 4,
                                    .group_blocks = 2,
                                    .header_pages = 1};

uint32_t Number(SegmentIndex segment) { return static_cast<uint32_t>(segment); }
uint32_t Number(PageIndex page) { return static_cast<uint32_t>(page); }

// Opens the next segment, fills it with one group of one block, and seals it.
SegmentIndex WriteOneBlock(NvmeTier& tier, EntryIndex entry, bool owned) {
  EXPECT_TRUE(tier.OpenNextSegment());
  const PageIndex base = tier.append_point();
  tier.Place(PageIndex{Number(base) + 1}, entry, owned);
  tier.FinishGroup(3);
  tier.SealOpenSegment();
  return tier.SegmentAt(base);
}

TEST(NvmeTier, AppendsOneGroupBehindTheOther) {
  NvmeTier tier(kGeometry, 1);
  EXPECT_FALSE(tier.has_open_segment());
  EXPECT_EQ(tier.open_pages_left(), 0u);
  ASSERT_TRUE(tier.OpenNextSegment());
  EXPECT_EQ(tier.open_pages_left(), 12u);
  const uint32_t start = Number(tier.append_point());
  EXPECT_EQ(start, kSuperblockPages);
  EXPECT_EQ(tier.FinishGroup(5), 1u);
  EXPECT_EQ(Number(tier.append_point()), start + 5);
  EXPECT_EQ(tier.FinishGroup(3), 2u);
  EXPECT_EQ(tier.open_pages_left(), 4u);
}

TEST(NvmeTier, EverySegmentLiesInsideTheDeviceAndApartFromTheOthers) {
  const NvmeTier tier(kGeometry, 1);
  for (uint32_t i = 0; i < kGeometry.segment_count; ++i) {
    const uint32_t start = Number(tier.SegmentStart(SegmentIndex{i}));
    EXPECT_EQ(start, kSuperblockPages + i * kGeometry.segment_pages);
    EXPECT_LE(uint64_t{start + kGeometry.segment_pages} * kPageBytes, kGeometry.total_bytes());
    for (uint32_t page : {0u, kGeometry.segment_pages - 1}) {
      EXPECT_EQ(Number(tier.SegmentAt(PageIndex{start + page})), i);
    }
  }
}

TEST(NvmeTier, KnowsWhichBlockStartsWhere) {
  NvmeTier tier(kGeometry, 1);
  ASSERT_TRUE(tier.OpenNextSegment());
  const uint32_t base = Number(tier.append_point());
  // Two full groups: blocks at 1, 3 and 6, 8.
  const uint32_t pages[] = {1, 3, 6, 8};
  for (uint32_t i = 0; i < 4; ++i) tier.Place(PageIndex{base + pages[i]}, EntryIndex{i}, false);
  for (uint32_t i = 0; i < 4; ++i) {
    EXPECT_EQ(tier.entry_near(PageIndex{base + pages[i]}), EntryIndex{i});
  }
  std::vector<EntryIndex> visited;
  tier.VisitBlocks(SegmentIndex{0}, [&](EntryIndex entry) { visited.push_back(entry); });
  EXPECT_EQ(visited.size(), 4u);
  tier.Remove(PageIndex{base + 3}, false);
  EXPECT_EQ(tier.entry_near(PageIndex{base + 3}), kNoEntry);
}

TEST(NvmeTier, EvictsTheOldestSealedSegmentThatMayGo) {
  NvmeTier tier(kGeometry, 1);
  EXPECT_EQ(tier.Victim(), std::nullopt);
  const SegmentIndex owned = WriteOneBlock(tier, EntryIndex{0}, true);
  const SegmentIndex second = WriteOneBlock(tier, EntryIndex{1}, false);
  const SegmentIndex third = WriteOneBlock(tier, EntryIndex{2}, false);
  EXPECT_EQ(tier.Victim(), second);
  const PageIndex owned_page{Number(tier.SegmentStart(owned)) + 1};
  tier.SetOwned(owned_page, false);
  EXPECT_EQ(tier.Victim(), owned);
  tier.SetOwned(owned_page, true);
  tier.Remove(PageIndex{Number(tier.SegmentStart(second)) + 1}, false);
  tier.FreeSegment(second);
  EXPECT_EQ(tier.Victim(), third);
}

TEST(NvmeTier, TheOpenSegmentIsNoVictim) {
  NvmeTier tier(kGeometry, 1);
  ASSERT_TRUE(tier.OpenNextSegment());
  tier.FinishGroup(3);
  EXPECT_EQ(tier.Victim(), std::nullopt);
}

// The oldest segment stays the right victim while its writes last: waiting for them keeps evictions
// independent of the speed of the disk.
TEST(NvmeTier, ASegmentBeingWrittenStaysTheVictimAndSaysSo) {
  NvmeTier tier(kGeometry, 1);
  const SegmentIndex first = WriteOneBlock(tier, EntryIndex{0}, false);
  WriteOneBlock(tier, EntryIndex{1}, false);
  const SegmentIndex third = WriteOneBlock(tier, EntryIndex{2}, false);
  EXPECT_FALSE(tier.AnyVictimBeingWritten(3));
  tier.AddWriter(tier.SegmentStart(third));
  EXPECT_FALSE(tier.AnyVictimBeingWritten(2));
  EXPECT_TRUE(tier.AnyVictimBeingWritten(3));
  tier.AddWriter(tier.SegmentStart(first));
  EXPECT_EQ(tier.Victim(), first);
  EXPECT_FALSE(tier.AnyVictimBeingWritten(0));
  EXPECT_TRUE(tier.AnyVictimBeingWritten(1));
  tier.RemoveWriter(tier.SegmentStart(first));
  EXPECT_FALSE(tier.AnyVictimBeingWritten(2));
}

TEST(NvmeTier, AFreedSegmentIsReusedLastAndNotWhileItIsRead) {
  NvmeTier tier(kGeometry, 1);
  const SegmentIndex first = WriteOneBlock(tier, EntryIndex{0}, false);
  const PageIndex page{Number(tier.SegmentStart(first)) + 1};
  tier.AddReader(page);
  tier.Remove(page, false);
  tier.FreeSegment(first);
  for (int i = 0; i < 3; ++i) {
    ASSERT_TRUE(tier.OpenNextSegment());
    EXPECT_NE(tier.SegmentAt(tier.append_point()), first);
    tier.SealOpenSegment();
  }
  EXPECT_FALSE(tier.OpenNextSegment());
  tier.RemoveReader(page);
  ASSERT_TRUE(tier.OpenNextSegment());
  EXPECT_EQ(tier.SegmentAt(tier.append_point()), first);
}

TEST(NvmeTier, CountsTheBytesInUseAndTheirPeak) {
  NvmeTier tier(kGeometry, 1);
  const uint64_t empty = kSuperblockPages * kPageBytes;
  EXPECT_EQ(tier.used_bytes(), empty);
  const SegmentIndex first = WriteOneBlock(tier, EntryIndex{0}, false);
  WriteOneBlock(tier, EntryIndex{1}, false);
  EXPECT_EQ(tier.used_bytes(), empty + 6 * kPageBytes);
  tier.Remove(PageIndex{Number(tier.SegmentStart(first)) + 1}, false);
  tier.FreeSegment(first);
  EXPECT_EQ(tier.used_bytes(), empty + 3 * kPageBytes);
  EXPECT_EQ(tier.peak_bytes(), empty + 6 * kPageBytes);
}

TEST(NvmeTier, RestoredSegmentsAreSealedInTheirOrder) {
  NvmeTier tier(kGeometry, 1);
  tier.RestoreSealed(SegmentIndex{2}, 5);
  tier.RestoreSealed(SegmentIndex{0}, 10);
  tier.RestoreGeneration(41);
  EXPECT_EQ(tier.free_segments(), 2u);
  EXPECT_EQ(tier.Victim(), SegmentIndex{2});
  EXPECT_EQ(tier.used_bytes(), (kSuperblockPages + 15) * kPageBytes);
  ASSERT_TRUE(tier.OpenNextSegment());
  EXPECT_EQ(tier.SegmentAt(tier.append_point()), SegmentIndex{1});
  EXPECT_GT(tier.FinishGroup(3), 41u);
}

TEST(NvmeTierDeathTest, AbortsOnMisuse) {
  NvmeTier tier(kGeometry, 1);
  EXPECT_DEATH(tier.append_point(), "open_");
  EXPECT_DEATH(tier.FinishGroup(1), "open_pages_left");
  ASSERT_TRUE(tier.OpenNextSegment());
  EXPECT_DEATH(tier.FinishGroup(13), "open_pages_left");
  const PageIndex page{Number(tier.append_point()) + 1};
  tier.Place(page, EntryIndex{0}, false);
  EXPECT_DEATH(tier.Place(page, EntryIndex{1}, false), "kNoEntry");
  EXPECT_DEATH(tier.FreeSegment(SegmentIndex{0}), "check failed");
}

}  // namespace
}  // namespace terrace
