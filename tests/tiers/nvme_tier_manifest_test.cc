// The records that say what happened to a segment after its groups were written.

#include <optional>
#include <vector>

#include "gtest/gtest.h"
#include "tests/support/nvme_tier_fixture.h"
#include "tiers/nvme_tier.h"

namespace terrace {
namespace {

using NvmeTierManifest = NvmeTierFixture;

TEST_F(NvmeTierManifest, MarksAreWrittenWhenTheManifestIsAskedFor) {
  const SegmentIndex segment = SealOne();
  tier_.MarkDead(Block(segment));
  tier_.ReverseRetention(Block(segment, 5));
  EXPECT_EQ(Next(), std::nullopt);
  EXPECT_FALSE(tier_.manifest_pending());
  tier_.RequestManifest();
  EXPECT_TRUE(tier_.manifest_pending());
  const UpkeepTask task = Next(Kind::kManifest);
  EXPECT_EQ(task.segment, segment);
  EXPECT_EQ(task.number, 1u);
  const ManifestRecord record = tier_.manifest_record(segment);
  EXPECT_EQ(record.version, 1u);
  EXPECT_EQ(record.segment_generation, 1u);
  EXPECT_EQ(record.durable_pages, 3u);
  EXPECT_EQ(record.dead, (std::vector<bool>{true, false, false, false, false, false}));
  EXPECT_EQ(record.reversed, (std::vector<bool>{false, false, false, true, false, false}));
  EXPECT_TRUE(tier_.manifest_pending());
  tier_.UpkeepDone(task);
  EXPECT_FALSE(tier_.manifest_pending());
  tier_.RequestManifest();  // nothing changed since
  EXPECT_FALSE(tier_.manifest_pending());
  tier_.ReverseRetention(Block(segment, 5));
  tier_.RequestManifest();
  EXPECT_EQ(Next(Kind::kManifest).number, 2u);
  EXPECT_FALSE(tier_.manifest_record(segment).reversed[3]);
}

TEST_F(NvmeTierManifest, MarksThatComeWhileARecordIsInFlightAreWrittenAgain) {
  const SegmentIndex segment = SealOne();
  tier_.MarkDead(Block(segment));
  tier_.RequestManifest();
  const UpkeepTask first = Next(Kind::kManifest);
  tier_.MarkDead(Block(segment, 5));
  tier_.RequestManifest();
  EXPECT_EQ(Next(), std::nullopt);  // two copies in flight could leave neither
  tier_.UpkeepDone(first);
  EXPECT_TRUE(tier_.manifest_pending());
  const UpkeepTask second = Next(Kind::kManifest);
  EXPECT_EQ(second.number, first.number + 1);
  const ManifestRecord record = tier_.manifest_record(segment);
  EXPECT_TRUE(record.dead[0] && record.dead[3]);
  tier_.UpkeepDone(second);
  EXPECT_FALSE(tier_.manifest_pending());
}

TEST(NvmeTierLargeManifest, ARecordThatMayTearWaitsUntilTheOtherCopyIsDurable) {
  constexpr size_t kBlock = 4 << 10;
  NvmeTier tier(*PlanNvmeGeometry(uint64_t{256} << 20, kBlock), 1);
  ASSERT_GT(ManifestRecordBytes(tier.geometry().stretches()), 512u);
  const auto next = [&tier] {
    const auto task = tier.NextUpkeep([](SegmentIndex) { return 0u; });
    EXPECT_TRUE(task.has_value());
    return task.value_or(UpkeepTask());
  };
  ASSERT_TRUE(tier.OpenNextSegment());
  const PageIndex first = tier.append_point();
  for (uint32_t i = 0; i < 3; ++i) {
    tier.MarkDead(PageIndex{static_cast<uint32_t>(first) + 1 + i});
    tier.RequestManifest();
    if (i > 0) {
      const UpkeepTask sync = next();
      ASSERT_EQ(sync.kind, UpkeepTask::Kind::kSync);
      EXPECT_EQ(tier.NextUpkeep([](SegmentIndex) { return 0u; }), std::nullopt);
      tier.UpkeepDone(sync);
    }
    const UpkeepTask record = next();
    ASSERT_EQ(record.kind, UpkeepTask::Kind::kManifest);
    EXPECT_EQ(record.number, i + 1);
    tier.UpkeepDone(record);
  }
  EXPECT_FALSE(tier.manifest_pending());
}

TEST_F(NvmeTierManifest, ASegmentThatFallsFreeWhileItsMarksAreInFlightIsRecordedAsFreeAfterwards) {
  const SegmentIndex segment = SealOne();
  tier_.MarkDead(Block(segment));
  tier_.Remove(Block(segment), false);
  tier_.RequestManifest();
  const UpkeepTask marks = Next(Kind::kManifest);
  EXPECT_FALSE(tier_.manifest_record(segment).freed);
  tier_.Retire(segment);
  tier_.UpkeepDone(marks);
  EXPECT_EQ(tier_.phase(segment), SegmentPhase::kFreeing);
  Do(Kind::kManifest);
  EXPECT_TRUE(tier_.manifest_record(segment).freed);
  EXPECT_EQ(tier_.phase(segment), SegmentPhase::kFreeSync);
}

TEST_F(NvmeTierManifest, AMarkSaysHowMuchOfTheOpenSegmentIsDurable) {
  const SegmentIndex segment = Append();
  tier_.RequestMark();
  EXPECT_EQ(Next(), std::nullopt);  // nothing is durable
  GroupWritten(segment);
  Append();
  written_pages_ = 3;  // the second group is not written
  tier_.RequestSync();
  const UpkeepTask sync = Next(Kind::kSync);
  GroupWritten(segment);
  written_pages_.reset();
  tier_.UpkeepDone(sync);
  tier_.RequestMark();
  const UpkeepTask mark = Next(Kind::kManifest);
  EXPECT_EQ(tier_.manifest_record(segment).durable_pages, 3u);
  tier_.UpkeepDone(mark);
  tier_.RequestMark();  // nothing has changed
  EXPECT_FALSE(tier_.manifest_pending());
  tier_.RequestSync();
  Do(Kind::kSync);
  tier_.RequestMark();
  Do(Kind::kManifest);
  EXPECT_EQ(tier_.manifest_record(segment).durable_pages, 6u);
}

TEST_F(NvmeTierManifest, WhatARecordSaysIsWrittenToBothCopiesOnRequest) {
  const SegmentIndex segment = SealOne();
  tier_.MarkDead(Block(segment));
  tier_.RequestManifest();
  const UpkeepTask first = Next(Kind::kManifest);
  tier_.UpkeepDone(first);
  tier_.RequestCopies();
  const UpkeepTask second = Next(Kind::kManifest);
  EXPECT_EQ(second.segment, segment);
  EXPECT_NE(second.number % kManifestCopies, first.number % kManifestCopies);
  tier_.UpkeepDone(second);
  tier_.RequestCopies();
  EXPECT_FALSE(tier_.manifest_pending());  // the last record says nothing new
  tier_.ReverseRetention(Block(segment));
  tier_.RequestManifest();
  Do(Kind::kManifest);
  tier_.RequestCopies();
  EXPECT_TRUE(tier_.manifest_pending());
}

TEST_F(NvmeTierManifest, OneSyncAtATimeIsInFlight) {
  const uint64_t first = tier_.RequestSync();
  const UpkeepTask sync = Next(Kind::kSync);
  const uint64_t second = tier_.RequestSync();
  EXPECT_GT(second, first);  // the one in flight may have missed something
  EXPECT_EQ(Next(), std::nullopt);
  tier_.UpkeepDone(sync);
  EXPECT_TRUE(tier_.Synced(first));
  EXPECT_FALSE(tier_.Synced(second));
  Do(Kind::kSync);
  EXPECT_TRUE(tier_.Synced(second));
}

}  // namespace
}  // namespace terrace
