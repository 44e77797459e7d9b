// Replays whose disk misbehaves, and what they flush.

#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <fstream>
#include <optional>
#include <string>
#include <tuple>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/support/temp_dir.h"
#include "tests/tools/replay_rig.h"
#include "tools/block_generator.h"
#include "tools/replay.h"

namespace terrace {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

// --- What is wrong with a block ---

TEST(ReplayFaultsTest, CountsServedBlocksWithWrongBytesAsCorrupt) {
  for (const TierManagerOptions& tiers : {Tiers(8, 0, 0), Tiers(0, 8, 0), Tiers(2, 8, 1 << 20)}) {
    Rig rig(tiers, TraceOf({{10, 11, 12}}));
    std::vector<std::byte> block(kBlockBytes);
    for (uint64_t id : {10, 11, 12}) {
      GenerateBlock(/*seed=*/1, id, absl::MakeSpan(block));
      if (id == 11) block[kBlockBytes - 1] ^= std::byte{1};
      const BlockWrite write = {.id = {1, id}, .bytes = block};
      ASSERT_TRUE(rig.tiers().Put({&write, 1}).ok());
    }
    const ReplayResult& result = rig.Run();
    EXPECT_EQ(result.corrupt_blocks, 1);
    EXPECT_GE(result.reused_blocks, 2);
    EXPECT_THAT(rig.Text(), HasSubstr("SOME OF THEM WRONG"));
  }
}

// Every read is that of one block, so that every fault counts as one block.
TierManagerOptions BlockByBlock(TierManagerOptions options) {
  options.coalesce_read_bytes = 0;
  return options;
}

TEST(ReplayFaultsTest, RecomputesBlocksThatRotOnDisk) {
  Rig rig(BlockByBlock(Tiers(20, 60, 16u << 20)), SyntheticTrace(500));
  uint64_t reads = 0;
  rig.device().FlipBitWhen(
      [&](const IoRequest& request) { return request.op == IoOp::kRead && ++reads % 7 == 0; });
  const ReplayResult& result = rig.Run();
  ExpectConsistent(rig, result);
  EXPECT_GT(rig.device().flipped_count(), 10);
  const TierStats stats = rig.tiers().Stats();
  EXPECT_EQ(stats.nvme_faults.corrupt_reads, rig.device().flipped_count());
  // A block is lost by two flips in a row, and mended after one.
  EXPECT_EQ(stats.nvme_faults.mended_reads + 2 * stats.placement.lost_blocks,
            rig.device().flipped_count());
  EXPECT_EQ(stats.nvme_health, NvmeHealth::kDegraded);
  EXPECT_GT(result.hits[static_cast<size_t>(Tier::kNvme)], 0);
}

TEST(ReplayFaultsTest, RecomputesBlocksThatCannotBeRead) {
  Rig rig(BlockByBlock(Tiers(20, 60, 16u << 20)), SyntheticTrace(500));
  rig.device().FailWhen([](const IoRequest& request) {
    return request.op == IoOp::kRead ? std::optional<int>(EIO) : std::nullopt;
  });
  const ReplayResult& result = rig.Run();
  ExpectConsistent(rig, result);
  EXPECT_EQ(result.hits[static_cast<size_t>(Tier::kNvme)], 0);
  EXPECT_GT(result.hits[static_cast<size_t>(Tier::kDram)], 0);
  // Given up after so many, with all that it held.
  EXPECT_GE(rig.tiers().Stats().placement.lost_blocks, rig.device().failed_count() / 2);
  EXPECT_LT(rig.device().failed_count(), 300);
  EXPECT_EQ(rig.tiers().Stats().nvme_health, NvmeHealth::kOutOfService);
}

// --- A disk that fills up ---

class FullDiskTest : public ::testing::TestWithParam<std::tuple<int, int>> {
 protected:
  int mask() const { return std::get<0>(GetParam()); }
  int good_writes() const { return std::get<1>(GetParam()); }
};

TEST_P(FullDiskTest, TheReplayFinishesAndSaysSo) {
  Rig rig(Tiers((mask() & 1) != 0 ? 40 : 0, (mask() & 2) != 0 ? 120 : 0, 16u << 20),
          SyntheticTrace(500));
  int writes = 0;
  rig.device().FailWhen([&](const IoRequest& request) {
    return request.op == IoOp::kWrite && ++writes > good_writes() ? std::optional<int>(ENOSPC)
                                                                  : std::nullopt;
  });
  const ReplayResult& result = rig.Run();
  ExpectConsistent(rig, result);
  EXPECT_GT(rig.device().failed_count(), 0);
  EXPECT_GT(result.failed_flushes, 0);
  EXPECT_FALSE(result.flush_error.ok());
  const TierStats stats = rig.tiers().Stats();
  EXPECT_FALSE(stats.nvme_accepts_writes);
  EXPECT_THAT(std::string(stats.nvme_error.message()), HasSubstr("No space left"));
  EXPECT_THAT(rig.Text(), HasSubstr("The NVMe tier stopped taking blocks: "));
  EXPECT_THAT(rig.Text(), HasSubstr("No space left"));
  if (good_writes() > 0) {
    EXPECT_GT(result.hits[2], 0) << "what was written before is served";
  }
  if (mask() == 0) {
    EXPECT_GT(result.unstored_blocks, 0);
    EXPECT_THAT(rig.Text(), HasSubstr("found no room"));
  } else {
    EXPECT_EQ(result.unstored_blocks, 0);
  }
}

INSTANTIATE_TEST_SUITE_P(TiersAboveAndGoodWrites, FullDiskTest,
                         ::testing::Combine(::testing::Range(0, 4), ::testing::Values(0, 25)));

// --- Flushing ---

ReplayOptions FlushEvery(uint64_t requests, const std::string& log = "") {
  ReplayOptions options;
  options.flush_every = requests;
  options.flush_log = log;
  return options;
}

std::vector<std::string> LinesOf(const std::string& path) {
  std::ifstream file(path);
  std::vector<std::string> lines;
  for (std::string line; std::getline(file, line);) lines.push_back(line);
  return lines;
}

class FlushTest : public ::testing::Test {
 protected:
  static uint64_t CountSyncs(uint64_t flush_every, uint64_t requests) {
    // So large that no segment fills up, which would be synced as well.
    Rig rig(Tiers(0, 500, 1u << 30), SyntheticTrace(requests), FlushEvery(flush_every));
    uint64_t syncs = 0;
    rig.device().FailWhen([&](const IoRequest& request) {
      syncs += request.op == IoOp::kSync ? 1 : 0;
      return std::nullopt;
    });
    ExpectConsistent(rig, rig.Run());
    return syncs;
  }

  TempDir dir_;
  const std::string log_ = dir_.Join("flushed");
};

TEST_F(FlushTest, HappensAfterSoManyRequestsAndAtTheEnd) {
  EXPECT_EQ(CountSyncs(0, 100), 0);
  EXPECT_EQ(CountSyncs(100, 90), 1);
  EXPECT_GE(CountSyncs(10, 95), 10);
  EXPECT_GT(CountSyncs(1, 50), CountSyncs(10, 50));
}

TEST_F(FlushTest, LogNamesEachBlockThatIsOnNvme) {
  std::ofstream(log_) << "5\n";
  Rig rig(Tiers(4, 8, 1u << 20), TraceOf({{1, 2}, {1, 3}, {}, {4}}), FlushEvery(2, log_));
  rig.Run([&](const ReplayResult& so_far) {
    if (so_far.requests == 1) {
      EXPECT_THAT(LinesOf(log_), ElementsAre("5"));
    } else if (so_far.requests == 2) {
      EXPECT_THAT(LinesOf(log_), ElementsAre("5", "1", "2", "3"));
    }
  });
  EXPECT_THAT(LinesOf(log_), ElementsAre("5", "1", "2", "3", "4"));
  for (uint64_t id : {1, 2, 3, 4}) EXPECT_TRUE(rig.tiers().OnNvme({1, id})) << id;
}

TEST_F(FlushTest, LogHoldsNothingOfAFlushThatFailed) {
  Rig rig(Tiers(0, 500, 16u << 20), SyntheticTrace(20), FlushEvery(5, log_));
  rig.device().FailWhen([](const IoRequest& request) {
    return request.op == IoOp::kSync ? std::optional<int>(EIO) : std::nullopt;
  });
  const ReplayResult& result = rig.Run();
  ExpectConsistent(rig, result);
  EXPECT_GE(result.failed_flushes, 4);
  EXPECT_THAT(LinesOf(log_), IsEmpty());
  EXPECT_THAT(rig.Text(), HasSubstr("Input/output error"));
}

TEST_F(FlushTest, WithoutAnNvmeTierIsNoFailure) {
  Rig rig(Tiers(10, 10, 0), SyntheticTrace(50), FlushEvery(1, log_));
  const ReplayResult& result = rig.Run();
  EXPECT_EQ(result.failed_flushes, 0);
  EXPECT_THAT(LinesOf(log_), IsEmpty());
}

TEST_F(FlushTest, LogThatCannotBeWrittenEndsTheReplay) {
  for (const std::string& path : {dir_.path(), dir_.Join("absent/log"), std::string("/dev/full")}) {
    Rig rig(Tiers(0, 500, 16u << 20), SyntheticTrace(20), FlushEvery(5, path));
    const absl::Status status = rig.replay().Run({});
    EXPECT_FALSE(status.ok());
    EXPECT_THAT(std::string(status.message()), HasSubstr(path));
    // What cannot even be opened is known before the first request.
    EXPECT_EQ(rig.replay().result().requests, path == "/dev/full" ? 5 : 0);
  }
}

}  // namespace
}  // namespace terrace
