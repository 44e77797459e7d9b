#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <fstream>
#include <memory>
#include <string>
#include <vector>

#include "tests/support/indexed_context.h"

// Contexts whose policies have an index: when it is made, what it does for attention, and what
// happens where it cannot be.
namespace terrace {
namespace {

using ::testing::HasSubstr;

// Clusters are read token by token where everything is in DRAM, and as a whole with NVMe.
struct Case {
  LookupKind kind;
  bool on_nvme;
};

class ContextIndexTest : public testing::TestWithParam<Case> {
 protected:
  LookupKind kind() const { return GetParam().kind; }
  RuntimeOptions CaseOptions() const {
    return GetParam().on_nvme ? OnNvme(Options(kind())) : Options(kind());
  }
};

TEST_P(ContextIndexTest, AttendsToLessAndComesCloserThanWithoutLookup) {
  ContextRig rig(CaseOptions());
  RuntimeOptions without = CaseOptions();
  without.lookup.kind = LookupKind::kStreaming;
  ContextRig streaming(without);
  const auto context = Filled(rig);
  EXPECT_LT(ErrorOf(rig, *context), 0.5 * ErrorOf(streaming, *Filled(streaming)));
  const LookupStats before = StatsOf(*context, kind());
  Decode(rig, *context);
  const LookupStats after = StatsOf(*context, kind());
  const uint64_t tokens = 32 * (after.blocks - before.blocks) + after.tokens - before.tokens;
  const size_t heads = rig.shape().layers * rig.shape().kv_heads;
  EXPECT_GT(tokens, heads * 32);
  EXPECT_LT(tokens, heads * 32 * kSealed / 2);
  EXPECT_GT(rig.runtime().Stats().index_bytes, 0u);
}

TEST_P(ContextIndexTest, ChunksOfAPromptAttendToEverything) {
  ContextRig rig(CaseOptions());
  const auto context = Filled(rig);
  Decode(rig, *context);  // which makes the index
  ASSERT_GT(rig.runtime().Stats().index_bytes, 0u);
  for (size_t layer = 0; layer < rig.shape().layers; ++layer) {
    ASSERT_TRUE(rig.Append(*context, layer, kChunk).ok());
    const std::vector<float> out = *rig.Attend(*context, layer, kTokens, kChunk);
    const std::vector<double> expected =
        rig.Expected(layer, kTokens, [](int64_t token) { return token <= kTokens; });
    EXPECT_LT(ContextRig::Error(absl::MakeConstSpan(out).first(expected.size()), expected), 1e-5);
  }
}

TEST_P(ContextIndexTest, WhatIsTooLittleToIndexIsAttendedToExactly) {
  RuntimeOptions options = CaseOptions();
  options.index_tail_tokens = 4096;
  ContextRig rig(options);
  const auto context = Filled(rig);
  EXPECT_LT(ErrorOf(rig, *context), 1e-5);
  EXPECT_EQ(rig.runtime().Stats().index_bytes, 0u);
  EXPECT_EQ(context->Stats().index_refusals, 0u);
  for (size_t layer = 0; layer < rig.shape().layers; ++layer) {
    ASSERT_TRUE(context->BuildIndex(layer).ok());
  }
  EXPECT_GT(rig.runtime().Stats().index_bytes, 0u);
  EXPECT_GT(ErrorOf(rig, *context), 1e-5) << "the index is used";
}

TEST_P(ContextIndexTest, WithoutMemoryForTheIndexAttentionIsExact) {
  RuntimeOptions options = CaseOptions();
  options.index_bytes = 1000;
  ContextRig rig(options);
  const auto context = Filled(rig);
  EXPECT_LT(ErrorOf(rig, *context), 1e-5);
  EXPECT_GT(context->Stats().index_refusals, 0u);
  EXPECT_THAT(std::string(context->BuildIndex(1).message()), HasSubstr("index_bytes"));
  EXPECT_EQ(rig.runtime().Stats().index_bytes, 0u);
}

TEST_P(ContextIndexTest, AllMemoryComesBack) {
  ContextRig rig(CaseOptions());
  for (int round = 0; round < 3; ++round) {
    auto context = Filled(rig);
    Decode(rig, *context);
    auto fork = *context->Fork(kTokens / 2);
    Decode(rig, *fork);
    ASSERT_TRUE(context->Truncate(kTokens / 3).ok());
    Decode(rig, *context);
  }
  EXPECT_EQ(rig.runtime().Stats().index_bytes, 0u);
  EXPECT_EQ(rig.runtime().Stats().columns, 0u);
  EXPECT_TRUE(rig.runtime().tiers().OwnedBlocks().empty());
}

TEST_P(ContextIndexTest, GoesOnRightAfterItWasRolledBackIntoWhatWasIndexed) {
  ContextRig rig(CaseOptions());
  const auto context = Filled(rig);
  Decode(rig, *context);
  const double before = ErrorOf(rig, *context);
  for (const int64_t tokens : {int64_t{990}, int64_t{700}, int64_t{120}, int64_t{0}}) {
    ASSERT_TRUE(context->Truncate(tokens).ok());
    ASSERT_TRUE(rig.Prefill(*context, kTokens, kChunk).ok());
    EXPECT_LT(ErrorOf(rig, *context), std::max(2 * before, 0.05)) << "from " << tokens;
  }
}

TEST_P(ContextIndexTest, AForkOutlivesItsOriginalAndBothGoTheirOwnWay) {
  ContextRig rig(CaseOptions());
  auto context = Filled(rig);
  Decode(rig, *context);
  const auto fork = *context->Fork(kTokens);
  const auto expected = Decode(rig, *context);
  EXPECT_EQ(Decode(rig, *fork), expected);
  ASSERT_TRUE(context->Truncate(600).ok());
  ASSERT_TRUE(rig.Prefill(*context, kTokens + 200, kChunk).ok());
  Decode(rig, *context);
  EXPECT_EQ(Decode(rig, *fork), expected);
  context.reset();
  EXPECT_EQ(Decode(rig, *fork), expected);
  EXPECT_EQ(fork->Stats().Total().AllLookups().lost_blocks, 0u);
}

TEST_P(ContextIndexTest, ASavedIndexIsUsedAndADamagedOneMadeAnew) {
  if (!GetParam().on_nvme) GTEST_SKIP() << "contexts are saved on NVMe";
  ContextRig rig(CaseOptions());
  auto context = Filled(rig);
  const auto expected = Decode(rig, *context);
  ASSERT_TRUE(context->Save("a").ok());
  context.reset();
  const std::string path = rig.options().tiers.nvme_dir + "/contexts/a.idx";
  ASSERT_TRUE(std::filesystem::exists(path));
  for (const bool damage : {false, true}) {
    rig.ReopenWith([&] {
      if (!damage) return;
      std::fstream file(path, std::ios::in | std::ios::out | std::ios::binary);
      file.seekp(static_cast<std::streamoff>(std::filesystem::file_size(path) / 2));
      file.put('x').put('y').put('z');
    });
    const auto loaded = rig.runtime().Load("a");
    ASSERT_TRUE(loaded.ok()) << loaded.status();
    EXPECT_EQ(rig.runtime().Stats().index_bytes > 0, !damage);
    const auto got = Decode(rig, **loaded);
    if (!damage) {
      EXPECT_EQ(got, expected);
    }
    EXPECT_LT(ErrorOf(rig, **loaded), 1);
    EXPECT_EQ((*loaded)->Stats().Total().AllLookups().lost_blocks, 0u);
  }
  ASSERT_TRUE(rig.runtime().Forget("a").ok());
  EXPECT_FALSE(std::filesystem::exists(path));
  EXPECT_TRUE(rig.runtime().tiers().OwnedBlocks().empty());
}

// An engine that attends to its prompts by itself shows what the queries were.
TEST_P(ContextIndexTest, ObservedQueriesMakeTheIndexThatAttendedOnesMake) {
  ContextRig rig(CaseOptions());
  auto attended = Filled(rig);
  const auto expected = Decode(rig, *attended);
  attended.reset();  // DRAM may have room for the tokens of one
  const auto observed = *rig.runtime().NewContext();
  for (size_t layer = 0; layer < rig.shape().layers; ++layer) {
    for (int64_t position = 0; position < kTokens; position += kChunk) {
      ASSERT_TRUE(rig.Append(*observed, layer, kChunk).ok());
      std::vector<float> queries;
      std::vector<int64_t> positions;
      for (size_t i = 0; i < kChunk; ++i) {
        positions.push_back(position + static_cast<int64_t>(i));
        const std::vector<float> row = rig.Queries(layer, positions.back());
        queries.insert(queries.end(), row.begin(), row.end());
      }
      ASSERT_TRUE(
          observed->ObserveQueries(layer, {.queries = queries.data(), .positions = positions})
              .ok());
    }
  }
  EXPECT_EQ(Decode(rig, *observed), expected);
  EXPECT_FALSE(observed->ObserveQueries(2, {}).ok());
  EXPECT_FALSE(observed->ObserveQueries(0, {}).ok());
}

INSTANTIATE_TEST_SUITE_P(Kinds, ContextIndexTest,
                         testing::Values(Case{LookupKind::kGraph, false},
                                         Case{LookupKind::kGraph, true},
                                         Case{LookupKind::kCluster, false},
                                         Case{LookupKind::kCluster, true}),
                         [](const auto& info) {
                           return std::string(LookupKindName(info.param.kind)) +
                                  (info.param.on_nvme ? "OnNvme" : "InDram");
                         });

TEST(GraphContextTest, WithoutRoomInDramAttentionIsExact) {
  RuntimeOptions options = OnNvme(Options(LookupKind::kGraph));
  options.tiers.dram_bytes = 24 * options.BlockBytes();
  ContextRig rig(options);
  const auto context = Filled(rig);
  EXPECT_LT(ErrorOf(rig, *context), 1e-5);
  EXPECT_GT(context->Stats().index_refusals, 0u);
  EXPECT_THAT(std::string(context->BuildIndex(0).message()), HasSubstr("dram_bytes"));
}

// What was pinned for a graph that found no memory is let go, and is no part of a later one.
TEST(GraphContextTest, AGraphThatFoundNoMemoryLeavesNothingBehind) {
  RuntimeOptions options = Options(LookupKind::kGraph);
  options.index_tail_tokens = 128;
  // Less than one layer needs for 26 blocks of 2 heads, 242,688, and more than two for 10, 206,848.
  options.index_bytes = 220000;
  ContextRig rig(options);
  const auto context = Filled(rig);
  EXPECT_LT(ErrorOf(rig, *context), 1e-5) << "no room";
  EXPECT_GT(context->Stats().index_refusals, 0u);
  ASSERT_TRUE(context->Truncate(400).ok());
  ASSERT_TRUE(rig.Step(*context, 1).ok());
  EXPECT_GT(StatsOf(*context, LookupKind::kGraph).tokens, 0u) << "fewer tokens find room";
  RuntimeOptions alone = options;
  alone.index_bytes = 0;
  ContextRig other(alone);
  const auto same = Filled(other, 401);
  // As good as a context that never had more.
  EXPECT_LT(ErrorOf(rig, *context), 1.5 * ErrorOf(other, *same));
}

TEST(GraphContextTest, AnIdleContextLeavesDramToOthers) {
  RuntimeOptions options = Options(LookupKind::kGraph);
  options.tiers.dram_bytes = 150 * options.BlockBytes();  // of one context and little more
  options.tiers.nvme_bytes = kNvmeBytes;
  ContextRig rig(options);
  const auto first = Filled(rig);
  const auto expected = Decode(rig, *first);
  ASSERT_EQ(first->Stats().index_refusals, 0u);
  ASSERT_TRUE(first->Park().ok());
  const auto second = Filled(rig);
  Decode(rig, *second);
  EXPECT_EQ(second->Stats().index_refusals, 0u);
  ASSERT_TRUE(second->Park().ok());
  EXPECT_EQ(Decode(rig, *first), expected);
}

TEST(IndexOptionsTest, BadOnesAreNamed) {
  const auto message = [](const LookupOptions& lookup) {
    RuntimeOptions options = SmallRuntime();
    options.lookup = lookup;
    return std::string(Runtime::Open(options).status().message());
  };
  LookupOptions lookup = {.kind = LookupKind::kGraph};
  lookup.keys = 0;
  EXPECT_THAT(message(lookup), HasSubstr("keys: 0"));
  lookup.kind = LookupKind::kCluster;
  for (const double share : {0.0, -1.0, 1.5, std::nan("")}) {
    lookup.share = share;
    EXPECT_THAT(message(lookup), HasSubstr("share: "));
  }
  lookup.share = 0.5;
  lookup.min_share = std::nan("");
  EXPECT_THAT(message(lookup), HasSubstr("min_share: "));
  lookup.min_share = 0;
  lookup.patience = -absl::Seconds(1);
  EXPECT_THAT(message(lookup), HasSubstr("patience: -1s"));
  RuntimeOptions options = SmallRuntime();
  options.lookup = {.kind = LookupKind::kCluster};
  options.shape.key_state = KeyState::kBeforeRope;
  EXPECT_THAT(std::string(Runtime::Open(options).status().message()),
              HasSubstr("cluster does not take keys"));
}

}  // namespace
}  // namespace terrace
