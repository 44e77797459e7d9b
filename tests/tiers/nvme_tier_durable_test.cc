// What the log's map takes for durable.

#include <optional>

#include "gtest/gtest.h"
#include "tests/support/tier_fixture.h"
#include "tiers/nvme_tier.h"

namespace terrace {
namespace {

class NvmeTierDurable : public testing::Test {
 protected:
  static constexpr size_t kBlock = 16 << 10;

  UpkeepTask Next() {
    const std::optional<UpkeepTask> task =
        tier_.NextUpkeep([this](SegmentIndex segment) { return tier_.used_pages(segment); });
    EXPECT_TRUE(task.has_value());
    return task.value_or(UpkeepTask());
  }
  UpkeepTask StartSync() {
    tier_.RequestSync();
    const UpkeepTask sync = Next();
    EXPECT_EQ(sync.kind, UpkeepTask::Kind::kSync);
    return sync;
  }
  // Opens a segment, fills it with one group and seals it; its footer is due.
  SegmentIndex Fill() {
    EXPECT_TRUE(tier_.OpenNextSegment());
    const SegmentIndex segment = *tier_.open_segment();
    tier_.FinishGroup(1);
    tier_.SealOpenSegment();
    tier_.UpkeepDone(StartSync());
    EXPECT_EQ(tier_.phase(segment), SegmentPhase::kFooter);
    return segment;
  }

  NvmeTier tier_{*PlanNvmeGeometry(TinyNvmeBytes(kBlock, 2), kBlock), 1};
};

TEST_F(NvmeTierDurable, NothingOfAnEarlierUseCountsForTheNextOne) {
  const SegmentIndex segment = Fill();
  const UpkeepTask footer = Next();
  const UpkeepTask sync = StartSync();
  tier_.UpkeepDone(footer);
  tier_.UpkeepDone(sync);
  tier_.Retire(segment);
  tier_.UpkeepDone(Next());  // the record that it is free
  tier_.UpkeepDone(StartSync());
  ASSERT_EQ(tier_.phase(segment), SegmentPhase::kFree);
  Fill();
  tier_.UpkeepDone(Next());

  // A sync that started before a segment was opened says nothing of it.
  const UpkeepTask earlier = StartSync();
  ASSERT_TRUE(tier_.OpenNextSegment());
  ASSERT_EQ(tier_.open_segment(), segment);
  tier_.FinishGroup(1);
  tier_.UpkeepDone(earlier);
  tier_.RequestMark();
  EXPECT_FALSE(tier_.manifest_pending());
  tier_.UpkeepDone(StartSync());
  tier_.RequestMark();
  EXPECT_TRUE(tier_.manifest_pending());
}

}  // namespace
}  // namespace terrace
