// What becomes of the NVMe tier when its disk or its file fails, and what Stats says about it.

#include <sys/stat.h>

#include <cerrno>
#include <cstdio>
#include <filesystem>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/time/clock.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/support/temp_dir.h"
#include "tests/support/tier_fixture.h"
#include "tiers/tier_manager.h"

namespace terrace {
namespace {

using testing::HasSubstr;

constexpr size_t kBlock = 16 << 10;
constexpr uint64_t kNvme = 4 << 20;

bool IsRead(const IoRequest& request) { return request.op == IoOp::kRead; }

// Fails the first `count` requests of this kind.
FaultyDevice::Failure FailFirst(IoOp op, int error, int count) {
  auto left = std::make_shared<int>(count);
  return [op, error, left](const IoRequest& request) {
    return request.op == op && (*left)-- > 0 ? std::optional(error) : std::nullopt;
  };
}

// Blocks 1 to 8 on NVMe, 5 to 8 in DRAM as well.
std::unique_ptr<TestTier> MakeTier() {
  auto tier = std::make_unique<TestTier>(kBlock, TierSizes{.dram_slots = 4, .nvme_bytes = kNvme});
  tier->PutMany(1, 8);
  EXPECT_TRUE((*tier)->Flush().ok());
  EXPECT_EQ(tier->Stats().nvme_health, NvmeHealth::kHealthy);
  return tier;
}

TEST(TierManagerHealth, WithoutAnNvmeTierThereIsNone) {
  TestTier tier(kBlock, {.dram_slots = 2});
  EXPECT_EQ(tier.Stats().nvme_health, NvmeHealth::kAbsent);
}

TEST(TierManagerHealth, AReadThatFailsOnceIsTriedAgain) {
  const auto tier = MakeTier();
  tier->device().FailWhen(FailFirst(IoOp::kRead, EIO, 1));
  EXPECT_TRUE(tier->Serves(1));
  const TierStats stats = tier->Stats();
  EXPECT_EQ(stats.placement.lost_blocks, 0u);
  EXPECT_EQ(stats.nvme_faults.failed_reads, 1u);
  EXPECT_EQ(stats.nvme_faults.mended_reads, 1u);
  EXPECT_EQ(stats.nvme_health, NvmeHealth::kDegraded);
  EXPECT_TRUE(stats.nvme_read_error.ok());
}

TEST(TierManagerHealth, ABitThatFlipsOnTheWayIsReadAgain) {
  const auto tier = MakeTier();
  int reads = 0;
  tier->device().FlipBitWhen(
      [&](const IoRequest& request) { return IsRead(request) && ++reads == 1; });
  EXPECT_TRUE(tier->Serves(1));
  const TierStats stats = tier->Stats();
  EXPECT_EQ(stats.nvme_faults.corrupt_reads, 1u);
  EXPECT_EQ(stats.nvme_faults.mended_reads, 1u);
  EXPECT_EQ(stats.placement.lost_blocks, 0u);
}

TEST(TierManagerHealth, AWriteThatFailsTwiceIsTriedAThirdTime) {
  TestTier tier(kBlock, {.dram_slots = 4, .nvme_bytes = kNvme});
  tier.PutMany(1, 2, Retention::kOwned);
  tier.device().FailWhen(FailFirst(IoOp::kWrite, EIO, 2));
  EXPECT_TRUE(tier->Flush().ok());
  EXPECT_TRUE(tier.OnNvme(1));
  const TierStats stats = tier.Stats();
  EXPECT_EQ(stats.nvme_faults.failed_writes, 2u);
  EXPECT_EQ(stats.nvme_health, NvmeHealth::kDegraded);
  EXPECT_TRUE(stats.nvme_accepts_writes);
}

TEST(TierManagerHealth, AFullDiskIsNotTriedTwice) {
  TestTier tier(kBlock, {.dram_slots = 4, .nvme_bytes = kNvme});
  tier.PutMany(1, 2, Retention::kOwned);
  tier.device().FailWhen(FailFirst(IoOp::kWrite, ENOSPC, 1));
  EXPECT_EQ(tier->Flush().code(), absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(tier.Stats().nvme_health, NvmeHealth::kReadOnly);
  EXPECT_EQ(tier.Stats().nvme_faults.failed_writes, 1u);
}

TEST(TierManagerHealth, AReadOnlyRemountLeavesATierThatIsRead) {
  const auto tier = MakeTier();
  tier->device().FailWhen([](const IoRequest& request) {
    return request.op == IoOp::kWrite ? std::optional(EROFS) : std::nullopt;
  });
  tier->PutMany(20, 8);
  EXPECT_FALSE((*tier)->Flush().ok());
  EXPECT_EQ(tier->Stats().nvme_health, NvmeHealth::kReadOnly);
  for (uint64_t number = 1; number <= 4; ++number) EXPECT_TRUE(tier->Serves(number)) << number;
}

TEST(TierManagerHealth, AfterAFailedSyncNoFlushSucceedsAgain) {
  const auto tier = MakeTier();
  tier->PutMany(20, 1);
  tier->device().FailWhen(FailFirst(IoOp::kSync, EIO, 1));
  EXPECT_FALSE((*tier)->Flush().ok());
  EXPECT_FALSE((*tier)->Flush().ok());
  EXPECT_EQ(tier->Stats().nvme_faults.failed_syncs, 1u);
  EXPECT_EQ(tier->Stats().nvme_health, NvmeHealth::kReadOnly);
  EXPECT_TRUE(tier->Serves(1));
}

TEST(TierManagerHealth, ADiskThatAnswersNoReadIsGivenUp) {
  TestTier tier(kBlock, {.dram_slots = 2, .nvme_bytes = kNvme});
  tier.PutMany(0, 180);
  ASSERT_TRUE(tier->Flush().ok());
  const uint64_t held = tier.Stats().tiers[2].blocks;
  ASSERT_GT(held, 150u);
  tier.device().FailWhen(
      [](const IoRequest& request) { return IsRead(request) ? std::optional(EIO) : std::nullopt; });
  for (uint64_t number = 0; number < 100; ++number) EXPECT_FALSE(tier.Serves(number)) << number;
  const TierStats stats = tier.Stats();
  EXPECT_EQ(stats.nvme_health, NvmeHealth::kOutOfService);
  EXPECT_EQ(stats.tiers[2].blocks, 0u);
  // And one or two more, that DRAM had as well at first.
  EXPECT_GE(stats.placement.lost_blocks, held);
  EXPECT_LE(stats.placement.lost_blocks, held + 2);
  const uint64_t failed = tier.device().failed_count();
  EXPECT_LE(failed, 2 * 64u);
  // Misses from now on, without a read; memory goes on.
  EXPECT_FALSE(tier.Serves(150));
  EXPECT_EQ(tier.device().failed_count(), failed);
  ASSERT_TRUE(tier.Put(500).ok());
  EXPECT_TRUE(tier.Serves(500));
}

TEST(TierManagerHealth, AStalledDiskMakesLateBlocksNotStuckCallers) {
  const auto tier = MakeTier();
  tier->device().HoldWhen(IsRead);
  const BlockRead read = {.id = TestId(1)};
  const absl::StatusOr<Lease> lease = (*tier)->Fetch(
      {&read, 1}, {.target = std::nullopt, .deadline = absl::Now() + absl::Milliseconds(1)});
  ASSERT_TRUE(lease.ok()) << lease.status();
  EXPECT_EQ((*lease)[0].outcome, BlockOutcome::kLate);
  tier->device().ReleaseAll();
}

// --- The file underneath ---

class TierManagerFile : public testing::Test {
 protected:
  void SetUp() override {
    TierManagerOptions options = TestTierOptions(kBlock, {.dram_slots = 4, .nvme_bytes = kNvme});
    options.nvme_dir = dir_.path();
    auto opened = TierManager::Open(options);
    ASSERT_TRUE(opened.ok()) << opened.status();
    manager_ = *std::move(opened);
    Put(1);
    ASSERT_TRUE(manager_->Flush().ok());
  }
  void Put(uint64_t number) {
    const std::vector<std::byte> bytes = BlockBytes(TestId(number), kBlock);
    const BlockWrite write = {.id = TestId(number), .bytes = bytes, .retention = Retention::kOwned};
    ASSERT_TRUE(manager_->Put({&write, 1}).ok());
  }
  void ExpectFlushFails(const char* why) {
    Put(2);
    const absl::Status flushed = manager_->Flush();
    EXPECT_EQ(flushed.code(), absl::StatusCode::kDataLoss);
    EXPECT_THAT(flushed.message(), HasSubstr(why));
    EXPECT_THAT(flushed.message(), HasSubstr(path_));
    EXPECT_EQ(manager_->Stats().nvme_health, NvmeHealth::kReadOnly);
    const BlockRead read = {.id = TestId(2)};
    const absl::StatusOr<Lease> lease = manager_->Fetch({&read, 1});
    ASSERT_TRUE(lease.ok()) << lease.status();
    EXPECT_EQ((*lease)[0].outcome, BlockOutcome::kServed);
  }

  TempDir dir_;
  const std::string path_ = dir_.Join("terrace.kv");
  std::unique_ptr<TierManager> manager_;
};

TEST_F(TierManagerFile, IsForItsOwnerAlone) {
  struct stat info = {};
  ASSERT_EQ(stat(path_.c_str(), &info), 0);
  EXPECT_EQ(info.st_mode & 0777, 0600u);
}

TEST_F(TierManagerFile, ThatWasDeletedHoldsNoPromise) {
  ASSERT_EQ(std::remove(path_.c_str()), 0);
  ExpectFlushFails("deleted");
}

TEST_F(TierManagerFile, ThatWasReplacedHoldsNoPromise) {
  const std::string other = dir_.Join("other");
  std::filesystem::copy_file(path_, other);
  std::filesystem::rename(other, path_);
  ExpectFlushFails("replaced");
}

TEST_F(TierManagerFile, ThatWasTruncatedHoldsNoPromiseAndServesNothingWrong) {
  std::filesystem::resize_file(path_, 64 << 10);
  ExpectFlushFails("truncated");
  const BlockRead read = {.id = TestId(1)};
  const absl::StatusOr<Lease> lease = manager_->Fetch({&read, 1});
  ASSERT_TRUE(lease.ok()) << lease.status();
  EXPECT_EQ((*lease)[0].outcome, BlockOutcome::kServed);  // DRAM has it too
}

TEST_F(TierManagerFile, DiscardGivesTheSpaceOfFreeSegmentsBack) {
  struct stat before = {};
  ASSERT_EQ(stat(path_.c_str(), &before), 0);
  const absl::Status discarded = manager_->DiscardFree();
  if (absl::IsUnimplemented(discarded)) GTEST_SKIP() << discarded;
  ASSERT_TRUE(discarded.ok()) << discarded;
  struct stat after = {};
  ASSERT_EQ(stat(path_.c_str(), &after), 0);
  EXPECT_EQ(after.st_size, before.st_size);
  EXPECT_LT(after.st_blocks, before.st_blocks / 4);
  Put(3);
  EXPECT_TRUE(manager_->Flush().ok());
  EXPECT_TRUE(manager_->OnNvme(TestId(1)));
}

}  // namespace
}  // namespace terrace
