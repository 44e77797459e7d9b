#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <memory>
#include <string>
#include <tuple>
#include <vector>

#include "tests/support/context_rig.h"

// What every lookup promises, wherever its blocks are.
namespace terrace {
namespace {

using ::testing::Pointwise;

constexpr int64_t kTokens = 408;
constexpr size_t kChunk = 68;
constexpr size_t kBlocks = 10;  // that have left the window of the token behind them
constexpr int kSteps = 10;      // in which one more block leaves it
constexpr size_t kBudget = 3;
constexpr uint64_t kNvmeBytes = 16 << 20;

constexpr LookupOptions kFull = {.kind = LookupKind::kFull};
constexpr LookupOptions kStreaming = {.kind = LookupKind::kStreaming};
constexpr LookupOptions kQuest = {.kind = LookupKind::kQuest, .page_tokens = 8};
constexpr LookupOptions kGraph = {.kind = LookupKind::kGraph};
constexpr LookupOptions kCluster = {.kind = LookupKind::kCluster};
constexpr LookupOptions kInfllm = {.kind = LookupKind::kInfllm, .blocks = 1000};

struct Lookup {
  const char* name;
  KeyState keys = KeyState::kAfterRope;
  LookupOptions usual = {};
  std::vector<LookupOverride> overrides = {};
};

std::vector<Lookup> AllLookups() {
  using enum KeyState;
  return {
      {"Full", kAfterRope, kFull},
      {"Streaming", kAfterRope, kStreaming},
      {"StreamingBeforeRope", kBeforeRope, kStreaming},
      {"Quest", kAfterRope, kQuest},
      {"Infllm", kBeforeRope, kInfllm},
      {"PublishedInfllm", kBeforeRope, PublishedInfllm(kBudget)},
      {"Graph", kAfterRope, kGraph},
      {"Cluster", kAfterRope, kCluster},
      {"MixOfIndexes", kAfterRope, kCluster, {{0, {}, kGraph}, {1, 1, kGraph}, {2, 1, kQuest}}},
      {"MixAfterRope", kAfterRope, kQuest, {{0, {}, kFull}, {{}, 1, kStreaming}, {2, 1, kQuest}}},
      {"MixBeforeRope", kBeforeRope, kInfllm, {{1, {}, PublishedInfllm(1)}, {2, 1, kStreaming}}}};
}

// To attend to as much as so many blocks have. Of the blocks, all but the first are indexed.
void SetBudget(LookupOptions& lookup, size_t blocks) {
  lookup.blocks = blocks;
  lookup.keys = blocks * 32;
  lookup.share = std::min(1.0, static_cast<double>(blocks) / (kBlocks - 1));
  lookup.min_share = 0;
}

// A row for each query head: its output and, last, its lse.
using Rows = std::vector<std::vector<float>>;

// Steps of one token; with none of them, the last token once more.
Rows Decode(const ContextRig& rig, Context& context, int steps = 1) {
  Rows rows;
  for (int step = 0; step < std::max(steps, 1); ++step) {
    for (size_t layer = 0; layer < rig.shape().layers; ++layer) {
      EXPECT_TRUE(steps == 0 || rig.Append(context, layer, 1).ok());
      std::vector<float> lse;
      const auto out = *rig.Attend(context, layer, context.tokens(layer) - 1, 1, &lse);
      for (size_t head = 0; head < lse.size(); ++head) {
        const auto from = out.begin() + static_cast<ptrdiff_t>(head * rig.shape().head_dim);
        rows.emplace_back(from, from + rig.shape().head_dim).push_back(lse[head]);
      }
    }
  }
  return rows;
}

// Only the newest tokens attend, which is quicker: those that a window still holds.
std::unique_ptr<Context> Filled(ContextRig& rig, int64_t tokens = kTokens, size_t chunk = kChunk) {
  auto context = *rig.runtime().NewContext();
  for (size_t layer = 0; layer < rig.shape().layers; ++layer) {
    while (context->tokens(layer) < tokens - static_cast<int64_t>(kChunk)) {
      EXPECT_TRUE(rig.Append(*context, layer, chunk).ok());
    }
  }
  EXPECT_TRUE(rig.Prefill(*context, tokens, chunk).ok());
  return context;
}

Rows DecodeWith(const RuntimeOptions& options) {
  ContextRig rig(options);
  return Decode(rig, *Filled(rig));
}

// By lookup and whether most of its blocks are on NVMe.
class LookupConformance : public testing::TestWithParam<std::tuple<Lookup, bool>> {
 protected:
  static RuntimeOptions Options(size_t budget = kBudget) {
    const auto& [lookup, on_nvme] = GetParam();
    RuntimeOptions options = SmallRuntime();
    options.shape.layers = 3;
    options.shape.query_heads = 6;
    options.shape.key_state = lookup.keys;
    options.lookup = lookup.usual;
    options.overrides = lookup.overrides;
    options.index_tail_tokens = 32;
    SetBudget(options.lookup, budget);
    for (LookupOverride& change : options.overrides) SetBudget(change.lookup, budget);
    if (on_nvme) options.tiers.dram_bytes = 16 * options.BlockBytes();
    if (on_nvme) options.tiers.nvme_bytes = kNvmeBytes;
    return options;
  }
  static bool HasIndex() {
    for (uint32_t i = 0; i < 3 * 2; ++i) {
      const LookupKind kind = Options().LookupOf(i / 2, i % 2).kind;
      if (kind == LookupKind::kGraph || kind == LookupKind::kCluster) return true;
    }
    return false;
  }
};

TEST_P(LookupConformance, TheNumberOfThreadsChangesNothing) {
  std::array<Rows, 4> chunks, steps;
  for (const size_t threads : {1, 2, 3}) {
    RuntimeOptions options = Options();
    options.threads = threads;
    ContextRig rig(options);
    const auto context = Filled(rig);
    chunks[threads] = *rig.Step(*context, kChunk);
    steps[threads] = Decode(rig, *context, kSteps);
    EXPECT_EQ(chunks[threads], chunks[1]) << threads << " threads";
    EXPECT_EQ(steps[threads], steps[1]) << threads << " threads";
  }
}

// How much DRAM there is decides how many blocks come in one fetch, and so the order of sums. Which
// blocks are in it must not show at all.
TEST_P(LookupConformance, ACallRepeatedGivesTheSameWhereverItsBlocksAre) {
  RuntimeOptions options = Options();
  const bool on_nvme = std::get<1>(GetParam());
  if (!on_nvme) options.tiers.dram_bytes = 130 * options.BlockBytes();  // of a context and more
  options.tiers.nvme_bytes = kNvmeBytes;
  ContextRig rig(options);
  const auto context = Filled(rig);
  const Rows expected = Decode(rig, *context);
  EXPECT_EQ(Decode(rig, *context, 0), expected);
  const LookupStats before = context->Stats().Total().AllLookups();
  EXPECT_EQ(before.fetched_bytes > 0, on_nvme && before.blocks > 0);
  const auto other = Filled(rig, 2 * kTokens);  // takes the place of those in DRAM
  EXPECT_EQ(Decode(rig, *context, 0), expected);
  const LookupStats after = context->Stats().Total().AllLookups();
  EXPECT_EQ(after.fetched_bytes > before.fetched_bytes, after.blocks > 0);
}

TEST_P(LookupConformance, WhatIsCountedAddsUpAndKeepsToItsLimits) {
  for (const size_t budget : {kBudget, kBlocks}) {
    ContextRig rig(Options(budget));
    const auto fork = *Filled(rig)->Fork(kTokens);  // counts from nothing
    Decode(rig, *fork);
    const size_t clusters = std::min(budget, kBlocks - 1);
    // Where DRAM has no room for its keys, there is no graph.
    const bool on_nvme = std::get<1>(GetParam());
    const size_t graph = on_nvme ? kBlocks : 1;
    // Without NVMe clusters are read token by token.
    const size_t cluster = on_nvme ? 1 + clusters : 1;
    const std::array<size_t, kLookupKinds> budgets = {kBlocks, 0, budget, budget, graph, cluster};
    std::array<size_t, kLookupKinds> blocks = {};
    for (uint32_t i = 0; i < 3 * 2; ++i) {  // layers and KV heads
      const auto kind = static_cast<size_t>(rig.options().LookupOf(i / 2, i % 2).kind);
      blocks[kind] += budgets[kind];
    }
    for (size_t kind = 0; kind < kLookupKinds; ++kind) {
      const LookupStats stats = fork->Stats().Total().lookups[kind];
      const uint64_t nvme_hits = stats.hits[static_cast<size_t>(Tier::kNvme)];
      EXPECT_EQ(stats.blocks, blocks[kind]) << "kind " << kind;
      EXPECT_EQ(stats.hits[static_cast<size_t>(Tier::kDram)] + nvme_hits, stats.blocks);
      EXPECT_EQ(stats.fetched_bytes, nvme_hits * rig.options().BlockBytes());
      EXPECT_EQ(stats.lost_blocks, 0u);
      // A share of attention, and none where nothing is left out or nothing is looked up.
      const auto queries = static_cast<double>(stats.missed_mass_queries);
      EXPECT_LE(stats.missed_mass, queries);
      EXPECT_EQ(stats.missed_mass > 0, budget < kBlocks && queries > 0);
      EXPECT_TRUE(queries == 0 || kind > static_cast<size_t>(LookupKind::kStreaming));
      EXPECT_EQ(stats.late_blocks, 0u);
      const bool reads_tokens = kind == static_cast<size_t>(LookupKind::kGraph) ||
                                kind == static_cast<size_t>(LookupKind::kCluster);
      EXPECT_EQ(stats.tokens > 0, reads_tokens && blocks[kind] > 0 && !on_nvme);
    }
  }
}

// More tokens have a larger sum: at least that of sinks and window, at most that of all.
TEST_P(LookupConformance, LseIsBetweenStreamingAndEverythingWhichABudgetForAllBlocksReaches) {
  RuntimeOptions options = Options();
  options.tiers = SmallRuntime().tiers;
  options.overrides.clear();
  options.lookup = kStreaming;
  const Rows streaming = DecodeWith(options);
  options.lookup = options.shape.key_state == KeyState::kAfterRope ? kFull : kInfllm;
  options.sink_tokens = 0;  // so that none can count as a sink and in its block
  const Rows everything = DecodeWith(options);
  const Rows got = DecodeWith(Options());
  const Rows most = DecodeWith(Options(kBlocks));
  EXPECT_EQ(DecodeWith(Options(1000)), most);
  for (uint32_t row = 0; row < got.size(); ++row) {
    EXPECT_GE(got[row].back(), streaming[row].back() - 1e-5) << "row " << row;
    const LookupOptions lookup = Options().LookupOf(row / 6, row % 6 / 3);
    // What is estimated may be taken for more than it is.
    const double most_more = lookup.kind == LookupKind::kCluster ? 0.2 : 1e-5;
    EXPECT_LE(got[row].back(), everything[row].back() + most_more) << "row " << row;
    const Rows& same = lookup.kind == LookupKind::kStreaming ? streaming : everything;
    EXPECT_THAT(most[row], Pointwise(testing::FloatNear(1e-5F), same[row])) << "row " << row;
  }
}

// Any mean of equal values is that value.
TEST_P(LookupConformance, TheOutputIsAMeanOfTheValuesOfItsHead) {
  ContextRig rig(Options());
  const auto context = *rig.runtime().NewContext();
  std::vector<float> values(2 * 32);  // [KV heads, head_dim]
  for (size_t i = 0; i < values.size(); ++i) values[i] = static_cast<float>(i) / 16 - 2;
  for (int64_t token = 0; token < kTokens; ++token) {
    const std::vector<float> keys = rig.Keys(1, token);
    const KvInput input = {.keys = keys.data(), .values = values.data(), .tokens = 1};
    ASSERT_TRUE(context->Append(1, input).ok());
  }
  const std::vector<float> out = *rig.Attend(*context, 1, kTokens - 1, 1);
  const double most = HasIndex() ? 0.01 : 1e-5;  // means of clusters have 8 bits
  for (size_t i = 0; i < out.size(); ++i) {
    EXPECT_NEAR(out[i], values[i / (3 * 32) * 32 + i % 32], most) << "element " << i;
  }
}

TEST_P(LookupConformance, AnIdleForkAndASavedContextGoOnAsTheOriginal) {
  RuntimeOptions options = Options();
  options.tiers.nvme_bytes = kNvmeBytes;
  ContextRig rig(options);
  auto context = Filled(rig);
  auto fork = *context->Fork(kTokens);
  ASSERT_TRUE(fork->Park().ok());
  ASSERT_TRUE(context->Save("a").ok());
  const Rows expected = Decode(rig, *context, kSteps);
  EXPECT_EQ(Decode(rig, *fork, kSteps), expected);
  context.reset();
  fork.reset();
  rig.Reopen();
  const auto loaded = rig.runtime().Load("a");
  ASSERT_TRUE(loaded.ok()) << loaded.status();
  EXPECT_EQ(Decode(rig, **loaded, kSteps), expected);
}

// Masses of queries that were rolled back stay, so where they count no block may be sealed again.
TEST_P(LookupConformance, TokensThatComeAgainGiveTheSame) {
  ContextRig rig(Options());
  const auto context = Filled(rig);
  const Rows expected = Decode(rig, *context);
  // As do queries that indexes are made for.
  const bool keeps = Options().LookupOf(1, 0).pooled || HasIndex();
  for (const int64_t tokens : {kTokens - 5, keeps ? kTokens - 6 : int64_t{10}}) {
    const auto fork = *context->Fork(tokens);
    ASSERT_TRUE(context->Truncate(tokens).ok());
    for (Context* const again : {fork.get(), context.get()}) {
      ASSERT_TRUE(rig.Prefill(*again, kTokens, kChunk).ok());
      EXPECT_EQ(Decode(rig, *again), expected) << "from " << tokens << " tokens";
    }
  }
}

TEST_P(LookupConformance, ABatchGivesEachWhatItHasAlone) {
  ContextRig rig(Options());
  const std::array<int64_t, 3> positions = {89, 271, kTokens - 1};
  std::array<std::unique_ptr<Context>, 3> contexts;
  std::array<std::vector<float>, 3> queries, alone, together;
  std::vector<BatchedAttend> batch;
  for (size_t i = 0; i < contexts.size(); ++i) {
    contexts[i] = Filled(rig, positions[i] + 1);
    alone[i] = *rig.Attend(*contexts[i], 1, positions[i], 1);
    queries[i] = rig.Queries(1, positions[i]);
    together[i].resize(queries[i].size());
    batch.push_back({.context = contexts[i].get(),
                     .input = {.queries = queries[i].data(), .positions = {&positions[i], 1}},
                     .output = {.out = absl::MakeSpan(together[i])}});
  }
  ASSERT_TRUE(rig.runtime().Attend(1, batch).ok());
  EXPECT_EQ(together, alone);
}

// The queries of a chunk look up together, so while it comes only heads without lookups agree.
// What is indexed, and in which segments, depends on when it was worth it, so indexes are asked for
// everything.
TEST_P(LookupConformance, ChunksLeaveWhatSingleTokensLeave) {
  ContextRig rig(Options(HasIndex() ? 1000 : kBudget));
  const auto singles = Filled(rig, kTokens, 1);
  const auto chunks = Filled(rig, kTokens);
  const Rows of_chunk = *rig.Step(*chunks, kChunk);
  Rows of_singles(of_chunk.size());
  for (size_t i = 0; i < kChunk; ++i) {
    const Rows step = *rig.Step(*singles, 1);
    for (size_t layer = 0; layer < step.size(); ++layer) {
      of_singles[layer].insert(of_singles[layer].end(), step[layer].begin(), step[layer].end());
    }
  }
  const bool looks_up = rig.options().lookup.kind > LookupKind::kStreaming;
  for (size_t layer = 0; layer < of_chunk.size() && !looks_up; ++layer) {
    EXPECT_THAT(of_chunk[layer], Pointwise(testing::FloatNear(1e-5F), of_singles[layer])) << layer;
  }
  const Rows after_chunk = Decode(rig, *chunks);
  const Rows after_singles = Decode(rig, *singles);
  for (size_t row = 0; row < after_chunk.size(); ++row) {
    EXPECT_THAT(after_chunk[row],
                Pointwise(testing::FloatNear(HasIndex() ? 1e-5F : 0.0F), after_singles[row]))
        << row;
  }
}

TEST_P(LookupConformance, EveryHeadAttendsToItsSinksAndItsWindow) {
  ContextRig rig(Options());
  const auto context = *rig.runtime().NewContext();
  uint64_t expected = 0;
  for (int64_t position = 0; position < 200; ++position) {
    Decode(rig, *context);
    const int64_t begin = std::max<int64_t>(0, position + 1 - 64) / 32 * 32;
    expected += 6 * (position + 1 - begin + std::min<int64_t>(begin, 4));  // 3 layers, 2 KV heads
    EXPECT_EQ(context->Stats().Total().local_tokens, expected) << "at position " << position;
  }
}

INSTANTIATE_TEST_SUITE_P(Lookups, LookupConformance,
                         testing::Combine(testing::ValuesIn(AllLookups()), testing::Bool()),
                         [](const auto& info) {
                           const std::string name = std::get<0>(info.param).name;
                           return name + (std::get<1>(info.param) ? "MostlyOnNvme" : "InDram");
                         });

}  // namespace
}  // namespace terrace
