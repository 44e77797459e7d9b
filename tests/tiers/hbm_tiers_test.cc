// Blocks that pass through HBM, emulated and in the memory of a CUDA device, over a real file.

#include <algorithm>
#include <array>
#include <memory>
#include <numeric>
#include <string>
#include <utility>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/support/temp_dir.h"
#include "tests/support/tier_fixture.h"
#include "tiers/tier_manager.h"

namespace terrace {
namespace {

using ::testing::HasSubstr;

constexpr size_t kBlock = size_t{64} << 10;
constexpr uint64_t kHbmSlots = 24;
constexpr uint64_t kDramSlots = 48;
constexpr uint64_t kBlocks = 160;  // more than HBM and DRAM have room for

TierManagerOptions Options(HbmDevice device, const std::string& dir) {
  TierManagerOptions options = TestTierOptions(
      kBlock, {.hbm_slots = kHbmSlots, .dram_slots = kDramSlots, .nvme_bytes = uint64_t{32} << 20});
  options.hbm_device = device;
  options.nvme_dir = dir;
  return options;
}

TEST(HbmTiersOpen, SaysWhyThereIsNoDevice) {
  TempDir dir;
  const auto tiers = TierManager::Open(Options(HbmDevice::kCuda, dir.path()));
  if (tiers.ok()) GTEST_SKIP() << "a device answers: " << (*tiers)->Stats().copy_engine;
  EXPECT_EQ(tiers.status().code(), absl::StatusCode::kUnavailable) << tiers.status();
  EXPECT_THAT(std::string(tiers.status().message()), HasSubstr("CUDA copy engine: "));
}

TEST(HbmTiersOpen, NamesTheMemoryThatCannotBePinned) {
  const auto open = [](uint64_t hbm_slots, uint64_t dram_slots) {
    auto copies = std::make_unique<FaultyCopyEngine>();
    copies->FailPin();
    TierManager::Parts parts;
    parts.copy_engine = std::move(copies);
    return TierManager::Open(
               TestTierOptions(kBlock, {.hbm_slots = hbm_slots, .dram_slots = dram_slots}),
               std::move(parts))
        .status();
  };
  const absl::Status refused = open(2, 4);
  EXPECT_EQ(refused.code(), absl::StatusCode::kResourceExhausted) << refused;
  EXPECT_THAT(std::string(refused.message()), HasSubstr("DRAM tier of 262144 bytes"));
  EXPECT_TRUE(open(0, 4).ok()) << "nothing is copied, so nothing need be pinned";
}

// With kCuda it needs a device that answers; is skipped, by name, where there is none.
class HbmTiers : public ::testing::TestWithParam<HbmDevice> {
 protected:
  void SetUp() override {
    auto tiers = TierManager::Open(Options(GetParam(), dir_.path()));
    if (absl::IsUnavailable(tiers.status())) GTEST_SKIP() << tiers.status();
    ASSERT_TRUE(tiers.ok()) << tiers.status();
    tiers_ = *std::move(tiers);
  }

  void Put(uint64_t first, uint64_t count) {
    for (uint64_t number = first; number < first + count; ++number) {
      const std::vector<std::byte> bytes = BlockBytes(TestId(number), kBlock);
      const BlockWrite write = {.id = TestId(number), .bytes = bytes};
      ASSERT_TRUE(tiers_->Put({&write, 1}).ok());
    }
  }
  // Fetches blocks into HBM and compares their bytes. found_in_ counts where they were.
  void FetchAndCompare(const std::vector<uint64_t>& numbers) {
    std::vector<BlockRead> reads;
    for (const uint64_t number : numbers) reads.push_back({.id = TestId(number)});
    const absl::StatusOr<Lease> lease = tiers_->Fetch(reads, {.target = Tier::kHbm});
    ASSERT_TRUE(lease.ok()) << lease.status();
    std::vector<std::byte> served(kBlock);
    for (size_t i = 0; i < lease->size(); ++i) {
      const LeasedBlock& block = (*lease)[i];
      ASSERT_EQ(block.outcome, BlockOutcome::kServed) << "block " << numbers[i];
      EXPECT_TRUE(block.in_hbm);
      ++found_in_[static_cast<size_t>(block.hit_tier)];
      ASSERT_TRUE(tiers_->CopyToHost(block, absl::MakeSpan(served)).ok());
      EXPECT_EQ(served, BlockBytes(TestId(numbers[i]), kBlock)) << "block " << numbers[i];
    }
  }

  TempDir dir_;
  std::unique_ptr<TierManager> tiers_;
  std::array<uint64_t, kTierCount> found_in_ = {};
};

INSTANTIATE_TEST_SUITE_P(Emulated, HbmTiers, ::testing::Values(HbmDevice::kEmulated));
INSTANTIATE_TEST_SUITE_P(OnDevice, HbmTiers, ::testing::Values(HbmDevice::kCuda));

TEST_P(HbmTiers, BlocksPassThroughAllTiersUnchanged) {
  EXPECT_EQ(tiers_->copy_engine().is_host(), GetParam() == HbmDevice::kEmulated);
  EXPECT_EQ(tiers_->Stats().copy_engine, tiers_->copy_engine().name());
  Put(0, kBlocks);
  ASSERT_TRUE(tiers_->Flush().ok());
  // Up from NVMe and DRAM, and down again as the next batch takes their room; twice, so that the
  // second time blocks come that went down from HBM.
  for (int round = 0; round < 2; ++round) {
    for (uint64_t first = 0; first < kBlocks; first += kHbmSlots / 2) {
      std::vector<uint64_t> numbers(std::min(kHbmSlots / 2, kBlocks - first));
      std::iota(numbers.begin(), numbers.end(), first);
      FetchAndCompare(numbers);
    }
    std::vector<uint64_t> newest(kHbmSlots / 2);
    std::iota(newest.begin(), newest.end(), kBlocks - kHbmSlots);
    FetchAndCompare(newest);
  }
  for (const Tier tier : {Tier::kHbm, Tier::kNvme}) {
    EXPECT_GT(found_in_[static_cast<size_t>(tier)], 0u) << TierName(tier);
  }
  EXPECT_GT(tiers_->Stats().hbm_copied_bytes, kBlocks * kBlock);
  EXPECT_EQ(tiers_->Stats().placement.lost_blocks, 0u);
}

TEST_P(HbmTiers, BlocksThatWereEvictedFromHbmComeBackFromDram) {
  Put(0, kHbmSlots);
  std::vector<uint64_t> all(kHbmSlots);
  std::iota(all.begin(), all.end(), 0);
  FetchAndCompare(all);
  // Others take their places, and they go down.
  Put(kHbmSlots, kHbmSlots);
  std::vector<uint64_t> others(kHbmSlots);
  std::iota(others.begin(), others.end(), kHbmSlots);
  FetchAndCompare(others);
  found_in_ = {};
  FetchAndCompare(all);
  EXPECT_EQ(found_in_[static_cast<size_t>(Tier::kDram)], kHbmSlots);
}

TEST_P(HbmTiers, ReopenedTiersServeFromTheDisk) {
  Put(0, kHbmSlots);
  ASSERT_TRUE(tiers_->Flush().ok());
  tiers_.reset();
  TierManagerOptions options = Options(GetParam(), dir_.path());
  options.reuse = true;
  auto tiers = TierManager::Open(options);
  ASSERT_TRUE(tiers.ok()) << tiers.status();
  tiers_ = *std::move(tiers);
  std::vector<uint64_t> all(kHbmSlots);
  std::iota(all.begin(), all.end(), 0);
  FetchAndCompare(all);
  EXPECT_EQ(found_in_[static_cast<size_t>(Tier::kNvme)], kHbmSlots);
}

}  // namespace
}  // namespace terrace
