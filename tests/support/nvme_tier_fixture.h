#ifndef TERRACE_TESTS_SUPPORT_NVME_TIER_FIXTURE_H_
#define TERRACE_TESTS_SUPPORT_NVME_TIER_FIXTURE_H_

#include <cstdint>
#include <optional>

#include "gtest/gtest.h"
#include "tiers/nvme_tier.h"

namespace terrace {

// An NvmeTier of which a test appends the groups and carries out the upkeep.
class NvmeTierFixture : public testing::Test {
 protected:
  using Kind = UpkeepTask::Kind;

  // Segments of 12 pages of data: two groups of a header page and two blocks of two pages each.
  static constexpr NvmeGeometry kGeometry = {.pages_per_block = 2,
                                             .segment_pages = 13,
                                             .segment_count = 4,
                                             .group_blocks = 2,
                                             .header_pages = 1,
                                             .footer_pages = 1,
                                             .manifest_pages = 1};

  static PageIndex Start(SegmentIndex segment) {
    return PageIndex{static_cast<uint32_t>(kGeometry.SegmentPage(segment))};
  }
  // Of the first block of the group at `at`.
  static PageIndex Block(SegmentIndex segment, uint32_t at = 0) {
    return PageIndex{static_cast<uint32_t>(Start(segment)) + at + 1};
  }

  // Appends a group of one block to the open segment, or a new one; it is in flight.
  SegmentIndex Append() {
    EXPECT_TRUE(tier_.has_open_segment() || tier_.OpenNextSegment());
    const PageIndex base = tier_.append_point();
    tier_.AddWriter(base);
    tier_.Place(PageIndex{static_cast<uint32_t>(base) + 1}, EntryIndex{next_entry_++}, false);
    tier_.FinishGroup(1);
    return tier_.SegmentAt(base);
  }
  void GroupWritten(SegmentIndex segment) { tier_.RemoveWriter(Start(segment)); }

  std::optional<UpkeepTask> Next() {
    return tier_.NextUpkeep([this](SegmentIndex segment) {
      return written_pages_ ? *written_pages_ : tier_.used_pages(segment);
    });
  }
  // The next task, which must be of this kind.
  UpkeepTask Next(Kind kind) {
    const std::optional<UpkeepTask> task = Next();
    EXPECT_TRUE(task.has_value());
    if (!task) return {};
    EXPECT_EQ(task->kind, kind);
    return *task;
  }
  void Do(Kind kind) { tier_.UpkeepDone(Next(kind)); }
  void Settle() {
    while (const std::optional<UpkeepTask> task = Next()) tier_.UpkeepDone(*task);
  }
  SegmentIndex SealOne() {
    const SegmentIndex segment = Append();
    GroupWritten(segment);
    tier_.SealOpenSegment();
    Settle();
    EXPECT_EQ(tier_.phase(segment), SegmentPhase::kSealed);
    return segment;
  }
  // Uses up the free segments in front of the one that was freed first.
  void BringToFront(SegmentIndex segment) {
    for (;;) {
      SegmentIndex front{};
      bool first = true;
      tier_.VisitFree([&](SegmentIndex at) {
        if (first) front = at;
        first = false;
      });
      if (front == segment) return;
      ASSERT_TRUE(tier_.OpenNextSegment());
      tier_.SealOpenSegment();
    }
  }

  NvmeTier tier_{kGeometry, 1};
  std::optional<uint32_t> written_pages_;  // what NextUpkeep is told; else all that was appended
  uint32_t next_entry_ = 0;
};

}  // namespace terrace

#endif  // TERRACE_TESTS_SUPPORT_NVME_TIER_FIXTURE_H_
