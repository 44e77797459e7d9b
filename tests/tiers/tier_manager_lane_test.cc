// Threads that drive their own reads, and reads that share a request. Unlike in most tests, the
// device can be cloned here, as io_uring devices can.

#include <atomic>
#include <cerrno>
#include <cstring>
#include <memory>
#include <random>
#include <thread>
#include <vector>

#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "io/memory_device.h"
#include "tests/support/tier_fixture.h"
#include "tiers/tier_manager.h"

namespace terrace {
namespace {

constexpr size_t kBlock = 2 * kPageBytes;
constexpr uint64_t kBlocks = 200;

// A tier whose blocks are all on NVMe, with room for 64 in DRAM.
class LaneTest : public testing::Test {
 protected:
  void Open(uint64_t hbm_slots = 0) {
    TierManagerOptions options;
    options.block_bytes = kBlock;
    options.hbm_bytes = hbm_slots * kBlock;
    options.dram_bytes = 64 * kBlock;
    options.nvme_bytes = uint64_t{8} << 20;
    MemoryDeviceOptions memory;
    memory.size_bytes = PlanNvmeGeometry(options.nvme_bytes, kBlock)->total_bytes();
    memory.transfer_hook = [this](const IoRequest& request, uint64_t bytes) {
      if (request.op != IoOp::kRead) return static_cast<int64_t>(bytes);
      ++reads_;
      const uint64_t bad = bad_offset_;
      const bool hit = request.offset <= bad && bad < request.offset + request.length();
      return hit ? int64_t{-EIO} : static_cast<int64_t>(bytes);
    };
    TierManager::Parts parts;
    parts.device = *MemoryDevice::Create(memory);
    manager_ = *TierManager::Open(options, std::move(parts));
    for (uint64_t number = 0; number < kBlocks; ++number) {
      const std::vector<std::byte> bytes = BlockBytes(TestId(number), kBlock);
      const BlockWrite write = {.id = TestId(number), .bytes = bytes};
      ASSERT_TRUE(manager_->Put({&write, 1}).ok());
    }
    ASSERT_TRUE(manager_->Flush().ok());
  }

  Lease Fetch(uint64_t first, uint64_t count, uint64_t step = 1) {
    std::vector<BlockRead> reads;
    for (uint64_t i = 0; i < count; ++i) reads.push_back({.id = TestId(first + i * step)});
    return *manager_->Fetch(reads);
  }
  bool Right(const LeasedBlock& block, uint64_t number) {
    if (block.outcome != BlockOutcome::kServed) return false;
    std::vector<std::byte> served(kBlock);
    if (!manager_->CopyToHost(block, absl::MakeSpan(served)).ok()) return false;
    return served == BlockBytes(TestId(number), kBlock);
  }

  std::atomic<uint64_t> reads_ = 0;
  std::atomic<uint64_t> bad_offset_ = UINT64_MAX;
  std::unique_ptr<TierManager> manager_;
};

TEST_F(LaneTest, NeighboursAreReadTogether) {
  Open();
  const uint64_t before = manager_->Stats().nvme_read_bytes;
  const Lease lease = Fetch(0, 32);
  for (uint64_t i = 0; i < 32; ++i) EXPECT_TRUE(Right(lease[i], i)) << i;
  EXPECT_LE(reads_, 6u);  // 32 blocks of 8 KiB and perhaps a header or two, by 128 KiB at most
  // What the device read counts, gaps included.
  EXPECT_GE(manager_->Stats().nvme_read_bytes - before, 32 * kBlock);
}

// Enough requests that a lane holds some of them back until the first have come.
TEST_F(LaneTest, BlocksFarApartAllArriveByRequestsOfTheirOwn) {
  Open();
  bad_offset_ = *manager_->NvmeOffset(TestId(132));  // the last, so among those held back
  const Lease lease = Fetch(0, 34, /*step=*/4);
  EXPECT_GE(reads_, 34u);
  for (uint64_t i = 0; i < 33; ++i) EXPECT_TRUE(Right(lease[i], 4 * i)) << i;
  EXPECT_EQ(lease[33].outcome, BlockOutcome::kLost);
}

TEST_F(LaneTest, GapsAreReadAlongAndThrownAway) {
  Open(/*hbm_slots=*/16);
  const Lease lease = Fetch(1, 12, /*step=*/2);
  for (uint64_t i = 0; i < 12; ++i) EXPECT_TRUE(Right(lease[i], 1 + 2 * i)) << i;
  EXPECT_LT(reads_, 12u);
}

TEST_F(LaneTest, ABadRangeLosesOnlyTheBlockInIt) {
  Open();
  bad_offset_ = *manager_->NvmeOffset(TestId(5)) + kPageBytes;
  const Lease lease = Fetch(0, 16);
  for (uint64_t i = 0; i < 16; ++i) {
    if (i == 5) {
      EXPECT_EQ(lease[i].outcome, BlockOutcome::kLost);
    } else {
      EXPECT_TRUE(Right(lease[i], i)) << i;
    }
  }
  EXPECT_EQ(manager_->Stats().placement.lost_blocks, 1u);
}

// The only request fails, and nothing else comes back that could send its blocks again.
TEST_F(LaneTest, ARequestThatFailsAsAWholeIsReadBlockByBlock) {
  Open();
  for (const uint64_t number : {1000, 1001}) {
    const std::vector<std::byte> bytes = BlockBytes(TestId(number), kBlock);
    const BlockWrite write = {.id = TestId(number), .bytes = bytes};
    ASSERT_TRUE(manager_->Put({&write, 1}).ok());
  }
  ASSERT_TRUE(manager_->Flush().ok());
  const uint64_t offset = *manager_->NvmeOffset(TestId(1000));
  ASSERT_EQ(*manager_->NvmeOffset(TestId(1001)), offset + kBlock);
  Fetch(0, 64).Release();  // takes their place in DRAM
  ASSERT_EQ(manager_->Find(TestId(1001)), Tier::kNvme);
  reads_ = 0;
  bad_offset_ = offset + kBlock;
  const Lease lease = Fetch(1000, 2);
  EXPECT_EQ(reads_, 4u) << "both together, then each, and the bad one once more";
  EXPECT_TRUE(Right(lease[0], 1000));
  EXPECT_EQ(lease[1].outcome, BlockOutcome::kLost);
  EXPECT_THAT(manager_->Stats().nvme_read_error.ToString(),
              testing::AllOf(testing::HasSubstr(absl::StrCat("offset ", offset + kBlock)),
                             testing::HasSubstr("Input/output error")));
}

TEST_F(LaneTest, ABadRangeInAGapLosesNothing) {
  Open();
  bad_offset_ = *manager_->NvmeOffset(TestId(3));
  const Lease lease = Fetch(0, 8, /*step=*/2);
  for (uint64_t i = 0; i < 8; ++i) EXPECT_TRUE(Right(lease[i], 2 * i)) << i;
}

TEST_F(LaneTest, APrefetchThatSharesARequestIsJoined) {
  Open();
  for (uint64_t first = 0; first + 8 <= kBlocks; first += 8) {
    ASSERT_EQ(manager_->Prefetch(TestIds(first, 8)), 8u);
    const Lease lease = Fetch(first, 8);
    for (uint64_t i = 0; i < 8; ++i) ASSERT_TRUE(Right(lease[i], first + i));
  }
}

// More threads than there are lanes, so that some go through the scheduler, all over blocks that
// others fetch as well.
TEST_F(LaneTest, ManyThreadsFetchWhatOthersFetch) {
  Open(/*hbm_slots=*/32);
  const auto client = [this](uint64_t seed) {
    std::mt19937_64 random(seed);
    for (int round = 0; round < 150; ++round) {
      const uint64_t first = random() % (kBlocks - 4);
      std::vector<BlockRead> reads;
      for (uint64_t i = 0; i < 4; ++i) reads.push_back({.id = TestId(first + i)});
      const absl::StatusOr<Lease> lease = manager_->Fetch(reads);
      ASSERT_TRUE(lease.ok()) << lease.status();
      for (uint64_t i = 0; i < 4; ++i) ASSERT_TRUE(Right((*lease)[i], first + i));
    }
  };
  std::vector<std::thread> threads;
  for (uint64_t seed = 0; seed < 7; ++seed) threads.emplace_back(client, seed);
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(manager_->Stats().placement.lost_blocks, 0u);
}

}  // namespace
}  // namespace terrace
