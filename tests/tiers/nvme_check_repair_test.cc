// What is served after fsck mended a tier.

#include <set>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/tiers/check_tier.h"

namespace terrace {
namespace {

using testing::Contains;
using testing::Each;
using testing::UnorderedElementsAre;
using NvmeRepairTest = NvmeCheckTest;

TEST_F(NvmeRepairTest, ADamagedSuperblockIsRewritten) {
  MakeTier();
  const std::vector<std::byte> before = Bytes();
  for (const uint64_t copy : {0, 1}) {
    Flip(copy * kPageBytes + 2000);
    EXPECT_TRUE(RepairNvmeTier(*disk_, MustCheck()).ok());
    EXPECT_EQ(Bytes(), before);
  }
  Flip(10);
  ExpectMended();
}

TEST_F(NvmeRepairTest, DamagedHeadersAndFootersAreRewritten) {
  MakeTier();
  const std::vector<std::byte> before = Bytes();
  Flip(sealed_headers_[0].offset + 60);  // the first in its segment
  Flip(sealed_headers_[4].offset + 9);
  Flip(footers_.back().offset + 50);
  const CheckReport report = MustCheck();
  EXPECT_THAT(KindsOf(report),
              UnorderedElementsAre(DamageKind::kHeader, DamageKind::kHeader, DamageKind::kFooter));
  EXPECT_TRUE(RepairNvmeTier(*disk_, report).ok());
  EXPECT_EQ(Bytes(), before);
  Flip(sealed_headers_[1].offset);
  Flip(footers_.back().offset);
  ExpectMended();
}

TEST_F(NvmeRepairTest, DamagedBlocksAreMarkedDead) {
  MakeTier();
  std::set<uint64_t> lost = {4, 20, 23, 45, 99};  // one that was put twice, owned, encrypted
  for (const uint64_t number : lost) Flip(offsets_[number] + 100 * number);
  EXPECT_EQ(MustCheck().damaged_blocks, lost.size());
  ExpectMended(lost);
}

TEST_F(NvmeRepairTest, ADamagedManifestCopyIsRewritten) {
  MakeTier();
  for (const ByteRange& range : manifests_) Flip(range.offset + 30);
  EXPECT_THAT(KindsOf(MustCheck()), Each(DamageKind::kManifest));
  ExpectMended();
}

TEST_F(NvmeRepairTest, BothManifestCopiesOfEverySegmentMayBeLost) {
  MakeTier();
  const NvmeGeometry& geometry = superblock_.geometry;
  for (uint64_t page = kSuperblockPages; page < geometry.log_start(); ++page) {
    disk_->bytes()[page * kPageBytes + 1] ^= std::byte{0xff};
  }
  EXPECT_EQ(MustCheck().damage.size(), 2 * geometry.segment_count);
  ExpectMended();
}

TEST_F(NvmeRepairTest, GroupsThatAreLostCostTheirBlocksAlone) {
  MakeTier();
  const ByteRange header = unsealed_headers_[0];
  Flip(header.offset + 8);
  const CheckReport report = MustCheck();
  ASSERT_THAT(KindsOf(report), UnorderedElementsAre(DamageKind::kGroups));
  EXPECT_EQ(report.damage[0].offset, header.offset);
  const std::set<uint64_t> lost = BlocksOf(header);
  EXPECT_FALSE(lost.empty());
  ExpectMended(lost);
}

TEST_F(NvmeRepairTest, AFooterAndAHeaderOfOneSegmentCostTheBlocksOfThatGroup) {
  MakeTier();
  size_t second = 1;
  while (SegmentAt(sealed_headers_[second - 1].offset) !=
         SegmentAt(sealed_headers_[second].offset)) {
    ++second;
  }
  const ByteRange header = sealed_headers_[second];
  for (const ByteRange& footer : footers_) {
    if (SegmentAt(footer.offset) == SegmentAt(header.offset)) Flip(footer.offset + 20);
  }
  Flip(header.offset + 20);
  EXPECT_THAT(KindsOf(MustCheck()), Contains(DamageKind::kFooter));
  ExpectMended(BlocksOf(header));
}

TEST_F(NvmeRepairTest, DamageOfAllKindsAtOnceIsMended) {
  MakeTier();
  Flip(5);
  Flip(footers_[1].offset + 1);
  Flip(footers_[3].offset + 70);
  Flip(sealed_headers_.back().offset + 33);
  for (const ByteRange& range : manifests_) Flip(range.offset + 57);
  const std::set<uint64_t> lost = {0, 1, 2, 52, 53, 99};
  for (const uint64_t number : lost) Flip(offsets_[number] + kBlock - 1, 7);
  ExpectMended(lost);
}

}  // namespace
}  // namespace terrace
