// The phases of segments, and what is written and synced between them.

#include <optional>
#include <vector>

#include "gtest/gtest.h"
#include "tests/support/nvme_tier_fixture.h"
#include "tiers/nvme_tier.h"

namespace terrace {
namespace {

using NvmeTierUpkeep = NvmeTierFixture;

// --- From open to sealed ---

TEST_F(NvmeTierUpkeep, AFullSegmentIsWrittenThenSyncedThenGetsItsFooter) {
  const SegmentIndex segment = Append();
  EXPECT_EQ(tier_.phase(segment), SegmentPhase::kOpen);
  tier_.SealOpenSegment();
  EXPECT_EQ(tier_.phase(segment), SegmentPhase::kWriting);
  EXPECT_EQ(Next(), std::nullopt);
  EXPECT_FALSE(tier_.upkeep_pending());
  GroupWritten(segment);
  EXPECT_EQ(tier_.phase(segment), SegmentPhase::kSealSync);
  EXPECT_TRUE(tier_.upkeep_pending());
  const UpkeepTask sync = Next(Kind::kSync);
  EXPECT_EQ(tier_.phase(segment), SegmentPhase::kSealSync);
  EXPECT_EQ(Next(), std::nullopt);
  tier_.UpkeepDone(sync);
  EXPECT_EQ(tier_.phase(segment), SegmentPhase::kFooter);
  const UpkeepTask footer = Next(Kind::kFooter);
  EXPECT_EQ(footer.segment, segment);
  EXPECT_EQ(tier_.phase(segment), SegmentPhase::kFooter);
  EXPECT_TRUE(tier_.upkeep_pending());
  tier_.UpkeepDone(footer);
  EXPECT_EQ(tier_.phase(segment), SegmentPhase::kSealed);
  EXPECT_FALSE(tier_.upkeep_pending());
}

TEST_F(NvmeTierUpkeep, ASyncThatStartedBeforeTheLastGroupWasWrittenDoesNotSealASegment) {
  const SegmentIndex segment = Append();
  tier_.SealOpenSegment();
  tier_.RequestSync();
  const UpkeepTask early = Next(Kind::kSync);
  GroupWritten(segment);
  tier_.UpkeepDone(early);
  EXPECT_EQ(tier_.phase(segment), SegmentPhase::kSealSync);
  Do(Kind::kSync);
  EXPECT_EQ(tier_.phase(segment), SegmentPhase::kFooter);
}

TEST_F(NvmeTierUpkeep, ASegmentWaitsForTheLastOfItsGroups) {
  const SegmentIndex segment = Append();
  EXPECT_EQ(Append(), segment);
  tier_.SealOpenSegment();
  GroupWritten(segment);
  EXPECT_EQ(tier_.phase(segment), SegmentPhase::kWriting);
  EXPECT_EQ(Next(), std::nullopt);
  GroupWritten(segment);
  EXPECT_EQ(tier_.phase(segment), SegmentPhase::kSealSync);
}

TEST_F(NvmeTierUpkeep, AFooterHoldsTheHeadersInTheOrderOfTheirPages) {
  const SegmentIndex segment = Append();
  Append();
  const uint32_t start = static_cast<uint32_t>(Start(segment));
  std::vector<std::byte> header(kPageBytes);
  for (const uint32_t at : {3, 0}) {  // they are encoded as they get ready
    GroupRecord none;
    none.valid = false;
    EncodeGroupHeader(kGeometry,
                      {.epoch = 1,
                       .generation = 1 + at / 3,
                       .segment_generation = 1,
                       .base_page = start + at,
                       .block_count = 1},
                      {none}, absl::MakeSpan(header));
    tier_.KeepHeader(PageIndex{start + at}, header);
    GroupWritten(segment);
  }
  tier_.SealOpenSegment();
  Do(Kind::kSync);
  const UpkeepTask task = Next(Kind::kFooter);
  std::vector<std::byte> page(kPageBytes);
  EncodeFooter(kGeometry, tier_.footer_header(task.segment), tier_.footer_headers(task.segment),
               absl::MakeSpan(page));
  const std::optional<FooterView> view = DecodeFooter(kGeometry, 1, segment, page);
  ASSERT_TRUE(view.has_value());
  EXPECT_EQ(view->footer.used_pages, 6u);
  ASSERT_EQ(view->groups.size(), 2u);
  EXPECT_EQ(view->groups[0].group().base_page, start);
  EXPECT_EQ(view->groups[1].group().base_page, start + 3);
}

TEST_F(NvmeTierUpkeep, AFooterIsPendingFromTheTimeASegmentIsFull) {
  const SegmentIndex segment = Append();
  EXPECT_FALSE(tier_.FooterPending(1));
  tier_.SealOpenSegment();
  EXPECT_TRUE(tier_.FooterPending(1));
  EXPECT_FALSE(tier_.FooterPending(0));  // which is older
  GroupWritten(segment);
  Do(Kind::kSync);
  EXPECT_TRUE(tier_.FooterPending(1));
  Do(Kind::kFooter);
  EXPECT_FALSE(tier_.FooterPending(1));
}

// --- From sealed to free ---

TEST_F(NvmeTierUpkeep, AFreedSegmentIsOpenedOnlyAfterASyncOfItsRecord) {
  const SegmentIndex segment = SealOne();
  tier_.Remove(Block(segment), false);
  tier_.Retire(segment);
  EXPECT_EQ(tier_.phase(segment), SegmentPhase::kFreeing);
  BringToFront(segment);
  EXPECT_FALSE(tier_.OpenNextSegment());
  const UpkeepTask record = Next(Kind::kManifest);
  EXPECT_EQ(record.segment, segment);
  EXPECT_TRUE(tier_.manifest_record(segment).freed);
  EXPECT_FALSE(tier_.OpenNextSegment());
  // A sync that starts before the record is written says nothing about it.
  tier_.RequestSync();
  const UpkeepTask early = Next(Kind::kSync);
  tier_.UpkeepDone(record);
  EXPECT_EQ(tier_.phase(segment), SegmentPhase::kFreeSync);
  EXPECT_FALSE(tier_.OpenNextSegment());
  tier_.UpkeepDone(early);
  EXPECT_EQ(tier_.phase(segment), SegmentPhase::kFreeSync);
  EXPECT_FALSE(tier_.OpenNextSegment());
  for (;;) {
    const std::optional<UpkeepTask> task = Next();
    ASSERT_TRUE(task.has_value());
    if (task->kind != Kind::kSync) {
      tier_.UpkeepDone(*task);
      continue;
    }
    EXPECT_FALSE(tier_.OpenNextSegment());
    tier_.UpkeepDone(*task);
    break;
  }
  EXPECT_EQ(tier_.phase(segment), SegmentPhase::kFree);
  ASSERT_TRUE(tier_.OpenNextSegment());
  EXPECT_EQ(tier_.open_segment(), segment);
}

TEST_F(NvmeTierUpkeep, NobodyIsInAHurryToSyncAFreedSegmentUntilItIsWanted) {
  const SegmentIndex segment = SealOne();
  tier_.Remove(Block(segment), false);
  tier_.Retire(segment);
  Do(Kind::kManifest);
  EXPECT_EQ(Next(), std::nullopt);
  EXPECT_EQ(tier_.phase(segment), SegmentPhase::kFreeSync);
  BringToFront(segment);
  Settle();
  EXPECT_EQ(tier_.phase(segment), SegmentPhase::kFree);
  EXPECT_TRUE(tier_.NextIsFree());
}

TEST_F(NvmeTierUpkeep, WhoeverWantsAFreedSegmentMakesTheSyncDue) {
  const SegmentIndex segment = SealOne();
  BringToFront(segment);  // uses up all others
  Settle();
  tier_.Remove(Block(segment), false);
  tier_.Retire(segment);
  Do(Kind::kManifest);
  EXPECT_EQ(Next(), std::nullopt);
  EXPECT_FALSE(tier_.NextIsFree());
  Do(Kind::kSync);
  EXPECT_TRUE(tier_.NextIsFree());
}

TEST_F(NvmeTierUpkeep, ADrainedSegmentWaitsForASyncOnBothSidesOfItsRecord) {
  const SegmentIndex segment = SealOne();
  tier_.Retire(segment);
  EXPECT_EQ(tier_.phase(segment), SegmentPhase::kDraining);
  EXPECT_EQ(Next(), std::nullopt);
  // The last block is in its new place, though that may be in the disk's cache alone.
  tier_.RequestSync();
  const UpkeepTask early = Next(Kind::kSync);
  tier_.Remove(Block(segment), false);
  EXPECT_EQ(tier_.phase(segment), SegmentPhase::kDrainSync);
  tier_.UpkeepDone(early);
  EXPECT_EQ(tier_.phase(segment), SegmentPhase::kDrainSync);
  const UpkeepTask sync = Next(Kind::kSync);
  EXPECT_EQ(Next(), std::nullopt);  // no record yet
  tier_.UpkeepDone(sync);
  EXPECT_EQ(tier_.phase(segment), SegmentPhase::kFreeing);
  const UpkeepTask record = Next(Kind::kManifest);
  EXPECT_TRUE(tier_.manifest_record(segment).freed);
  tier_.UpkeepDone(record);
  EXPECT_EQ(tier_.phase(segment), SegmentPhase::kFreeSync);
  tier_.RequestSync();
  Do(Kind::kSync);
  EXPECT_EQ(tier_.phase(segment), SegmentPhase::kFree);
}

TEST_F(NvmeTierUpkeep, ASegmentDrainsUntilItsLastBlockIsGone) {
  const SegmentIndex segment = Append();
  Append();
  GroupWritten(segment);
  GroupWritten(segment);
  tier_.SealOpenSegment();
  Settle();
  tier_.Retire(segment);
  tier_.Remove(Block(segment, 0), false);
  EXPECT_EQ(tier_.phase(segment), SegmentPhase::kDraining);
  EXPECT_EQ(Next(), std::nullopt);
  tier_.Remove(Block(segment, 3), false);
  EXPECT_EQ(tier_.phase(segment), SegmentPhase::kDrainSync);
}

TEST_F(NvmeTierUpkeep, OneSyncServesAllThatWaitForIt) {
  const SegmentIndex first = SealOne();
  const SegmentIndex second = SealOne();
  tier_.Retire(first);
  tier_.Remove(Block(first), false);
  const SegmentIndex third = Append();
  tier_.SealOpenSegment();
  GroupWritten(third);
  tier_.Retire(second);
  tier_.Remove(Block(second), false);
  const uint64_t asked = tier_.RequestSync();
  const UpkeepTask sync = Next(Kind::kSync);
  EXPECT_EQ(sync.number, asked);
  EXPECT_FALSE(tier_.Synced(asked));
  tier_.UpkeepDone(sync);
  EXPECT_TRUE(tier_.Synced(asked));
  EXPECT_EQ(tier_.phase(first), SegmentPhase::kFreeing);
  EXPECT_EQ(tier_.phase(second), SegmentPhase::kDrained);
  EXPECT_EQ(tier_.phase(third), SegmentPhase::kFooter);
}

TEST_F(NvmeTierUpkeep, SegmentsAreRecordedAsFreeInTheOrderOfTheirEviction) {
  const SegmentIndex first = SealOne();
  const SegmentIndex second = SealOne();
  tier_.Remove(Block(second), false);
  tier_.Retire(first);
  tier_.Retire(second);
  EXPECT_EQ(tier_.phase(second), SegmentPhase::kDrained);
  EXPECT_EQ(Next(), std::nullopt);
  tier_.Remove(Block(first), false);
  Do(Kind::kSync);
  Do(Kind::kManifest);
  EXPECT_EQ(tier_.phase(first), SegmentPhase::kFreeSync);
  EXPECT_EQ(tier_.phase(second), SegmentPhase::kDrained);
  Do(Kind::kSync);  // nobody else asked for it
  EXPECT_EQ(tier_.phase(first), SegmentPhase::kFree);
  EXPECT_EQ(tier_.phase(second), SegmentPhase::kFreeing);
  EXPECT_EQ(Next(Kind::kManifest).segment, second);
}

TEST_F(NvmeTierUpkeep, ANewUseOfASegmentStartsWithoutMarks) {
  const SegmentIndex segment = SealOne();
  tier_.MarkDead(Block(segment));
  tier_.Remove(Block(segment), false);
  tier_.Retire(segment);
  Settle();
  BringToFront(segment);
  tier_.NextIsFree();
  Settle();
  ASSERT_TRUE(tier_.OpenNextSegment());
  ASSERT_EQ(tier_.open_segment(), segment);
  Append();
  tier_.ReverseRetention(Block(segment));
  tier_.RequestManifest();
  const UpkeepTask task = Next(Kind::kManifest);
  const ManifestRecord record = tier_.manifest_record(task.segment);
  EXPECT_EQ(record.segment_generation, tier_.manifest_record(segment).newest_generation);
  EXPECT_FALSE(record.freed);
  EXPECT_FALSE(record.dead[0]);
  EXPECT_TRUE(record.reversed[0]);
}

}  // namespace
}  // namespace terrace
