#include "tiers/nvme_tier.h"

#include <algorithm>
#include <optional>
#include <vector>

#include "gtest/gtest.h"

namespace terrace {
namespace {

// Four segments of 12 pages of data: two groups of a header page and two blocks of two pages each,
// and two over; then a footer page.
constexpr NvmeGeometry kGeometry = {.pages_per_block = 2,
                                    .segment_pages = 13,
                                    .segment_count = 4,
                                    .group_blocks = 2,
                                    .header_pages = 1,
                                    .footer_pages = 1,
                                    .manifest_pages = 1};

uint32_t Number(PageIndex page) { return static_cast<uint32_t>(page); }
PageIndex Start(SegmentIndex segment) {
  return PageIndex{static_cast<uint32_t>(kGeometry.SegmentPage(segment))};
}
// Of the first block of a segment.
PageIndex FirstBlock(SegmentIndex segment) { return PageIndex{Number(Start(segment)) + 1}; }

// Opens the next segment, and writes one group of one block to it.
SegmentIndex WriteOneBlock(NvmeTier& tier, EntryIndex entry, bool owned) {
  EXPECT_TRUE(tier.OpenNextSegment());
  const PageIndex base = tier.append_point();
  tier.Place(PageIndex{Number(base) + 1}, entry, owned);
  tier.FinishGroup(1);
  return tier.SegmentAt(base);
}

// Carries out all upkeep that is due.
void Settle(NvmeTier& tier) {
  const auto all = [&](SegmentIndex segment) { return tier.used_pages(segment); };
  while (const std::optional<UpkeepTask> task = tier.NextUpkeep(all)) tier.UpkeepDone(*task);
}

SegmentIndex SealOneBlock(NvmeTier& tier, EntryIndex entry, bool owned) {
  const SegmentIndex segment = WriteOneBlock(tier, entry, owned);
  tier.SealOpenSegment();
  Settle(tier);
  EXPECT_EQ(tier.phase(segment), SegmentPhase::kSealed);
  return segment;
}

TEST(NvmeTier, AppendsOneGroupBehindTheOther) {
  NvmeTier tier(kGeometry, 1);
  EXPECT_FALSE(tier.has_open_segment());
  EXPECT_EQ(tier.open_pages_left(), 0u);
  ASSERT_TRUE(tier.OpenNextSegment());
  EXPECT_EQ(tier.open_pages_left(), 12u);
  const uint32_t start = Number(tier.append_point());
  EXPECT_EQ(start, kGeometry.log_start());
  EXPECT_EQ(Number(tier.append_limit()), kGeometry.FooterPage(SegmentIndex{0}));
  EXPECT_EQ(tier.FinishGroup(2).generation, 1u);
  EXPECT_EQ(Number(tier.append_point()), start + 5);
  EXPECT_EQ(tier.FinishGroup(1).generation, 2u);
  EXPECT_EQ(tier.open_pages_left(), 4u);
  EXPECT_EQ(Number(tier.append_limit()), kGeometry.FooterPage(SegmentIndex{0}));
}

TEST(NvmeTier, AUseOfASegmentIsNamedByTheGenerationOfItsFirstGroup) {
  NvmeTier tier(kGeometry, 1);
  const SegmentIndex first = WriteOneBlock(tier, EntryIndex{0}, false);
  EXPECT_EQ(tier.manifest_record(first).segment_generation, 1u);
  EXPECT_EQ(tier.FinishGroup(1).segment_generation, 1u);
  tier.SealOpenSegment();
  const SegmentIndex second = WriteOneBlock(tier, EntryIndex{1}, false);
  EXPECT_EQ(tier.manifest_record(second).segment_generation, 3u);
}

TEST(NvmeTier, EachGroupNamesTheOneBeforeItAndNoSessionWritesTheGroupsOfAnother) {
  NvmeTier tier(kGeometry, 1, /*session=*/1000);
  NvmeTier other(kGeometry, 1, /*session=*/2000);
  ASSERT_TRUE(tier.OpenNextSegment() && other.OpenNextSegment());
  const GroupHeader first = tier.FinishGroup(1);
  const GroupHeader second = tier.FinishGroup(1);
  const GroupHeader of_other = other.FinishGroup(1);
  EXPECT_EQ(first.previous_stamp, 0u);
  EXPECT_EQ(second.previous_stamp, first.stamp);
  EXPECT_NE(second.stamp, first.stamp);
  EXPECT_EQ(of_other.generation, first.generation);
  EXPECT_NE(of_other.stamp, first.stamp);
  tier.SealOpenSegment();
  ASSERT_TRUE(tier.OpenNextSegment());
  EXPECT_EQ(tier.FinishGroup(1).previous_stamp, 0u);
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

TEST(NvmeTier, KeepsASealForEachBlock) {
  NvmeTier tier(kGeometry, 1);
  const uint32_t start = Number(Start(SegmentIndex{1}));
  for (const uint32_t page : {1, 3, 6, 8}) {
    tier.seal(PageIndex{start + page}).tag[0] = static_cast<std::byte>(page);
  }
  for (const uint32_t page : {1, 3, 6, 8}) {
    EXPECT_EQ(tier.seal(PageIndex{start + page}).tag[0], static_cast<std::byte>(page));
  }
}

TEST(NvmeTier, CountsOwnedBlocksOfEachSegment) {
  NvmeTier tier(kGeometry, 1);
  const SegmentIndex first = SealOneBlock(tier, EntryIndex{0}, true);
  const SegmentIndex second = SealOneBlock(tier, EntryIndex{1}, false);
  EXPECT_EQ(tier.owned_blocks(first), 1u);
  EXPECT_EQ(tier.owned_blocks(second), 0u);
  tier.SetOwned(FirstBlock(first), false);
  tier.SetOwned(FirstBlock(second), true);
  EXPECT_EQ(tier.owned_blocks(first), 0u);
  EXPECT_EQ(tier.owned_blocks(second), 1u);
  tier.Remove(FirstBlock(second), true);
  EXPECT_EQ(tier.owned_blocks(second), 0u);
}

// Which segment is evicted next must not depend on how fast the disk is.
TEST(NvmeTier, SegmentsAreOldestFirstFromTheMomentTheyAreFull) {
  NvmeTier tier(kGeometry, 1);
  const SegmentIndex first = WriteOneBlock(tier, EntryIndex{0}, false);
  EXPECT_TRUE(tier.sealed().empty());
  tier.AddWriter(Start(first));
  tier.SealOpenSegment();
  const SegmentIndex second = SealOneBlock(tier, EntryIndex{1}, false);
  EXPECT_EQ(tier.phase(first), SegmentPhase::kWriting);
  EXPECT_EQ(tier.sealed(), (std::deque<SegmentIndex>{first, second}));
}

TEST(NvmeTier, AFreedSegmentIsReusedLastAndNotWhileItIsRead) {
  NvmeTier tier(kGeometry, 1);
  const SegmentIndex first = SealOneBlock(tier, EntryIndex{0}, false);
  tier.AddReader(FirstBlock(first));
  tier.Remove(FirstBlock(first), false);
  tier.Retire(first);
  for (int i = 0; i < 3; ++i) {
    ASSERT_TRUE(tier.OpenNextSegment());
    EXPECT_NE(tier.open_segment(), first);
    tier.SealOpenSegment();
    Settle(tier);
  }
  EXPECT_FALSE(tier.OpenNextSegment());
  Settle(tier);
  EXPECT_EQ(tier.phase(first), SegmentPhase::kFree);
  EXPECT_FALSE(tier.OpenNextSegment());
  tier.RemoveReader(FirstBlock(first));
  ASSERT_TRUE(tier.OpenNextSegment());
  EXPECT_EQ(tier.open_segment(), first);
  EXPECT_EQ(Number(tier.append_point()), Number(Start(first)));
}

TEST(NvmeTier, KeepsASegmentInReserveUnlessThatIsMoreThanAQuarter) {
  NvmeGeometry geometry = kGeometry;
  EXPECT_EQ(NvmeTier(geometry, 1).reserve_segments(), 1u);
  geometry.segment_count = 3;
  EXPECT_EQ(NvmeTier(geometry, 1).reserve_segments(), 0u);
}

TEST(NvmeTier, CountsTheBytesInUseAndTheirPeak) {
  NvmeTier tier(kGeometry, 1);
  const uint64_t empty = kGeometry.log_start() * kPageBytes;
  EXPECT_EQ(tier.used_bytes(), empty);
  const SegmentIndex first = SealOneBlock(tier, EntryIndex{0}, false);
  EXPECT_EQ(tier.used_bytes(), empty + 4 * kPageBytes);  // a group and a footer
  WriteOneBlock(tier, EntryIndex{1}, false);
  EXPECT_EQ(tier.used_bytes(), empty + 7 * kPageBytes);
  tier.Remove(FirstBlock(first), false);
  tier.Retire(first);
  EXPECT_EQ(tier.used_bytes(), empty + 3 * kPageBytes);
  EXPECT_EQ(tier.peak_bytes(), empty + 7 * kPageBytes);
}

// --- Restored segments ---

NvmeTier::Restored Found(SegmentIndex segment, uint64_t generation, uint32_t used_pages) {
  NvmeTier::Restored restored;
  restored.segment = segment;
  restored.generation = generation;
  restored.used_pages = used_pages;
  return restored;
}

TEST(NvmeTier, RestoredSegmentsAreSealedInTheirOrder) {
  NvmeTier tier(kGeometry, 1);
  tier.Restore(Found(SegmentIndex{2}, 3, 5));
  tier.Restore(Found(SegmentIndex{0}, 9, 10));
  tier.RestoreGeneration(41);
  EXPECT_EQ(tier.free_segments(), 2u);
  EXPECT_EQ(tier.sealed(), (std::deque<SegmentIndex>{SegmentIndex{2}, SegmentIndex{0}}));
  EXPECT_EQ(tier.phase(SegmentIndex{0}), SegmentPhase::kSealed);
  EXPECT_EQ(tier.used_bytes(), (kGeometry.log_start() + 15 + 2) * kPageBytes);
  tier.ReopenNewest();
  EXPECT_FALSE(tier.has_open_segment());
  ASSERT_TRUE(tier.OpenNextSegment());
  EXPECT_EQ(tier.open_segment(), SegmentIndex{1});
  EXPECT_EQ(tier.FinishGroup(1).generation, 42u);
}

TEST(NvmeTier, MarksAndVersionsOfRestoredSegmentsGoOn) {
  NvmeTier tier(kGeometry, 7);
  NvmeTier::Restored restored = Found(SegmentIndex{1}, 3, 5);
  restored.durable_pages = 5;
  restored.manifest_version = 6;
  restored.dead.assign(kGeometry.stretches(), false);
  restored.reversed.assign(kGeometry.stretches(), false);
  restored.dead[0] = true;
  restored.reversed[1] = true;
  tier.Restore(restored);
  tier.RestoreFree(SegmentIndex{3}, /*generation=*/2, /*manifest_version=*/8);
  tier.RestoreGeneration(9);
  tier.MarkDead(PageIndex{Number(Start(SegmentIndex{1})) + 6});
  tier.RequestManifest();
  const auto none = [](SegmentIndex) { return 0u; };
  const std::optional<UpkeepTask> task = tier.NextUpkeep(none);
  ASSERT_TRUE(task.has_value());
  EXPECT_EQ(task->number, 7u);
  const ManifestRecord record = tier.manifest_record(SegmentIndex{1});
  EXPECT_EQ(record.epoch, 7u);
  EXPECT_EQ(record.version, 7u);
  EXPECT_EQ(record.segment_generation, 3u);
  EXPECT_EQ(record.durable_pages, 5u);
  EXPECT_FALSE(record.freed);
  EXPECT_EQ(record.dead, (std::vector<bool>{true, false, false, true, false, false}));
  EXPECT_EQ(record.reversed, (std::vector<bool>{false, true, false, false, false, false}));
  EXPECT_EQ(tier.manifest_record(SegmentIndex{3}).version, 8u);
}

TEST(NvmeTier, MarksBehindTheEndOfARestoredSegmentAreForgotten) {
  NvmeGeometry geometry = kGeometry;
  geometry.pages_per_block = 4;
  for (const uint32_t used_pages : {0u, 5u, 9u, 10u}) {
    NvmeTier tier(geometry, 1);
    NvmeTier::Restored restored = Found(SegmentIndex{1}, 3, used_pages);
    restored.dead.assign(geometry.stretches(), true);
    restored.reversed.assign(geometry.stretches(), true);
    tier.Restore(restored);
    const ManifestRecord record = tier.manifest_record(SegmentIndex{1});
    // The next block comes behind a header.
    for (uint32_t i = (used_pages + geometry.header_pages) / 4; i < geometry.stretches(); ++i) {
      EXPECT_FALSE(record.dead[i] || record.reversed[i]) << i << " of " << used_pages;
    }
    for (uint32_t i = 0; i < used_pages / 4; ++i) {
      EXPECT_TRUE(record.dead[i] && record.reversed[i]) << i << " of " << used_pages;
    }
  }
}

// The headers of the groups of two blocks that a segment starts with, and where those lie.
struct Headers {
  Headers(SegmentIndex segment, uint64_t generation, uint32_t groups) {
    for (uint32_t i = 0; i < groups; ++i) {
      bases.push_back(PageIndex{Number(Start(segment)) + i * kGeometry.group_pages(2)});
      bytes.emplace_back(kPageBytes);
      GroupRecord none;
      none.valid = false;
      EncodeGroupHeader(kGeometry,
                        {.epoch = 1,
                         .generation = generation + i,
                         .segment_generation = generation,
                         .base_page = Number(bases.back()),
                         .block_count = 2},
                        {none, none}, absl::MakeSpan(bytes.back()));
    }
    for (const std::vector<std::byte>& header : bytes) {
      spans.push_back(absl::MakeConstSpan(header).first(GroupHeaderBytes(kGeometry, 2)));
    }
  }

  std::vector<PageIndex> bases;
  std::vector<std::vector<std::byte>> bytes;
  std::vector<absl::Span<const std::byte>> spans;
};

TEST(NvmeTier, TheNewestUnsealedSegmentGoesOnWhereItEndedAndOthersAreSealed) {
  NvmeTier tier(kGeometry, 1);
  const Headers older(SegmentIndex{2}, 3, 2);
  const Headers newer(SegmentIndex{1}, 6, 1);
  tier.Restore(Found(SegmentIndex{2}, 3, 10));
  ASSERT_TRUE(tier.RestoreHeaders(SegmentIndex{2}, older.spans, older.bases));
  NvmeTier::Restored newest = Found(SegmentIndex{1}, 6, 5);
  newest.last_stamp = 77;
  tier.Restore(newest);
  ASSERT_TRUE(tier.RestoreHeaders(SegmentIndex{1}, newer.spans, newer.bases));
  tier.RestoreGeneration(10);
  tier.ReopenNewest();
  EXPECT_EQ(tier.open_segment(), SegmentIndex{1});
  EXPECT_EQ(Number(tier.append_point()), Number(Start(SegmentIndex{1})) + 5);
  EXPECT_EQ(tier.phase(SegmentIndex{2}), SegmentPhase::kSealSync);
  // What was read may have been in the disk's cache alone, so a sync comes before the footer.
  const auto all = [&](SegmentIndex segment) { return tier.used_pages(segment); };
  const std::optional<UpkeepTask> sync = tier.NextUpkeep(all);
  ASSERT_TRUE(sync.has_value());
  EXPECT_EQ(sync->kind, UpkeepTask::Kind::kSync);
  tier.UpkeepDone(*sync);
  const std::optional<UpkeepTask> footer = tier.NextUpkeep(all);
  ASSERT_TRUE(footer.has_value());
  EXPECT_EQ(footer->kind, UpkeepTask::Kind::kFooter);
  EXPECT_EQ(footer->segment, SegmentIndex{2});
  std::vector<std::byte> page(kPageBytes);
  EncodeFooter(kGeometry, tier.footer_header(SegmentIndex{2}), tier.footer_headers(SegmentIndex{2}),
               absl::MakeSpan(page));
  const std::optional<FooterView> view = DecodeFooter(kGeometry, 1, SegmentIndex{2}, page);
  ASSERT_TRUE(view.has_value());
  EXPECT_EQ(view->footer.segment_generation, 3u);
  EXPECT_EQ(view->groups.size(), 2u);
  tier.UpkeepDone(*footer);
  EXPECT_EQ(tier.phase(SegmentIndex{2}), SegmentPhase::kSealed);
}

TEST(NvmeTier, WithoutRoomForItsHeadersASegmentStaysAsItIs) {
  NvmeGeometry geometry = kGeometry;
  geometry.segment_count = 16;
  NvmeTier tier(geometry, 1);
  uint32_t kept = 0;
  for (uint32_t i = 0; i < geometry.segment_count; ++i) {
    tier.Restore(Found(SegmentIndex{i}, i + 1, 5));
    const bool room = tier.RestoreHeaders(SegmentIndex{i}, {}, {});
    if (room) ++kept;
    EXPECT_EQ(tier.phase(SegmentIndex{i}), room ? SegmentPhase::kSealSync : SegmentPhase::kSealed);
  }
  EXPECT_GT(kept, 0u);
  EXPECT_LT(kept, geometry.segment_count);
  Settle(tier);
  for (uint32_t i = 0; i < geometry.segment_count; ++i) {
    EXPECT_EQ(tier.phase(SegmentIndex{i}), SegmentPhase::kSealed);
  }
}

TEST(NvmeTierDeathTest, AbortsOnMisuse) {
  NvmeTier tier(kGeometry, 1);
  EXPECT_DEATH(tier.append_point(), "open_");
  EXPECT_DEATH(tier.FinishGroup(1), "open_pages_left");
  EXPECT_DEATH(tier.KeepHeader(Start(SegmentIndex{0}), {}), "draft");
  EXPECT_DEATH(tier.footer_header(SegmentIndex{0}), "draft");
  ASSERT_TRUE(tier.OpenNextSegment());
  EXPECT_DEATH(tier.OpenNextSegment(), "open_");
  EXPECT_DEATH(tier.FinishGroup(6), "open_pages_left");
  EXPECT_DEATH(tier.KeepHeader(Start(SegmentIndex{0}), {}), "headers");
  const PageIndex page = FirstBlock(SegmentIndex{0});
  EXPECT_DEATH(tier.Remove(page, false), "kNoEntry");
  tier.Place(page, EntryIndex{0}, false);
  EXPECT_DEATH(tier.Place(page, EntryIndex{1}, false), "kNoEntry");
  EXPECT_DEATH(tier.Retire(SegmentIndex{0}), "kSealed");
  EXPECT_DEATH(tier.Restore(Found(SegmentIndex{1}, 1, 5)), "open_");
}

}  // namespace
}  // namespace terrace
