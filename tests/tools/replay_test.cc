#include "tools/replay.h"

#include <array>
#include <atomic>
#include <cstdint>
#include <memory>
#include <numeric>
#include <optional>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/support/temp_dir.h"
#include "tests/support/textbook_lru.h"
#include "tests/tools/replay_rig.h"

namespace terrace {
namespace {

using ::testing::HasSubstr;

ReplayOptions Paced(double pace) {
  ReplayOptions options;
  options.pace = pace;
  return options;
}

ReplayOptions SeededWith(uint64_t seed) {
  ReplayOptions options;
  options.seed = seed;
  return options;
}

// --- One tier: the textbook ---

class OneTierTest : public ::testing::TestWithParam<std::tuple<Tier, size_t>> {};

TEST_P(OneTierTest, ReusesWhatTheTextbookLruDoes) {
  const auto [tier, capacity] = GetParam();
  for (uint64_t seed = 1; seed <= 3; ++seed) {
    SCOPED_TRACE(absl::StrCat("seed ", seed));
    Rig rig(tier == Tier::kHbm ? Tiers(capacity, 0, 0) : Tiers(0, capacity, 0),
            SyntheticTrace(600, seed));
    TextbookLru lru(capacity);
    uint64_t expected = 0;
    for (const TraceRequest& request : rig.trace().requests()) {
      for (uint64_t id : rig.trace().hash_ids(request)) expected += lru.Touch(id) ? 1 : 0;
    }
    const ReplayResult& result = rig.Run();
    ExpectConsistent(rig, result);
    EXPECT_EQ(result.reused_blocks, expected);
    EXPECT_EQ(result.hits[static_cast<size_t>(tier)], expected);
    if (capacity >= 1000) {
      EXPECT_GT(expected, 0);
    }
  }
}

std::string OneTierName(const ::testing::TestParamInfo<OneTierTest::ParamType>& info) {
  return absl::StrCat(TierName(std::get<0>(info.param)), "_", std::get<1>(info.param), "_blocks");
}

INSTANTIATE_TEST_SUITE_P(Capacities, OneTierTest,
                         ::testing::Combine(::testing::Values(Tier::kHbm, Tier::kDram),
                                            ::testing::Values(1, 40, 1000, 5000)),
                         OneTierName);

// --- Every combination of tiers ---

// Bit 0 is HBM, bit 1 DRAM, bit 2 NVMe.
class TierCombinationTest : public ::testing::TestWithParam<int> {
 protected:
  bool has(Tier tier) const { return (GetParam() >> static_cast<int>(tier) & 1) != 0; }
};

TEST_P(TierCombinationTest, ServesEveryByteAndCountsEveryBlock) {
  Rig rig(Tiers(has(Tier::kHbm) ? 200 : 0, has(Tier::kDram) ? 600 : 0,
                has(Tier::kNvme) ? 16u << 20 : 0),
          SyntheticTrace(800));
  const ReplayResult& result = rig.Run([&](const ReplayResult& so_far) {
    const TierStats stats = rig.tiers().Stats();
    ASSERT_LE(stats.nvme_peak_bytes, stats.tiers[2].capacity_bytes);
    for (const TierStats::PerTier& tier : stats.tiers) ASSERT_LE(tier.blocks, tier.slots);
    ASSERT_EQ(so_far.block_refs, so_far.reused_blocks + so_far.computed_blocks);
  });
  ExpectConsistent(rig, result);
  EXPECT_EQ(result.unstored_blocks, 0);
  EXPECT_EQ(result.failed_flushes, 0);
  EXPECT_EQ(rig.tiers().Stats().placement.lost_blocks, 0);
  for (Tier tier : {Tier::kHbm, Tier::kDram, Tier::kNvme}) {
    EXPECT_EQ(result.hits[static_cast<size_t>(tier)] > 0, has(tier)) << TierName(tier);
  }
}

// The smallest tiers there are: a request that is larger than all of them together streams through.
TEST_P(TierCombinationTest, StreamsRequestsThroughTiersOfAFewBlocks) {
  // Two superblocks, two segments of a group of one block and a footer, two manifest records each.
  constexpr uint64_t kSmallestNvme = 12 * kPageBytes;
  std::vector<uint64_t> long_prompt(300);
  std::iota(long_prompt.begin(), long_prompt.end(), 1000);
  for (uint64_t blocks = 1; blocks <= 4; ++blocks) {
    SCOPED_TRACE(absl::StrCat(blocks, " blocks a tier"));
    Rig rig(Tiers(has(Tier::kHbm) ? blocks : 0, has(Tier::kDram) ? blocks : 0,
                  has(Tier::kNvme) ? kSmallestNvme * blocks : 0),
            TraceOf({long_prompt, {1, 2, 3, 4}, {1}, {1}, long_prompt, long_prompt, {7}, {7}}));
    const ReplayResult& result = rig.Run();
    ExpectConsistent(rig, result);
    EXPECT_GE(result.reused_blocks, 1);
  }
}

TEST_P(TierCombinationTest, MakesTheSameChoicesEveryTime) {
  std::optional<std::array<uint64_t, kTierCount>> first;
  for (int round = 0; round < 3; ++round) {
    Rig rig(Tiers(has(Tier::kHbm) ? 100 : 0, has(Tier::kDram) ? 300 : 0,
                  has(Tier::kNvme) ? 8u << 20 : 0),
            SyntheticTrace(400));
    const ReplayResult& result = rig.Run();
    if (!first) first = result.hits;
    EXPECT_EQ(result.hits, *first);
  }
}

std::string CombinationName(const ::testing::TestParamInfo<int>& info) {
  std::string name;
  for (Tier tier : {Tier::kHbm, Tier::kDram, Tier::kNvme}) {
    if ((info.param >> static_cast<int>(tier) & 1) != 0) absl::StrAppend(&name, TierName(tier));
  }
  return name;
}

INSTANTIATE_TEST_SUITE_P(All, TierCombinationTest, ::testing::Range(1, 8), CombinationName);

// --- Every device ---

TEST(ReplayTest, ReusesTheSameBlocksOnEveryEngineWithAndWithoutThePageCache) {
  constexpr uint64_t kNvmeBytes = 16u << 20;
  Rig reference(Tiers(100, 300, kNvmeBytes), SyntheticTrace(800));
  const std::array<uint64_t, kTierCount> expected = reference.Run().hits;
  EXPECT_GT(expected[2], 0);
  const TempDir dir;
  const std::atomic<bool> stop = false;
  for (IoEngine engine : {IoEngine::kAuto, IoEngine::kThreads}) {
    for (bool direct_io : {true, false}) {
      SCOPED_TRACE(absl::StrCat(IoEngineName(engine), direct_io ? ", direct" : ", page cache"));
      TierManagerOptions options = Tiers(100, 300, kNvmeBytes);
      options.nvme_dir = dir.path();
      options.engine = engine;
      options.direct_io = direct_io;
      absl::StatusOr<std::unique_ptr<TierManager>> tiers = TierManager::Open(options);
      ASSERT_TRUE(tiers.ok()) << tiers.status();
      Replay replay(**tiers, reference.trace(), stop, ReplayOptions());
      ASSERT_TRUE(replay.Run({}).ok());
      ExpectConsistent(reference, replay.result());
      EXPECT_EQ(replay.result().hits, expected);
      EXPECT_EQ((*tiers)->Stats().placement.lost_blocks, 0);
    }
  }
}

// --- Odd traces ---

TEST(ReplayTest, TakesRequestsWithoutBlocksAndWithRepeatedOnes) {
  for (int mask = 1; mask < 8; ++mask) {
    Rig rig(Tiers((mask & 1) != 0 ? 3 : 0, (mask & 2) != 0 ? 3 : 0, (mask & 4) != 0 ? 1 << 20 : 0),
            TraceOf({{}, {5, 5, 5}, {5, 5, 5}, {}, {6, 5, 6, 5, 6, 5, 6, 5}, {6, 5, 6, 5}, {}}));
    ExpectConsistent(rig, rig.Run());
  }
  Rig empty(Tiers(1, 0, 0), Trace());
  ExpectConsistent(empty, empty.Run());
}

TEST(ReplayTest, KeepsBlocksOfDifferentSeedsApart) {
  Rig rig(Tiers(0, 100, 0), TraceOf({{1, 2, 3}}));
  EXPECT_EQ(rig.Run().reused_blocks, 0);
  std::atomic<bool> stop = false;
  for (const auto& [seed, reused] : {std::pair(uint64_t{2}, 0u), std::pair(uint64_t{1}, 3u)}) {
    Replay replay(rig.tiers(), rig.trace(), stop, SeededWith(seed));
    EXPECT_TRUE(replay.Run({}).ok());
    EXPECT_EQ(replay.result().reused_blocks, reused);
    EXPECT_EQ(replay.result().corrupt_blocks, 0);
  }
}

// --- Stopping and waiting ---

TEST(ReplayTest, StopsAfterTheRequestAtHandAndStillFlushes) {
  Rig rig(Tiers(0, 500, 16u << 20), SyntheticTrace(50));
  const ReplayResult& result = rig.Run([&](const ReplayResult& so_far) {
    if (so_far.requests == 3) rig.stop() = true;
  });
  EXPECT_TRUE(result.interrupted);
  EXPECT_EQ(result.requests, 3);
  EXPECT_EQ(result.block_refs, result.reused_blocks + result.computed_blocks);
  EXPECT_GT(rig.tiers().Stats().nvme_written_bytes, 0);
  EXPECT_THAT(rig.Text(), HasSubstr("Interrupted"));
}

TEST(ReplayTest, StopsWhileItWaitsForAnArrivalInTheFarFuture) {
  Trace trace;
  for (int64_t timestamp_ms : {int64_t{0}, INT64_MAX}) {
    TraceLine line;
    line.timestamp_ms = timestamp_ms;
    line.hash_ids = {1};
    trace.Append(line);
  }
  Rig rig(Tiers(0, 5, 0), std::move(trace), Paced(1));
  EXPECT_EQ(rig.Run([&](const ReplayResult&) { rig.stop() = true; }).requests, 1);
  EXPECT_TRUE(rig.replay().result().interrupted);
}

TEST(ReplayTest, PaceKeepsToTheClockOfTheTrace) {
  Trace trace;
  // Back in time means that the request is late already.
  for (int64_t timestamp_ms : {900'000, 930'000, 0, 960'000}) {
    TraceLine line;
    line.timestamp_ms = timestamp_ms;
    line.hash_ids = {1};
    trace.Append(line);
  }
  Rig rig(Tiers(0, 5, 0), std::move(trace), Paced(1000));
  const ReplayResult& result = rig.Run();
  ExpectConsistent(rig, result);
  EXPECT_GE(result.wall_seconds, 0.06);
}

}  // namespace
}  // namespace terrace
