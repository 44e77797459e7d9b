#ifndef TERRACE_TESTS_TIERS_CHECK_TIER_H_
#define TERRACE_TESTS_TIERS_CHECK_TIER_H_

#include <atomic>
#include <cerrno>
#include <cstring>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "gtest/gtest.h"
#include "io/memory_device.h"
#include "tests/support/tier_fixture.h"
#include "tiers/nvme_check.h"
#include "tiers/nvme_survey.h"
#include "tiers/tier_manager.h"

namespace terrace {

inline constexpr size_t kBlock = 16 << 10;
inline constexpr uint64_t kNvme = 4 << 20;
inline constexpr uint64_t kSpace = 5;  // of the blocks that are encrypted

struct ByteRange {
  uint64_t offset = 0;
  uint64_t bytes = 0;
  uint32_t blocks = 0;  // of a group header
};

inline absl::StatusOr<CheckReport> Check(BlockDevice& device) {
  return CheckNvmeTier(device, [](const CheckProgress&) { return true; });
}

inline std::vector<DamageKind> KindsOf(const CheckReport& report) {
  std::vector<DamageKind> kinds;
  for (const Damage& damage : report.damage) kinds.push_back(damage.kind);
  return kinds;
}

inline std::string DamageText(const CheckReport& report) {
  std::string text;
  for (const Damage& damage : report.damage) {
    text += std::string(DamageKindName(damage.kind)) + " at " + std::to_string(damage.offset) +
            ": " + damage.detail + "\n";
  }
  return text;
}

// A tier in memory that several managers, one after the other, and checks can use.
class NvmeCheckTest : public testing::Test {
 protected:
  NvmeCheckTest() {
    MemoryDeviceOptions options;
    options.size_bytes = PlanNvmeGeometry(kNvme, kBlock)->total_bytes();
    options.transfer_hook = [this](const IoRequest& request, uint64_t bytes) -> int64_t {
      if (request.op == IoOp::kWrite) ++writes_;
      const bool bad = request.op == IoOp::kRead && bad_page_ &&
                       request.offset <= *bad_page_ * kPageBytes &&
                       *bad_page_ * kPageBytes < request.offset + request.length();
      return bad ? -EIO : static_cast<int64_t>(bytes);
    };
    disk_ = *MemoryDevice::Create(options);
  }

  static TierManagerOptions Options(bool reuse) {
    TierManagerOptions options = TestTierOptions(kBlock, {.dram_slots = 12, .nvme_bytes = kNvme});
    options.reuse = reuse;
    options.model_fingerprint = 7;
    return options;
  }
  std::unique_ptr<TierManager> Open(bool reuse) const {
    TierManager::Parts parts;
    parts.device = *disk_->Clone();
    auto manager = TierManager::Open(Options(reuse), std::move(parts));
    EXPECT_TRUE(manager.ok()) << manager.status();
    if (!manager.ok()) return nullptr;
    const std::vector<std::byte> key(CipherKey::kBytes, std::byte{0x5a});
    EXPECT_TRUE((*manager)->AddKey(kSpace, *CipherKey::Create(key)).ok());
    return *std::move(manager);
  }

  static bool Owned(uint64_t number) { return number % 10 == 3; }
  static bool Encrypted(uint64_t number) { return number % 10 == 5; }
  static void Put(TierManager& manager, uint64_t number, uint64_t version = 0) {
    const std::vector<std::byte> bytes = BlockBytes(TestId(number), kBlock, version);
    BlockWrite write = {.id = TestId(number), .bytes = bytes};
    if (Owned(number)) write.retention = Retention::kOwned;
    if (Encrypted(number)) write.space = kSpace;
    ASSERT_TRUE(manager.Put({&write, 1}).ok());
  }
  static bool Serves(TierManager& manager, uint64_t number, uint64_t version) {
    const BlockRead read = {.id = TestId(number)};
    const absl::StatusOr<Lease> lease = manager.Fetch({&read, 1});
    if (!lease.ok() || (*lease)[0].outcome != BlockOutcome::kServed) return false;
    const std::vector<std::byte> wanted = BlockBytes(TestId(number), kBlock, version);
    return std::memcmp((*lease)[0].data, wanted.data(), kBlock) == 0;
  }

  // Leaves sealed segments, an open one, groups of all sizes, blocks that were dropped, some of
  // which came back with other bytes, and some whose retention was changed.
  void MakeTier() {
    auto manager = Open(false);
    for (uint64_t number = 0; number < 100; ++number) {
      Put(*manager, number);
      live_[number] = 0;
      if (number % 9 == 0) {
        ASSERT_TRUE(manager->Flush().ok());
      }
    }
    ASSERT_TRUE(manager->Flush().ok());
    for (const uint64_t number : {4, 15, 33, 47, 71, 98}) {
      dropped_offsets_[number] = manager->NvmeOffset(TestId(number)).value_or(0);
      manager->Drop(TestIds(number, 1));
      live_.erase(number);
    }
    ASSERT_TRUE(manager->Flush().ok());
    for (const uint64_t number : {4, 33, 98}) {
      Put(*manager, number, 1);
      live_[number] = 1;
    }
    manager->SetRetention(TestIds(8, 1), Retention::kOwned);
    manager->SetRetention(TestIds(13, 1), Retention::kCached);
    ASSERT_TRUE(manager->Flush().ok());
    for (const auto& [number, version] : live_) {
      offsets_[number] = manager->NvmeOffset(TestId(number)).value_or(0);
      ASSERT_NE(offsets_[number], 0) << number;
    }
    manager.reset();
    FindRecords();
  }

  // Where the records of the tier are, by the definitions of its format alone.
  void FindRecords() {
    superblock_ = *DecodeSuperblock(disk_->bytes().first(kPageBytes));
    const NvmeGeometry& geometry = superblock_.geometry;
    NvmeReader reader(
        [this](absl::Span<IoRequest* const> batch) { return RunBatch(*disk_, batch); });
    std::vector<SegmentSurvey> unsealed;
    ASSERT_TRUE(SurveySegments(reader, geometry, superblock_.epoch,
                               [&](const SegmentSurvey& survey, const SegmentBytes& bytes) {
                                 TakeRecords(survey, bytes);
                                 if (survey.use == SegmentSurvey::Use::kUnsealed) {
                                   unsealed.push_back(survey);
                                 }
                               })
                    .ok());
    for (const SegmentSurvey& survey : unsealed) {
      const auto walk = WalkSegment(reader, geometry, superblock_.epoch, survey);
      ASSERT_TRUE(walk.ok());
      for (const SegmentWalk::Group& group : walk->groups) {
        const auto view = GroupView::Decode(geometry, superblock_.epoch, group.header);
        unsealed_headers_.push_back(
            {group.page * kPageBytes, group.header.size(), view->group().block_count});
      }
    }
    ASSERT_GT(footers_.size(), 5);
    ASSERT_GT(sealed_headers_.size(), footers_.size());
    ASSERT_GT(unsealed_headers_.size(), 0);
    ASSERT_GT(manifests_.size(), 3);
  }
  void TakeRecords(const SegmentSurvey& survey, const SegmentBytes& bytes) {
    const NvmeGeometry& geometry = superblock_.geometry;
    if (survey.manifest.version > 0) {
      const uint64_t page =
          geometry.ManifestPage(survey.segment, survey.manifest.version % kManifestCopies);
      manifests_.push_back({page * kPageBytes, ManifestRecordBytes(geometry.stretches())});
    }
    if (survey.use != SegmentSurvey::Use::kSealed) return;
    constexpr uint64_t kFooterHeaderBytes = 48;
    ByteRange range = {geometry.FooterPage(survey.segment) * kPageBytes, kFooterHeaderBytes};
    const auto footer = DecodeFooter(geometry, superblock_.epoch, survey.segment, bytes.footer);
    for (const GroupView& group : footer->groups) {
      range.bytes += group.bytes().size();
      sealed_headers_.push_back(
          {group.group().base_page * kPageBytes, group.bytes().size(), group.group().block_count});
    }
    footers_.push_back(range);
  }

  void Flip(uint64_t offset, int bit = 0) { disk_->bytes()[offset] ^= std::byte{1} << bit; }
  std::vector<std::byte> Bytes() const { return {disk_->bytes().begin(), disk_->bytes().end()}; }
  CheckReport MustCheck() {
    auto report = Check(*disk_);
    EXPECT_TRUE(report.ok()) << report.status();
    return report.ok() ? *std::move(report) : CheckReport();
  }
  SegmentIndex SegmentAt(uint64_t offset) const {
    return superblock_.geometry.SegmentOf(offset / kPageBytes);
  }
  // Numbers of the live blocks of a group, given its header.
  std::set<uint64_t> BlocksOf(const ByteRange& header) const {
    const uint64_t end =
        header.offset + uint64_t{superblock_.geometry.group_pages(header.blocks)} * kPageBytes;
    std::set<uint64_t> numbers;
    for (const auto& [number, at] : offsets_) {
      if (at >= header.offset && at < end) numbers.insert(number);
    }
    return numbers;
  }

  // Expects the damage to be found, mended, and to have cost the blocks `lost` and no other.
  void ExpectMended(const std::set<uint64_t>& lost = {}) {
    const CheckReport found = MustCheck();
    EXPECT_FALSE(found.clean());
    const absl::Status repaired = RepairNvmeTier(*disk_, found);
    ASSERT_TRUE(repaired.ok()) << repaired;
    const CheckReport after = MustCheck();
    EXPECT_TRUE(after.clean()) << DamageText(after);
    const std::vector<std::byte> mended = Bytes();
    EXPECT_TRUE(RepairNvmeTier(*disk_, after).ok());
    EXPECT_EQ(Bytes(), mended) << "a clean tier is left alone";
    auto manager = Open(true);
    ASSERT_NE(manager, nullptr);
    for (const auto& [number, version] : live_) {
      EXPECT_EQ(Serves(*manager, number, version), !lost.contains(number)) << number;
    }
    EXPECT_EQ(manager->Stats().placement.lost_blocks, 0);
    EXPECT_EQ(manager->Stats().nvme_faults.corrupt_reads, 0);
    // And the tier works on.
    for (uint64_t number = 1000; number < 1100; ++number) Put(*manager, number);
    ASSERT_TRUE(manager->Flush().ok());
    EXPECT_TRUE(Serves(*manager, 1099, 0));
    manager.reset();
    const CheckReport later = MustCheck();
    EXPECT_TRUE(later.clean()) << DamageText(later);
  }

  std::unique_ptr<MemoryDevice> disk_;
  std::atomic<uint64_t> writes_ = 0;
  std::optional<uint64_t> bad_page_;  // cannot be read

  Superblock superblock_;
  std::map<uint64_t, uint64_t> live_;     // number and version
  std::map<uint64_t, uint64_t> offsets_;  // of the live ones
  std::map<uint64_t, uint64_t> dropped_offsets_;
  std::vector<ByteRange> manifests_;  // the newest copies
  std::vector<ByteRange> footers_;
  std::vector<ByteRange> sealed_headers_;
  std::vector<ByteRange> unsealed_headers_;
};

}  // namespace terrace

#endif  // TERRACE_TESTS_TIERS_CHECK_TIER_H_
