// What fsck finds, and what it leaves alone.

#include "tiers/nvme_check.h"

#include <algorithm>
#include <cstring>
#include <random>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "io/checksum.h"
#include "tests/tiers/check_tier.h"

namespace terrace {
namespace {

using testing::Each;
using testing::HasSubstr;
using testing::UnorderedElementsAre;

TEST_F(NvmeCheckTest, ACleanTierIsCountedRightAndNotWrittenTo) {
  MakeTier();
  const std::vector<std::byte> before = Bytes();
  writes_ = 0;
  const CheckReport report = MustCheck();
  EXPECT_TRUE(report.clean()) << DamageText(report);
  EXPECT_TRUE(RepairNvmeTier(*disk_, report).ok());
  EXPECT_EQ(writes_, 0);
  EXPECT_EQ(Bytes(), before);

  uint64_t owned = 0;
  uint64_t encrypted = 0;
  for (const auto& [number, version] : live_) {
    if ((Owned(number) || number == 8) && number != 13) ++owned;
    if (Encrypted(number)) ++encrypted;
  }
  EXPECT_EQ(report.blocks.live(), live_.size());
  EXPECT_EQ(report.blocks.owned, owned);
  EXPECT_EQ(report.blocks.encrypted, encrypted);
  EXPECT_EQ(report.blocks.dead, 6);
  EXPECT_EQ(report.blocks.stale_copies, 0);
  EXPECT_EQ(report.bytes_checked, live_.size() * kBlock);
  EXPECT_EQ(report.segments.sealed, footers_.size());
  EXPECT_EQ(report.segments.unsealed, 1);
  EXPECT_EQ(report.segments.sealed + report.segments.unsealed + report.segments.free,
            superblock_.geometry.segment_count);
  EXPECT_EQ(report.unfinished_groups, 0);
}

TEST_F(NvmeCheckTest, EverySingleBitFlipInLiveDataIsFound) {
  constexpr uint64_t kSeed = 20241;
  constexpr int kFlips = 5000;
  SCOPED_TRACE(testing::Message() << "seed " << kSeed);
  MakeTier();
  const std::vector<std::byte> before = Bytes();
  ASSERT_TRUE(MustCheck().clean());
  std::vector<ByteRange> blocks;
  for (const auto& [number, offset] : offsets_) blocks.push_back({offset, kBlock});
  const std::vector<std::vector<ByteRange>> classes = {
      blocks,   sealed_headers_, unsealed_headers_,
      footers_, manifests_,      {{0, kPageBytes}, {kPageBytes, kPageBytes}}};
  std::mt19937_64 random(kSeed);
  int missed = 0;
  for (int i = 0; i < kFlips; ++i) {
    const size_t kind = i % 2 == 0 ? 0 : random() % classes.size();  // blocks are most of a tier
    const ByteRange range = classes[kind][random() % classes[kind].size()];
    const uint64_t offset = range.offset + random() % range.bytes;
    const int bit = static_cast<int>(random() % 8);
    Flip(offset, bit);
    if (MustCheck().clean()) {
      ++missed;
      ADD_FAILURE() << "missed bit " << bit << " at " << offset << ", class " << kind;
    }
    Flip(offset, bit);
  }
  EXPECT_EQ(missed, 0);
  EXPECT_TRUE(MustCheck().clean());
  EXPECT_EQ(Bytes(), before);
}

TEST_F(NvmeCheckTest, EveryBitOfOneRecordOfEachKindCounts) {
  MakeTier();
  for (const ByteRange& range :
       {footers_[2], sealed_headers_[3], unsealed_headers_[0], manifests_[1]}) {
    for (uint64_t bit = 0; bit < range.bytes * 8; bit += 3) {
      Flip(range.offset + bit / 8, static_cast<int>(bit % 8));
      EXPECT_FALSE(MustCheck().clean()) << "bit " << bit << " of the record at " << range.offset;
      Flip(range.offset + bit / 8, static_cast<int>(bit % 8));
    }
  }
}

TEST_F(NvmeCheckTest, ADamagedBlockIsDescribed) {
  MakeTier();
  for (const uint64_t number : {uint64_t{23}, uint64_t{45}}) {  // owned; encrypted
    Flip(offsets_[number] + 2 * kPageBytes + 77);
    const CheckReport report = MustCheck();
    ASSERT_THAT(KindsOf(report), UnorderedElementsAre(DamageKind::kBlock));
    EXPECT_EQ(report.damaged_blocks, 1);
    const Damage& damage = report.damage[0];
    EXPECT_EQ(damage.offset, offsets_[number]);
    EXPECT_EQ(damage.segment, SegmentAt(offsets_[number]));
    EXPECT_EQ(damage.block->id, TestId(number));
    EXPECT_EQ(damage.block->first_damaged_page, 2);
    EXPECT_EQ(damage.block->retention, Owned(number) ? Retention::kOwned : Retention::kCached);
    EXPECT_EQ(damage.block->encrypted, Encrypted(number));
    EXPECT_FALSE(damage.block->newer_copy);
    EXPECT_FALSE(damage.block->older_copy);
    Flip(offsets_[number] + 2 * kPageBytes + 77);
  }
}

TEST_F(NvmeCheckTest, OtherCopiesOfADamagedBlockAreReported) {
  MakeTier();
  // Without the record that its first copy was dropped, block 4 has two.
  const NvmeGeometry& geometry = superblock_.geometry;
  const uint64_t older = dropped_offsets_[4];
  for (uint32_t copy = 0; copy < kManifestCopies; ++copy) {
    const uint64_t offset = geometry.ManifestPage(SegmentAt(older), copy) * kPageBytes;
    std::memset(&disk_->bytes()[offset], 0, size_t{geometry.manifest_pages} * kPageBytes);
  }
  EXPECT_TRUE(MustCheck().clean());
  EXPECT_GE(MustCheck().blocks.stale_copies, 1);
  EXPECT_EQ(MustCheck().bytes_checked % kBlock, 0);
  for (const uint64_t offset : {older, offsets_[4]}) {
    Flip(offset + 5);
    const CheckReport report = MustCheck();
    ASSERT_THAT(KindsOf(report), UnorderedElementsAre(DamageKind::kBlock));
    EXPECT_EQ(report.damage[0].block->id, TestId(4));
    EXPECT_EQ(report.damage[0].block->newer_copy, offset == older);
    EXPECT_EQ(report.damage[0].block->older_copy, offset != older);
    EXPECT_THAT(report.damage[0].detail, HasSubstr(offset == older ? "newer" : "older"));
    Flip(offset + 5);
  }
  // Where the newer one is given up, the older one, which has other bytes, does not come back.
  Flip(offsets_[4] + 5);
  EXPECT_TRUE(RepairNvmeTier(*disk_, MustCheck()).ok());
  auto manager = Open(true);
  EXPECT_EQ(manager->Find(TestId(4)), std::nullopt);
  EXPECT_TRUE(Serves(*manager, 3, 0));
}

TEST_F(NvmeCheckTest, PagesThatCannotBeReadAreDamageAndCostNoMore) {
  MakeTier();
  bad_page_ = offsets_[20] / kPageBytes + 3;
  const CheckReport block = MustCheck();
  ASSERT_THAT(KindsOf(block), UnorderedElementsAre(DamageKind::kBlock));
  EXPECT_EQ(block.damage[0].block->id, TestId(20));
  EXPECT_EQ(block.damage[0].block->first_damaged_page, 3);
  bad_page_ = manifests_[0].offset / kPageBytes;
  EXPECT_THAT(KindsOf(MustCheck()), UnorderedElementsAre(DamageKind::kManifest));
  bad_page_ = footers_[0].offset / kPageBytes;
  EXPECT_THAT(KindsOf(MustCheck()), Each(DamageKind::kFooter));
  for (const uint64_t page : {0, 1}) {
    bad_page_ = page;
    EXPECT_EQ(Check(*disk_).ok(), true);
    EXPECT_THAT(KindsOf(MustCheck()), UnorderedElementsAre(DamageKind::kSuperblock));
  }
}

TEST_F(NvmeCheckTest, WhatIsNoTierOfThisFormatIsAnError) {
  EXPECT_EQ(Check(*disk_).status().code(), absl::StatusCode::kInvalidArgument);  // blank
  MakeTier();
  const std::vector<std::byte> good = Bytes();
  Flip(100);
  Flip(kPageBytes + 100);
  EXPECT_EQ(Check(*disk_).status().code(), absl::StatusCode::kInvalidArgument);
  std::copy(good.begin(), good.end(), disk_->bytes().begin());
  for (const uint64_t copy : {0, 1}) {
    const absl::Span<std::byte> page = disk_->bytes().subspan(copy * kPageBytes, kPageBytes);
    page[24] = std::byte{kNvmeFormatVersion + 1};
    const uint64_t checksum = Checksum64(page.subspan(sizeof(uint64_t)));
    std::memcpy(page.data(), &checksum, sizeof(checksum));
  }
  const absl::Status status = Check(*disk_).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(status.message(), HasSubstr("format version"));
}

TEST_F(NvmeCheckTest, ACheckCanBeStopped) {
  MakeTier();
  uint64_t calls = 0;
  const auto report = CheckNvmeTier(*disk_, [&](const CheckProgress& progress) {
    EXPECT_LE(progress.bytes_read, progress.bytes_to_read);
    return ++calls < 3;
  });
  EXPECT_EQ(report.status().code(), absl::StatusCode::kCancelled);
  EXPECT_EQ(calls, 3);
}

}  // namespace
}  // namespace terrace
