#include "tiers/nvme_survey.h"

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <memory>
#include <vector>

#include "gtest/gtest.h"
#include "tests/support/hand_written_tier.h"

namespace terrace {
namespace {

using Use = SegmentSurvey::Use;

constexpr uint64_t kEpoch = 99;
// Segments of three groups: a header page and two blocks of two pages each; then a footer page.
constexpr NvmeGeometry kGeometry = {.pages_per_block = 2,
                                    .segment_pages = 16,
                                    .segment_count = 4,
                                    .group_blocks = 2,
                                    .header_pages = 1,
                                    .footer_pages = 1,
                                    .manifest_pages = 1};

void Erase(absl::Span<std::byte> bytes) { std::fill(bytes.begin(), bytes.end(), std::byte{}); }
void Damage(absl::Span<std::byte> bytes) { bytes[30] ^= std::byte{4}; }

class NvmeSurveyTest : public testing::Test {
 protected:
  // Group `index` of a use of segment 1, of two blocks.
  static HandGroup Group(uint64_t use, uint32_t index) {
    return {.segment = 1,
            .at = index * 5,
            .generation = use + index,
            .use = use,
            .blocks = {{.number = use * 100 + index * 10}, {.number = use * 100 + index * 10 + 1}}};
  }
  absl::StatusOr<SegmentWalk> Walk() {
    NvmeReader reader = tier_.Reader();
    return WalkSegment(reader, kGeometry, kEpoch, tier_.SurveyOf(1));
  }

  HandWrittenTier tier_{kGeometry, kEpoch};
};

// --- What the records of a segment say together ---

TEST_F(NvmeSurveyTest, ABlankSegmentIsFree) {
  const SegmentSurvey survey = tier_.SurveyOf(1);
  EXPECT_EQ(survey.use, Use::kFree);
  EXPECT_EQ(survey.segment, SegmentIndex{1});
  EXPECT_EQ(survey.generation, 0u);
  EXPECT_EQ(survey.newest_generation, 0u);
  EXPECT_EQ(survey.damaged_copies, 0u);
}

TEST_F(NvmeSurveyTest, AGroupAtItsStartMakesASegmentUnsealed) {
  tier_.Write(Group(7, 0));
  const SegmentSurvey survey = tier_.SurveyOf(1);
  EXPECT_EQ(survey.use, Use::kUnsealed);
  EXPECT_EQ(survey.generation, 7u);
  EXPECT_EQ(survey.durable_pages, 0u);
}

TEST_F(NvmeSurveyTest, AGroupThatWasMovedThereDoesNot) {
  tier_.Write(Group(7, 1));
  const absl::Span<const std::byte> moved = tier_.Pages(tier_.Start(1) + 5, 1);
  std::copy(moved.begin(), moved.end(), tier_.Pages(tier_.Start(1), 1).begin());
  EXPECT_EQ(tier_.SurveyOf(1).use, Use::kFree);
}

TEST_F(NvmeSurveyTest, AFooterMakesItSealedWhateverBecameOfTheHeaders) {
  tier_.Seal({Group(7, 0), Group(7, 1)});
  Erase(tier_.Pages(tier_.Start(1), kGeometry.data_pages()));
  const SegmentSurvey survey = tier_.SurveyOf(1);
  EXPECT_EQ(survey.use, Use::kSealed);
  EXPECT_EQ(survey.generation, 7u);
  EXPECT_EQ(survey.newest_generation, 8u);
  EXPECT_EQ(survey.durable_pages, 10u);
}

TEST_F(NvmeSurveyTest, ADamagedFooterLeavesItUnsealed) {
  tier_.Seal({Group(7, 0), Group(7, 1)});
  Damage(tier_.Footer(1));
  EXPECT_EQ(tier_.SurveyOf(1).use, Use::kUnsealed);
}

TEST_F(NvmeSurveyTest, TheFooterOfAnOlderUseDoesNotCount) {
  tier_.Seal({Group(7, 0), Group(7, 1), Group(7, 2)});
  tier_.Write(Group(20, 0));
  const SegmentSurvey survey = tier_.SurveyOf(1);
  EXPECT_EQ(survey.use, Use::kUnsealed);
  EXPECT_EQ(survey.generation, 20u);
  EXPECT_EQ(survey.durable_pages, 0u);
}

TEST_F(NvmeSurveyTest, TheManifestSaysHowMuchOfItsUseIsDurable) {
  tier_.Write(Group(7, 0));
  ManifestRecord record = tier_.Record(1, /*use=*/7, /*version=*/3);
  record.durable_pages = 5;
  tier_.WriteManifest(record, 1);
  EXPECT_EQ(tier_.SurveyOf(1).durable_pages, 5u);
  tier_.Write(Group(20, 0));
  EXPECT_EQ(tier_.SurveyOf(1).durable_pages, 0u);
}

TEST_F(NvmeSurveyTest, AUseThatWasFreedHoldsNothingAndANewerOneDoes) {
  tier_.Seal({Group(7, 0), Group(7, 1)});
  ManifestRecord record = tier_.Record(1, /*use=*/7, /*version=*/3);
  record.freed = true;
  tier_.WriteManifest(record, 1);
  const SegmentSurvey freed = tier_.SurveyOf(1);
  EXPECT_EQ(freed.use, Use::kFree);
  EXPECT_EQ(freed.generation, 7u);
  EXPECT_EQ(freed.newest_generation, record.newest_generation);
  EXPECT_EQ(freed.manifest.version, 3u);
  tier_.Write(Group(20, 0));
  EXPECT_EQ(tier_.SurveyOf(1).use, Use::kUnsealed);
  EXPECT_EQ(tier_.SurveyOf(1).generation, 20u);
}

TEST_F(NvmeSurveyTest, AUseThatOnlyTheManifestKnowsIsNewerThanAnyGroupThatIsLeft) {
  tier_.Seal({Group(7, 0), Group(7, 1)});
  tier_.WriteManifest(tier_.Record(1, /*use=*/20, /*version=*/3), 1);
  const SegmentSurvey survey = tier_.SurveyOf(1);
  EXPECT_EQ(survey.use, Use::kUnsealed);
  EXPECT_EQ(survey.generation, 20u);
  const absl::StatusOr<SegmentWalk> walk = Walk();
  ASSERT_TRUE(walk.ok()) << walk.status();
  EXPECT_TRUE(walk->groups.empty());
}

TEST_F(NvmeSurveyTest, TheNewerOfTwoManifestCopiesCountsAndTheOtherStandsInForIt) {
  for (const uint32_t newer : {0, 1}) {
    tier_.WriteManifest(tier_.Record(1, /*use=*/7, /*version=*/4), 1 - newer);
    tier_.WriteManifest(tier_.Record(1, /*use=*/7, /*version=*/5), newer);
    EXPECT_EQ(tier_.SurveyOf(1).manifest.version, 5u);
    EXPECT_EQ(tier_.SurveyOf(1).damaged_copies, 0u);
    Damage(tier_.Manifest(1, newer));
    EXPECT_EQ(tier_.SurveyOf(1).manifest.version, 4u);
    EXPECT_EQ(tier_.SurveyOf(1).damaged_copies, 1u);
    Erase(tier_.Manifest(1, newer));
    EXPECT_EQ(tier_.SurveyOf(1).manifest.version, 4u);
    EXPECT_EQ(tier_.SurveyOf(1).damaged_copies, 0u);
  }
}

TEST_F(NvmeSurveyTest, MarksCountForTheUseTheySpeakOf) {
  const HandGroup group = Group(7, 0);
  tier_.Write(group);
  ManifestRecord record = tier_.Record(1, /*use=*/7, /*version=*/1);
  const uint64_t first = tier_.Start(1) + 1;
  const uint64_t second = first + 2;
  record.dead[0] = true;
  record.reversed[1] = true;
  tier_.WriteManifest(record, 0);
  GroupRecord cached;
  GroupRecord owned;
  owned.retention = Retention::kOwned;
  const SegmentSurvey survey = tier_.SurveyOf(1);
  const GroupHeader header = {.generation = 7};
  EXPECT_TRUE(survey.Dead(kGeometry, header, first));
  EXPECT_FALSE(survey.Dead(kGeometry, header, second));
  EXPECT_EQ(survey.RetentionOf(kGeometry, header, first, owned), Retention::kOwned);
  EXPECT_EQ(survey.RetentionOf(kGeometry, header, second, owned), Retention::kCached);
  EXPECT_EQ(survey.RetentionOf(kGeometry, header, second, cached), Retention::kOwned);
  // A group that came after the record lies where one was lost.
  const GroupHeader later = {.generation = record.newest_generation + 1};
  EXPECT_FALSE(survey.Dead(kGeometry, later, first));
  EXPECT_EQ(survey.RetentionOf(kGeometry, later, second, cached), Retention::kCached);
  tier_.Write(Group(20, 0));
  const SegmentSurvey newer = tier_.SurveyOf(1);
  EXPECT_FALSE(newer.Dead(kGeometry, header, first));
  EXPECT_EQ(newer.RetentionOf(kGeometry, header, second, cached), Retention::kCached);
}

TEST_F(NvmeSurveyTest, WhatCannotBeReadIsMissingAndOfTheManifestDamaged) {
  tier_.Seal({Group(7, 0)});
  SegmentBytes bytes;
  EXPECT_EQ(Survey(kGeometry, kEpoch, SegmentIndex{1}, bytes).use, Use::kFree);
  EXPECT_EQ(Survey(kGeometry, kEpoch, SegmentIndex{1}, bytes).damaged_copies, kManifestCopies);
  bytes.header = tier_.Pages(tier_.Start(1), 1);
  EXPECT_EQ(Survey(kGeometry, kEpoch, SegmentIndex{1}, bytes).use, Use::kUnsealed);
  bytes.footer = tier_.Footer(1);
  EXPECT_EQ(Survey(kGeometry, kEpoch, SegmentIndex{1}, bytes).use, Use::kSealed);
}

// --- Walks ---

TEST_F(NvmeSurveyTest, AWalkFindsEveryGroupAndVerifiesThoseThatMayBeTorn) {
  for (uint32_t i = 0; i < 3; ++i) tier_.Write(Group(7, i));
  ManifestRecord record = tier_.Record(1, /*use=*/7, /*version=*/1);
  record.durable_pages = 5;
  tier_.WriteManifest(record, 1);
  const absl::StatusOr<SegmentWalk> walk = Walk();
  ASSERT_TRUE(walk.ok()) << walk.status();
  ASSERT_EQ(walk->groups.size(), 3u);
  for (uint32_t i = 0; i < 3; ++i) {
    EXPECT_EQ(walk->groups[i].page, tier_.Start(1) + 5 * i);
    EXPECT_EQ(absl::MakeConstSpan(walk->groups[i].header), tier_.Header(Group(7, i)));
  }
  EXPECT_EQ(walk->used_pages, 15u);
  EXPECT_EQ(walk->verified_bytes, 2 * 4 * kPageBytes);
  EXPECT_EQ(walk->torn_groups + walk->damaged_pages, 0u);
}

TEST_F(NvmeSurveyTest, ATornGroupThatWasNotPromisedEndsTheWalk) {
  for (uint32_t i = 0; i < 3; ++i) tier_.Write(Group(7, i));
  tier_.Block(Group(7, 1), 1)[kPageBytes + 5] ^= std::byte{1};
  const absl::StatusOr<SegmentWalk> walk = Walk();
  ASSERT_TRUE(walk.ok()) << walk.status();
  EXPECT_EQ(walk->groups.size(), 1u);
  EXPECT_EQ(walk->used_pages, 5u);
  EXPECT_EQ(walk->torn_groups, 1u);
  EXPECT_EQ(walk->damaged_pages, 0u);
}

TEST_F(NvmeSurveyTest, ADamagedHeaderAmongPromisedGroupsIsSteppedOverAndCounted) {
  for (uint32_t i = 0; i < 3; ++i) tier_.Write(Group(7, i));
  ManifestRecord record = tier_.Record(1, /*use=*/7, /*version=*/1);
  record.durable_pages = 15;
  tier_.WriteManifest(record, 1);
  Damage(tier_.Header(Group(7, 1)));
  const absl::StatusOr<SegmentWalk> walk = Walk();
  ASSERT_TRUE(walk.ok()) << walk.status();
  ASSERT_EQ(walk->groups.size(), 2u);
  EXPECT_EQ(walk->groups[1].page, tier_.Start(1) + 10);
  EXPECT_EQ(walk->damaged_pages, 5u);
  EXPECT_EQ(walk->verified_bytes, 0u);
}

TEST_F(NvmeSurveyTest, GroupsOfOlderUsesEndTheWalk) {
  for (uint32_t i = 0; i < 3; ++i) tier_.Write(Group(7, i));
  tier_.Write(Group(20, 0));
  const absl::StatusOr<SegmentWalk> walk = Walk();
  ASSERT_TRUE(walk.ok()) << walk.status();
  EXPECT_EQ(walk->groups.size(), 1u);
  EXPECT_EQ(walk->torn_groups, 0u);
}

TEST_F(NvmeSurveyTest, AGroupThatFollowedAnotherOneIsStaleAndEndsTheWalk) {
  for (const uint32_t durable_pages : {0, 5}) {
    for (uint32_t i = 0; i < 3; ++i) tier_.Write(Group(7, i));
    ManifestRecord record = tier_.Record(1, /*use=*/7, /*version=*/1);
    record.durable_pages = durable_pages;
    tier_.WriteManifest(record, 1);
    // Of another process, which gave out the same generation for the same place.
    HandGroup again = Group(7, 0);
    again.stamp = 12345;
    tier_.Write(again);
    const absl::StatusOr<SegmentWalk> walk = Walk();
    ASSERT_TRUE(walk.ok()) << walk.status();
    EXPECT_EQ(walk->groups.size(), 1u);
    EXPECT_EQ(walk->last_stamp, 12345u);
    EXPECT_EQ(walk->torn_groups + walk->damaged_pages, 0u);
  }
}

TEST_F(NvmeSurveyTest, BehindADamagedEndOfWhatWasPromisedNothingCanFollow) {
  for (uint32_t i = 0; i < 3; ++i) tier_.Write(Group(7, i));
  ManifestRecord record = tier_.Record(1, /*use=*/7, /*version=*/1);
  record.durable_pages = 10;
  tier_.WriteManifest(record, 1);
  Damage(tier_.Header(Group(7, 1)));
  const absl::StatusOr<SegmentWalk> walk = Walk();
  ASSERT_TRUE(walk.ok()) << walk.status();
  EXPECT_EQ(walk->groups.size(), 1u);
  EXPECT_EQ(walk->last_stamp, std::nullopt);
  EXPECT_EQ(walk->damaged_pages, 5u);
}

// --- Reading ---

TEST(NvmeReader, AnUnreadablePieceIsAnOutcomeAndTheOthersAreRead) {
  constexpr uint64_t kBadPage = 70;
  const auto device = *MemoryDevice::Create(
      {.size_bytes = 200 * kPageBytes,
       .depth = 64,
       .transfer_hook = [](const IoRequest& request, uint64_t bytes) -> int64_t {
         return request.offset == kBadPage * kPageBytes ? -EIO : static_cast<int64_t>(bytes);
       }});
  size_t largest = 0;
  NvmeReader reader([&](absl::Span<IoRequest* const> batch) {
    largest = std::max(largest, batch.size());
    return RunBatch(*device, batch);
  });
  AlignedBuffer memory = *AlignedBuffer::Create(200 * kPageBytes);
  std::vector<NvmeReader::Piece> pieces;
  for (uint64_t page = 0; page < 200; ++page) {
    device->bytes()[page * kPageBytes] = static_cast<std::byte>(page);
    pieces.push_back({.page = page, .bytes = memory.span().subspan(page * kPageBytes, kPageBytes)});
  }
  ASSERT_TRUE(reader.Read(absl::MakeSpan(pieces)).ok());
  for (uint64_t page = 0; page < 200; ++page) {
    EXPECT_EQ(pieces[page].readable, page != kBadPage);
    if (page == kBadPage) continue;
    EXPECT_EQ(pieces[page].bytes[0], static_cast<std::byte>(page));
  }
  EXPECT_LE(largest, NvmeReader::kMaxBatch);
}

TEST(NvmeReader, AReadThatWasNotTriedIsAnError) {
  NvmeReader reader(
      [](absl::Span<IoRequest* const>) { return absl::ResourceExhaustedError("queue full"); });
  AlignedBuffer memory = *AlignedBuffer::Create(kPageBytes);
  NvmeReader::Piece piece = {.page = 0, .bytes = memory.span()};
  EXPECT_EQ(reader.Read(absl::MakeSpan(&piece, 1)).code(), absl::StatusCode::kResourceExhausted);
  EXPECT_FALSE(piece.readable);
}

TEST(SurveySegments, VisitsEverySegmentOnceInTheirOrder) {
  NvmeGeometry geometry = kGeometry;
  geometry.segment_count = 100;  // several batches
  HandWrittenTier tier(geometry, kEpoch);
  for (uint32_t i = 0; i < geometry.segment_count; i += 3) {
    tier.Seal({{.segment = i, .generation = i + 1, .use = i + 1, .blocks = {{.number = i}}}});
  }
  NvmeReader reader = tier.Reader();
  uint32_t next = 0;
  const absl::Status status = SurveySegments(
      reader, geometry, kEpoch, [&](const SegmentSurvey& survey, const SegmentBytes& bytes) {
        EXPECT_EQ(survey.segment, SegmentIndex{next});
        EXPECT_EQ(survey.use, next % 3 == 0 ? Use::kSealed : Use::kFree);
        EXPECT_EQ(bytes.footer, tier.Footer(next));
        ++next;
      });
  EXPECT_TRUE(status.ok()) << status;
  EXPECT_EQ(next, geometry.segment_count);
}

}  // namespace
}  // namespace terrace
