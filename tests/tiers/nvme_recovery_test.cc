#include "tiers/nvme_recovery.h"

#include <algorithm>
#include <deque>
#include <functional>
#include <memory>
#include <optional>
#include <vector>

#include "gtest/gtest.h"
#include "tests/support/hand_written_tier.h"

namespace terrace {
namespace {

constexpr uint64_t kEpoch = 99;
// Four segments of three groups: a header page and two blocks of two pages each; then a footer.
constexpr NvmeGeometry kGeometry = {.pages_per_block = 2,
                                    .segment_pages = 16,
                                    .segment_count = 4,
                                    .group_blocks = 2,
                                    .header_pages = 1,
                                    .footer_pages = 1,
                                    .manifest_pages = 1};

BlockId Id(uint64_t number) { return HandWrittenTier::Id(number); }

void Erase(absl::Span<std::byte> bytes) { std::fill(bytes.begin(), bytes.end(), std::byte{}); }
void Damage(absl::Span<std::byte> bytes) { bytes[30] ^= std::byte{4}; }

class NvmeRecoveryTest : public testing::Test {
 protected:
  // Group `index` of a use of a segment, when all before it have two blocks.
  static HandGroup Group(uint32_t segment, uint32_t index, uint64_t use,
                         std::vector<HandBlock> blocks) {
    return {.segment = segment,
            .at = index * 5,
            .generation = use + index,
            .use = use,
            .blocks = std::move(blocks)};
  }
  // Recovers what the device holds into a new Placement.
  std::unique_ptr<Placement> Recovered() {
    PlacementOptions options;
    options.block_bytes = kGeometry.pages_per_block * kPageBytes;
    options.slots = {0, 0, 8};
    options.nvme = kGeometry;
    options.epoch = kEpoch;
    std::unique_ptr<Placement> placement = *Placement::Create(options);
    NvmeReader reader = tier_.Reader();
    const absl::StatusOr<RecoveryReport> report = RecoverNvme(
        reader, [&](const KeyName& name) { return key_index_(name); }, *placement);
    EXPECT_TRUE(report.ok()) << report.status();
    report_ = report.value_or(RecoveryReport());
    EXPECT_EQ(report_.blocks, placement->directory().size());
    return placement;
  }
  static std::optional<uint32_t> PageOf(const Placement& placement, uint64_t number) {
    const EntryIndex entry = placement.directory().Find(Id(number));
    if (entry == kNoEntry) return std::nullopt;
    return static_cast<uint32_t>(placement.directory()[entry].page);
  }
  static bool Known(const Placement& placement, uint64_t number) {
    return PageOf(placement, number).has_value();
  }
  static Retention RetentionOf(const Placement& placement, uint64_t number) {
    const EntryIndex entry = placement.directory().Find(Id(number));
    EXPECT_NE(entry, kNoEntry);
    return placement.directory()[entry].retention;
  }

  HandWrittenTier tier_{kGeometry, kEpoch};
  std::function<KeyNumber(const KeyName&)> key_index_ = [](const KeyName&) { return kNoKey; };
  RecoveryReport report_;
};

TEST_F(NvmeRecoveryTest, AnEmptyDeviceHoldsNothing) {
  const std::unique_ptr<Placement> placement = Recovered();
  EXPECT_EQ(placement->directory().size(), 0u);
  EXPECT_EQ(placement->nvme()->free_segments(), kGeometry.segment_count);
  EXPECT_EQ(report_.sealed_segments + report_.unsealed_segments, 0u);
}

// --- Sealed segments ---

TEST_F(NvmeRecoveryTest, ASealedSegmentComesBackFromItsFooterAlone) {
  const std::vector<HandGroup> groups = {Group(2, 0, 5, {{1, Retention::kOwned}, {2}}),
                                         Group(2, 1, 5, {{3}})};
  tier_.Seal(groups);
  const PageChecksum checksum = tier_.FirstChecksum(groups[0], 1);
  Erase(tier_.Pages(tier_.Start(2), kGeometry.data_pages()));
  const std::unique_ptr<Placement> placement = Recovered();
  EXPECT_EQ(PageOf(*placement, 1), tier_.Start(2) + 1);
  EXPECT_EQ(PageOf(*placement, 2), tier_.Start(2) + 3);
  EXPECT_EQ(PageOf(*placement, 3), tier_.Start(2) + 6);
  EXPECT_EQ(RetentionOf(*placement, 1), Retention::kOwned);
  EXPECT_EQ(RetentionOf(*placement, 2), Retention::kCached);
  EXPECT_EQ(placement->nvme()->checksums(PageIndex{tier_.Start(2) + 3}, 2)[0], checksum);
  EXPECT_TRUE(placement->OnNvme(Id(3)));
  EXPECT_EQ(placement->nvme()->phase(SegmentIndex{2}), SegmentPhase::kSealed);
  EXPECT_EQ(placement->nvme()->used_bytes(), (kGeometry.log_start() + 8 + 1) * kPageBytes);
  EXPECT_EQ(report_.sealed_segments, 1u);
  EXPECT_EQ(report_.unsealed_segments, 0u);
  EXPECT_EQ(report_.verified_bytes, 0u);
}

TEST_F(NvmeRecoveryTest, WithADamagedFooterItsHeadersServe) {
  tier_.Seal({Group(2, 0, 5, {{1}, {2}}), Group(2, 1, 5, {{3}, {4}})});
  Damage(tier_.Footer(2));
  const std::unique_ptr<Placement> placement = Recovered();
  for (const uint64_t number : {1, 2, 3, 4}) EXPECT_TRUE(Known(*placement, number)) << number;
  EXPECT_EQ(report_.unsealed_segments, 1u);
  EXPECT_EQ(report_.verified_bytes, 4 * 2 * kPageBytes);
}

TEST_F(NvmeRecoveryTest, TheFooterOfAnOlderUseIsNotTaken) {
  tier_.Seal({Group(0, 0, 5, {{1}, {2}}), Group(0, 1, 5, {{3}, {4}})});
  tier_.Write(Group(0, 0, 20, {{10}, {11}}));
  const std::unique_ptr<Placement> placement = Recovered();
  EXPECT_EQ(placement->directory().size(), 2u);
  EXPECT_TRUE(Known(*placement, 10) && Known(*placement, 11));
}

// --- Unsealed segments ---

TEST_F(NvmeRecoveryTest, AnUnsealedSegmentIsWalkedAndGoesOn) {
  const HandGroup first = Group(2, 0, 5, {{1, Retention::kOwned}, {2}});
  tier_.Write(first);
  tier_.Write(Group(2, 1, 5, {{3}}));
  const std::unique_ptr<Placement> placement = Recovered();
  EXPECT_EQ(PageOf(*placement, 1), tier_.Start(2) + 1);
  EXPECT_EQ(PageOf(*placement, 2), tier_.Start(2) + 3);
  EXPECT_EQ(PageOf(*placement, 3), tier_.Start(2) + 6);
  EXPECT_EQ(RetentionOf(*placement, 1), Retention::kOwned);
  EXPECT_EQ(placement->nvme()->checksums(PageIndex{tier_.Start(2) + 3}, 2)[0],
            tier_.FirstChecksum(first, 1));
  EXPECT_EQ(placement->nvme()->open_segment(), SegmentIndex{2});
  EXPECT_EQ(static_cast<uint32_t>(placement->nvme()->append_point()), tier_.Start(2) + 8);
  EXPECT_EQ(report_.unsealed_segments, 1u);
  EXPECT_EQ(report_.verified_bytes, 3 * 2 * kPageBytes);
}

TEST_F(NvmeRecoveryTest, ATornGroupEndsItsSegmentAndNoOther) {
  enum class Tear { kHeaderNeverWritten, kHeader, kBlock };
  for (const Tear tear : {Tear::kHeaderNeverWritten, Tear::kHeader, Tear::kBlock}) {
    SCOPED_TRACE(testing::Message() << "tear " << static_cast<int>(tear));
    for (uint32_t i = 0; i < 3; ++i) {
      tier_.Write(Group(0, i, 1, {{10 + i}, {20 + i}}));
      tier_.Write(Group(1, i, 4, {{30 + i}, {40 + i}}));
    }
    const HandGroup torn = Group(1, 1, 4, {{31}, {41}});
    if (tear == Tear::kHeaderNeverWritten) Erase(tier_.Header(torn));
    if (tear == Tear::kHeader) Damage(tier_.Header(torn));
    if (tear == Tear::kBlock) Damage(tier_.Block(torn, 1));
    const std::unique_ptr<Placement> placement = Recovered();
    for (uint32_t i = 0; i < 3; ++i) {
      EXPECT_TRUE(Known(*placement, 10 + i) && Known(*placement, 20 + i));
      EXPECT_EQ(Known(*placement, 30 + i), i == 0);
      EXPECT_EQ(Known(*placement, 40 + i), i == 0);
    }
    EXPECT_EQ(report_.torn_groups, tear == Tear::kBlock ? 1u : 0u);
    EXPECT_EQ(report_.damaged_pages, 0u);
  }
}

TEST_F(NvmeRecoveryTest, ADamagedGroupThatWasPromisedHidesNoneBehindIt) {
  for (uint32_t i = 0; i < 3; ++i) tier_.Write(Group(1, i, 4, {{30 + i}, {40 + i}}));
  ManifestRecord record = tier_.Record(1, /*use=*/4, /*version=*/1);
  record.durable_pages = 10;
  tier_.WriteManifest(record, 1);
  Damage(tier_.Header(Group(1, 0, 4, {{30}, {40}})));
  const std::unique_ptr<Placement> placement = Recovered();
  // Without its first header the segment is known from the manifest alone.
  for (uint32_t i = 0; i < 3; ++i) EXPECT_EQ(Known(*placement, 30 + i), i > 0);
  EXPECT_EQ(report_.damaged_pages, 5u);
  EXPECT_EQ(report_.torn_groups, 0u);
}

TEST_F(NvmeRecoveryTest, APromisedBlockThatIsDamagedIsFoundWhenItIsFetched) {
  const HandGroup group = Group(1, 0, 4, {{30}, {40}});
  tier_.Write(group);
  ManifestRecord record = tier_.Record(1, /*use=*/4, /*version=*/1);
  record.durable_pages = 5;
  tier_.WriteManifest(record, 1);
  const PageChecksum checksum = tier_.FirstChecksum(group, 1);
  Damage(tier_.Block(group, 1));
  const std::unique_ptr<Placement> placement = Recovered();
  EXPECT_TRUE(Known(*placement, 30) && Known(*placement, 40));
  EXPECT_EQ(placement->nvme()->checksums(PageIndex{tier_.Start(1) + 3}, 2)[0], checksum);
  EXPECT_EQ(report_.verified_bytes, 0u);
}

TEST_F(NvmeRecoveryTest, WhatIsPromisedStaysUsedThoughItCannotBeRead) {
  ManifestRecord record = tier_.Record(1, /*use=*/4, /*version=*/1);
  record.durable_pages = 10;
  tier_.WriteManifest(record, 1);
  const std::unique_ptr<Placement> placement = Recovered();
  EXPECT_EQ(report_.damaged_pages, 10u);
  EXPECT_EQ(placement->nvme()->used_pages(SegmentIndex{1}), 10u);
}

TEST_F(NvmeRecoveryTest, StaleGroupsOfAnEarlierUseAreIgnored) {
  for (uint32_t i = 0; i < 3; ++i) tier_.Write(Group(0, i, 1, {{10 + i}, {20 + i}}));
  tier_.Write(Group(1, 0, 4, {{11}}));
  tier_.Write(Group(0, 0, 5, {{30}, {31}}));
  const std::unique_ptr<Placement> placement = Recovered();
  EXPECT_EQ(placement->directory().size(), 3u);
  EXPECT_TRUE(Known(*placement, 30) && Known(*placement, 31));
  EXPECT_EQ(PageOf(*placement, 11), tier_.Start(1) + 1);
}

TEST_F(NvmeRecoveryTest, AGroupThatReachesIntoTheFooterIsIgnored) {
  for (const uint32_t at : {0, 3, 6, 9}) {
    tier_.Write({.segment = 0, .at = at, .generation = 1 + at, .use = 1, .blocks = {{at}}});
  }
  tier_.Write({.segment = 0, .at = 12, .generation = 20, .use = 1, .blocks = {{50}, {51}}});
  const std::unique_ptr<Placement> placement = Recovered();
  EXPECT_EQ(placement->directory().size(), 4u);
  EXPECT_FALSE(Known(*placement, 50) || Known(*placement, 51));
}

TEST_F(NvmeRecoveryTest, GroupsOfAnotherEpochAreIgnored) {
  tier_.Write(Group(0, 0, 1, {{1}}));
  HandWrittenTier older(kGeometry, kEpoch - 1);
  const HandGroup stale = {.segment = 0, .at = 3, .generation = 2, .use = 1, .blocks = {{2}}};
  older.Write(stale);
  const absl::Span<const std::byte> pages = older.Pages(older.Start(0) + 3, 3);
  std::copy(pages.begin(), pages.end(), tier_.Pages(tier_.Start(0) + 3, 3).begin());
  const std::unique_ptr<Placement> placement = Recovered();
  EXPECT_EQ(placement->directory().size(), 1u);
  EXPECT_TRUE(Known(*placement, 1));
}

// --- Which copy counts ---

TEST_F(NvmeRecoveryTest, TheNewestCopyWinsInsideAndAcrossSegments) {
  // Block 1: first in a later segment by number. Block 2: twice in one segment.
  tier_.Seal({Group(3, 0, 1, {{1}, {2}}), Group(3, 1, 1, {{2}})});
  const HandGroup newest = Group(0, 0, 7, {{1}});
  tier_.Write(newest);
  tier_.Seal({Group(1, 0, 4, {{1}})});
  const std::unique_ptr<Placement> placement = Recovered();
  EXPECT_EQ(placement->directory().size(), 2u);
  EXPECT_EQ(PageOf(*placement, 1), tier_.Start(0) + 1);
  EXPECT_EQ(PageOf(*placement, 2), tier_.Start(3) + 6);
  EXPECT_EQ(placement->nvme()->checksums(PageIndex{tier_.Start(0) + 1}, 2)[0],
            tier_.FirstChecksum(newest, 0));
}

TEST_F(NvmeRecoveryTest, VoidPlacesHoldNothing) {
  tier_.Write(Group(0, 0, 1, {{.number = 1, .valid = false}, {2}}));
  const std::unique_ptr<Placement> placement = Recovered();
  EXPECT_FALSE(Known(*placement, 1));
  EXPECT_EQ(PageOf(*placement, 2), tier_.Start(0) + 3);
}

TEST_F(NvmeRecoveryTest, EncryptedBlocksComeBackWithTheirKeys) {
  const KeyName name = {.space = 7, .check = 1234};
  tier_.Seal({Group(3, 0, 1, {{.number = 1, .key = name}, {2}})});
  key_index_ = [&](const KeyName& found) { return found == name ? KeyNumber{5} : KeyNumber{6}; };
  const std::unique_ptr<Placement> placement = Recovered();
  const BlockDirectory& directory = placement->directory();
  EXPECT_EQ(directory[directory.Find(Id(1))].key, KeyNumber{5});
  EXPECT_EQ(directory[directory.Find(Id(2))].key, kNoKey);
}

TEST_F(NvmeRecoveryTest, AnEncryptedBlockOfOneKeyTooManyIsNoPlainOneAndHidesItsOlderCopies) {
  tier_.Seal({Group(3, 0, 1, {{1}, {2}})});
  tier_.Seal({Group(0, 0, 7, {{.number = 1, .key = KeyName{7, 1234}}, {3}})});
  key_index_ = [](const KeyName&) { return kNoKey; };
  const std::unique_ptr<Placement> placement = Recovered();
  EXPECT_FALSE(Known(*placement, 1));
  EXPECT_TRUE(Known(*placement, 2) && Known(*placement, 3));
}

TEST_F(NvmeRecoveryTest, WhatLayHiddenBehindATornGroupNeverComesBack) {
  tier_.Write(Group(1, 0, 7, {{1}, {4}}));
  tier_.Write(Group(1, 2, 7, {{2}, {3}}));  // the group before it, 8, never reached the device
  const std::unique_ptr<Placement> placement = Recovered();
  EXPECT_FALSE(Known(*placement, 2));
  for (uint64_t number : {100, 101}) {
    const Placement::PutReservation put = placement->ReservePut(Id(number), Retention::kCached);
    ASSERT_EQ(put.outcome, Placement::PutOutcome::kReserved);
    placement->FillLanded(put.place);
  }
  placement->CloseOpenGroup();
  const std::optional<size_t> index = placement->NextGroup();
  ASSERT_TRUE(index.has_value());
  const WriteGroup& group = placement->group(*index);
  ASSERT_EQ(static_cast<uint32_t>(group.base), tier_.Start(1) + 5);  // the newest segment goes on
  EXPECT_EQ(group.header.generation, 8u);
  tier_.Write({.segment = 1,
               .at = 5,
               .generation = group.header.generation,
               .use = group.header.segment_generation,
               .blocks = {{100}, {101}}});
  placement->GroupWritten(*index, true);
  const std::unique_ptr<Placement> again = Recovered();
  EXPECT_TRUE(Known(*again, 1) && Known(*again, 100) && Known(*again, 101));
  EXPECT_FALSE(Known(*again, 2));
}

TEST_F(NvmeRecoveryTest, RestoredSegmentsAreEvictedOldestFirst) {
  const uint64_t uses[] = {5, 2, 9, 3};
  for (uint32_t segment = 0; segment < 4; ++segment) {
    tier_.Seal({Group(segment, 0, uses[segment], {{segment}})});
  }
  const std::unique_ptr<Placement> placement = Recovered();
  EXPECT_EQ(placement->nvme()->free_segments(), 0u);
  EXPECT_EQ(placement->nvme()->sealed(),
            (std::deque<SegmentIndex>{SegmentIndex{1}, SegmentIndex{3}, SegmentIndex{0},
                                      SegmentIndex{2}}));
}

// --- What the manifest adds ---

TEST_F(NvmeRecoveryTest, ADroppedBlockStaysDroppedAndHidesItsOlderCopies) {
  for (const bool sealed : {false, true}) {
    SCOPED_TRACE(testing::Message() << "sealed: " << sealed);
    tier_.Seal({Group(3, 0, 1, {{1}, {2}})});
    const HandGroup newer = Group(0, 0, 7, {{1}, {3}});
    sealed ? tier_.Seal({newer}) : tier_.Write(newer);
    ManifestRecord record = tier_.Record(0, /*use=*/7, /*version=*/1);
    record.dead[0] = true;
    tier_.WriteManifest(record, 1);
    const std::unique_ptr<Placement> placement = Recovered();
    EXPECT_FALSE(Known(*placement, 1));
    EXPECT_TRUE(Known(*placement, 2) && Known(*placement, 3));
  }
}

TEST_F(NvmeRecoveryTest, ABlockThatWasPutAgainAfterItsDropIsThere) {
  tier_.Seal({Group(3, 0, 1, {{1}, {2}})});
  ManifestRecord record = tier_.Record(3, /*use=*/1, /*version=*/1);
  record.dead[0] = true;
  tier_.WriteManifest(record, 1);
  tier_.Write(Group(0, 0, 7, {{1}}));
  const std::unique_ptr<Placement> placement = Recovered();
  EXPECT_EQ(PageOf(*placement, 1), tier_.Start(0) + 1);
}

TEST_F(NvmeRecoveryTest, RetentionIsWhatItWasChangedTo) {
  tier_.Seal({Group(3, 0, 1, {{1, Retention::kOwned}, {2}}), Group(3, 1, 1, {{3}, {4}})});
  ManifestRecord record = tier_.Record(3, /*use=*/1, /*version=*/1);
  record.reversed[0] = true;
  record.reversed[1] = true;
  tier_.WriteManifest(record, 1);
  const std::unique_ptr<Placement> placement = Recovered();
  EXPECT_EQ(RetentionOf(*placement, 1), Retention::kCached);
  EXPECT_EQ(RetentionOf(*placement, 2), Retention::kOwned);
  EXPECT_EQ(RetentionOf(*placement, 3), Retention::kCached);
  EXPECT_EQ(placement->nvme()->owned_blocks(SegmentIndex{3}), 1u);
}

TEST_F(NvmeRecoveryTest, MarksOfALostGroupAreNotInheritedByTheNextOneInItsPlace) {
  tier_.Write(Group(2, 0, 5, {{1}, {2}}));
  ManifestRecord record = tier_.Record(2, /*use=*/5, /*version=*/1);
  record.newest_generation = 6;
  record.dead[3] = true;  // of the second group, 6
  record.reversed[3] = true;
  tier_.WriteManifest(record, 1);
  for (const bool written_again : {false, true}) {
    if (written_again) {
      tier_.Write({.segment = 2, .at = 5, .generation = 7, .use = 5, .blocks = {{1}, {3}}});
    }
    const std::unique_ptr<Placement> placement = Recovered();
    EXPECT_TRUE(placement->nvme()->has_open_segment());
    EXPECT_FALSE(placement->nvme()->manifest_record(SegmentIndex{2}).dead[3]);
    EXPECT_FALSE(placement->nvme()->manifest_record(SegmentIndex{2}).reversed[3]);
    EXPECT_EQ(Known(*placement, 3), written_again);
    EXPECT_EQ(PageOf(*placement, 1), tier_.Start(2) + (written_again ? 6 : 1));
  }
}

TEST_F(NvmeRecoveryTest, WhatANewerCopyOrItsDropHidesIsMarkedDeadItself) {
  tier_.Seal({Group(3, 0, 1, {{1}, {2}}), Group(3, 1, 1, {{3}, {4}})});
  tier_.Seal({Group(0, 0, 7, {{1}, {3}})});
  ManifestRecord record = tier_.Record(0, /*use=*/7, /*version=*/1);
  record.dead[0] = true;  // block 1
  tier_.WriteManifest(record, 1);
  const std::unique_ptr<Placement> placement = Recovered();
  const ManifestRecord older = placement->nvme()->manifest_record(SegmentIndex{3});
  EXPECT_TRUE(older.dead[0]);
  EXPECT_FALSE(older.dead[1]);
  EXPECT_TRUE(older.dead[3]);
  EXPECT_FALSE(older.dead[4]);
  placement->nvme()->RequestManifest();
  EXPECT_TRUE(placement->nvme()->manifest_pending());
}

TEST_F(NvmeRecoveryTest, DamagedCopiesOfTheManifestAreCounted) {
  tier_.Seal({Group(3, 0, 1, {{1}, {2}})});
  for (const uint32_t copy : {0, 1}) {
    tier_.WriteManifest(tier_.Record(3, /*use=*/1, /*version=*/1 + copy), copy);
  }
  Recovered();
  EXPECT_EQ(report_.damaged_manifests, 0u);
  Damage(tier_.Manifest(3, 1));
  Recovered();
  EXPECT_EQ(report_.damaged_manifests, 1u);
}

TEST_F(NvmeRecoveryTest, AFreedSegmentHoldsNothingAndItsVersionsGoOn) {
  tier_.Seal({Group(3, 0, 1, {{1}, {2}})});
  ManifestRecord record = tier_.Record(3, /*use=*/1, /*version=*/8);
  record.freed = true;
  tier_.WriteManifest(record, 0);
  const std::unique_ptr<Placement> placement = Recovered();
  EXPECT_EQ(placement->directory().size(), 0u);
  EXPECT_EQ(placement->nvme()->free_segments(), 4u);
  EXPECT_EQ(placement->nvme()->manifest_record(SegmentIndex{3}).version, 8u);
}

TEST_F(NvmeRecoveryTest, ADamagedManifestCopyLeavesTheOther) {
  for (const uint32_t newer : {0, 1}) {
    SCOPED_TRACE(testing::Message() << "newer copy " << newer);
    tier_.Seal({Group(3, 0, 1, {{1}, {2}})});
    ManifestRecord record = tier_.Record(3, /*use=*/1, /*version=*/1);
    record.dead[0] = true;
    tier_.WriteManifest(record, 1 - newer);
    record.version = 2;
    record.dead[1] = true;
    tier_.WriteManifest(record, newer);
    EXPECT_FALSE(Known(*Recovered(), 2));
    Damage(tier_.Manifest(3, newer));
    const std::unique_ptr<Placement> placement = Recovered();
    EXPECT_FALSE(Known(*placement, 1));
    EXPECT_TRUE(Known(*placement, 2));
  }
}

}  // namespace
}  // namespace terrace
