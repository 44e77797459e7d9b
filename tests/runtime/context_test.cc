#include "runtime/context.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <numeric>
#include <thread>

#include "tests/support/context_rig.h"

namespace terrace {
namespace {

using ::testing::HasSubstr;

constexpr double kTolerance = 1e-3;

bool Everything(int64_t) { return true; }

// Compares the last position of each layer with attention over all tokens.
void ExpectFullAttention(ContextRig& rig, Context& context) {
  const int64_t position = context.tokens() - 1;
  for (size_t layer = 0; layer < rig.shape().layers; ++layer) {
    const auto out = rig.Attend(context, layer, position, 1);
    ASSERT_TRUE(out.ok()) << out.status();
    EXPECT_LE(ContextRig::Error(*out, rig.Expected(layer, position, Everything)), kTolerance)
        << "layer " << layer << " of " << position + 1 << " tokens";
  }
}

TEST(ContextFull, AttendsToEveryTokenAtEveryLength) {
  ContextRig rig(SmallRuntime());
  const auto context = rig.runtime().NewContext();
  ASSERT_TRUE(context.ok()) << context.status();
  for (const int64_t tokens : {1, 2, 5, 31, 32, 33, 64, 96, 97, 130, 200, 300}) {
    ASSERT_TRUE(rig.Prefill(**context, tokens, 96).ok());
    ExpectFullAttention(rig, **context);
  }
}

TEST(ContextFull, AllQueriesOfAChunkSeeWhatIsBeforeThem) {
  ContextRig rig(SmallRuntime());
  const auto context = rig.runtime().NewContext();
  ASSERT_TRUE(rig.Prefill(**context, 150, 96).ok());
  const auto outputs = rig.Step(**context, 96);
  ASSERT_TRUE(outputs.ok()) << outputs.status();
  const size_t row = rig.shape().query_heads * rig.shape().head_dim;
  for (const size_t i : {0u, 1u, 40u, 41u, 95u}) {
    EXPECT_LE(ContextRig::Error(absl::MakeConstSpan((*outputs)[1]).subspan(i * row, row),
                                rig.Expected(1, 150 + static_cast<int64_t>(i), Everything)),
              kTolerance)
        << "query " << i;
  }
}

TEST(ContextFull, IsTheSameWithMostOfItOnNvme) {
  RuntimeOptions options = SmallRuntime();
  options.tiers.dram_bytes = 8 * options.BlockBytes();
  options.tiers.nvme_bytes = 16 << 20;
  ContextRig rig(options);
  const auto context = rig.runtime().NewContext();
  ASSERT_TRUE(rig.Prefill(**context, 700, 96).ok());
  for (int i = 0; i < 3; ++i) {
    ASSERT_TRUE(rig.Step(**context, 1).ok());
    ExpectFullAttention(rig, **context);
  }
  const LayerStats stats = (*context)->Stats().Total();
  EXPECT_GT(stats.AllLookups().hits[static_cast<size_t>(Tier::kNvme)], 0u);
  EXPECT_EQ(stats.AllLookups().lost_blocks, 0u);
}

TEST(ContextFull, DoesNotDependOnTheNumberOfThreads) {
  std::vector<std::vector<std::vector<float>>> outputs;
  for (const size_t threads : {1u, 2u}) {
    RuntimeOptions options = SmallRuntime();
    options.threads = threads;
    ContextRig rig(options);
    const auto context = rig.runtime().NewContext();
    ASSERT_TRUE(rig.Prefill(**context, 500, 96).ok());
    outputs.push_back(*rig.Step(**context, 3));
  }
  EXPECT_EQ(outputs[0], outputs[1]);
}

TEST(ContextFull, TakesEveryDtypeAndStoresEveryDtype) {
  for (const KvDtype dtype : {KvDtype::kFloat32, KvDtype::kFloat16, KvDtype::kBfloat16}) {
    RuntimeOptions options = SmallRuntime();
    options.shape.dtype = dtype;
    options.tiers.dram_bytes *= 2;
    ContextRig rig(options);
    const auto context = rig.runtime().NewContext();
    ASSERT_TRUE(rig.Prefill(**context, 200, 96).ok());
    ExpectFullAttention(rig, **context);
  }
}

TEST(ContextStreaming, SeesSinksAndWindowOnly) {
  RuntimeOptions options = SmallRuntime();
  options.lookup.kind = LookupKind::kStreaming;
  ContextRig rig(options);
  const auto context = rig.runtime().NewContext();
  ASSERT_TRUE(rig.Prefill(**context, 400, 50).ok());
  const auto outputs = rig.Step(**context, 70);
  ASSERT_TRUE(outputs.ok());
  const size_t row = rig.shape().query_heads * rig.shape().head_dim;
  for (const int64_t position : {400, 430, 469}) {
    const int64_t begin = (position + 1 - 64) / 32 * 32;
    const auto sees = [&](int64_t token) { return token < 4 || token >= begin; };
    EXPECT_LE(
        ContextRig::Error(absl::MakeConstSpan((*outputs)[1]).subspan((position - 400) * row, row),
                          rig.Expected(1, position, sees)),
        kTolerance)
        << "position " << position;
  }
}

TEST(ContextQuest, IsExactWhileTheBudgetCoversEverything) {
  RuntimeOptions options = SmallRuntime();
  options.lookup = {.kind = LookupKind::kQuest, .blocks = 1000};
  ContextRig rig(options);
  const auto context = rig.runtime().NewContext();
  ASSERT_TRUE(rig.Prefill(**context, 300, 96).ok());
  ExpectFullAttention(rig, **context);
}

TEST(ContextQuest, FindsTheBlockThatHoldsTheStrongestKey) {
  RuntimeOptions options = SmallRuntime();
  options.lookup = {.kind = LookupKind::kQuest, .blocks = 2, .page_tokens = 8};
  ContextRig rig(options);
  const auto context = rig.runtime().NewContext();
  ASSERT_TRUE(rig.Prefill(**context, 1500, 96).ok());
  const ContextStats before = (*context)->Stats();
  ASSERT_TRUE(rig.Step(**context, 1).ok());
  const LookupStats lookups =
      (*context)->Stats().layers[0].lookups[static_cast<size_t>(LookupKind::kQuest)];
  const LookupStats earlier = before.layers[0].lookups[static_cast<size_t>(LookupKind::kQuest)];
  EXPECT_EQ(lookups.blocks - earlier.blocks, 2 * rig.shape().kv_heads);
  EXPECT_EQ(lookups.missed_mass_queries - earlier.missed_mass_queries, rig.shape().query_heads);
  EXPECT_GT(lookups.missed_mass, earlier.missed_mass);
}

TEST(ContextInfllm, TakesKeysBeforeRopeOnly) {
  RuntimeOptions options = SmallRuntime();
  options.lookup.kind = LookupKind::kInfllm;
  const auto runtime = Runtime::Open(options);
  ASSERT_FALSE(runtime.ok());
  EXPECT_THAT(runtime.status().message(), HasSubstr("infllm does not take keys after RoPE"));
}

TEST(Context, TruncatedIsAsIfTheTokensHadNeverBeen) {
  RuntimeOptions options = SmallRuntime();
  options.shape.dtype = KvDtype::kFloat32;
  options.tiers.dram_bytes = 16 * options.BlockBytes();
  options.tiers.nvme_bytes = 32 << 20;
  ContextRig rig(options);
  for (const int64_t tokens : {0, 1, 40, 200, 290, 299}) {
    const auto context = rig.runtime().NewContext();
    ASSERT_TRUE(rig.Prefill(**context, 300, 96).ok());
    const absl::Status status = (*context)->Truncate(tokens);
    ASSERT_TRUE(status.ok()) << status;
    EXPECT_EQ((*context)->tokens(), tokens);
    ASSERT_TRUE(rig.Prefill(**context, tokens + 40, 40).ok());
    ExpectFullAttention(rig, **context);
    ASSERT_TRUE(rig.Prefill(**context, tokens + 200, 96).ok());
    ExpectFullAttention(rig, **context);
  }
}

TEST(Context, AForkGoesItsOwnWayAndLeavesTheOther) {
  RuntimeOptions options = SmallRuntime();
  options.tiers.dram_bytes = 64 * options.BlockBytes();
  options.tiers.nvme_bytes = 32 << 20;
  ContextRig rig(options);
  const auto context = rig.runtime().NewContext();
  ASSERT_TRUE(rig.Prefill(**context, 500, 96).ok());
  for (const int64_t tokens : {500, 499, 470, 250, 33, 0}) {
    const auto fork = (*context)->Fork(tokens);
    ASSERT_TRUE(fork.ok()) << fork.status();
    EXPECT_EQ((*fork)->tokens(), tokens);
    ASSERT_TRUE(rig.Prefill(**fork, tokens + 100, 96).ok());
    ExpectFullAttention(rig, **fork);
    ExpectFullAttention(rig, **context);
  }
}

TEST(Context, MoreContextsThanWindowsInMemoryTakeTurns) {
  RuntimeOptions options = SmallRuntime();
  options.active_contexts = 2;
  options.tiers.dram_bytes = 64 * options.BlockBytes();
  options.tiers.nvme_bytes = 64 << 20;
  ContextRig rig(options);
  std::vector<std::unique_ptr<Context>> contexts;
  for (int i = 0; i < 5; ++i) {
    contexts.push_back(*rig.runtime().NewContext());
    ASSERT_TRUE(rig.Prefill(*contexts.back(), 100 + 40 * i, 96).ok());
  }
  for (int round = 0; round < 2; ++round) {
    for (const auto& context : contexts) {
      ASSERT_TRUE(rig.Step(*context, 3).ok());
      ExpectFullAttention(rig, *context);
    }
  }
  EXPECT_GT(contexts[0]->Stats().parks, 0u);
}

TEST(Context, SeveralThreadsUseSeveralContexts) {
  RuntimeOptions options = SmallRuntime();
  options.active_contexts = 3;
  options.tiers.dram_bytes = 64 * options.BlockBytes();
  options.tiers.nvme_bytes = 64 << 20;
  ContextRig rig(options);
  std::vector<std::thread> threads;
  for (int i = 0; i < 4; ++i) {
    threads.emplace_back([&rig, i] {
      auto context = rig.runtime().NewContext();
      while (!context.ok()) context = rig.runtime().NewContext();  // all windows at work
      for (int64_t tokens = 50; tokens < 300; tokens += 50 + i) {
        absl::Status status;
        do {
          status = rig.Prefill(**context, tokens, 96);
        } while (absl::IsResourceExhausted(status));
        ASSERT_TRUE(status.ok()) << status;
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
}

TEST(Context, ABatchGivesEachWhatItWouldHaveAlone) {
  ContextRig rig(SmallRuntime());
  std::vector<std::unique_ptr<Context>> contexts;
  std::vector<std::vector<float>> queries;
  std::vector<std::vector<float>> outs;
  std::vector<std::vector<int64_t>> positions;
  for (int i = 0; i < 3; ++i) {
    contexts.push_back(*rig.runtime().NewContext());
    ASSERT_TRUE(rig.Prefill(*contexts.back(), 90 + 150 * i, 96).ok());
    positions.push_back({contexts.back()->tokens() - 1});
    queries.push_back(rig.Queries(0, positions.back()[0]));
    outs.emplace_back(queries.back().size());
  }
  std::vector<BatchedAttend> batch;
  for (size_t i = 0; i < contexts.size(); ++i) {
    batch.push_back({.context = contexts[i].get(),
                     .input = {.queries = queries[i].data(), .positions = positions[i]},
                     .output = {.out = absl::MakeSpan(outs[i])}});
  }
  ASSERT_TRUE(rig.runtime().Attend(0, batch).ok());
  for (size_t i = 0; i < contexts.size(); ++i) {
    EXPECT_EQ(outs[i], *rig.Attend(*contexts[i], 0, positions[i][0], 1));
  }
}

TEST(ContextErrors, BadInputIsNamed) {
  ContextRig rig(SmallRuntime());
  const auto context = rig.runtime().NewContext();
  const size_t heads = rig.shape().kv_heads * rig.shape().head_dim;
  std::vector<float> rows(2 * heads, 1.0f);
  const KvInput input = {.keys = rows.data(), .values = rows.data(), .tokens = 2};
  EXPECT_THAT((*context)->Append(2, input).message(), HasSubstr("layer 2"));
  EXPECT_THAT(
      (*context)->Append(0, {.keys = rows.data(), .values = rows.data(), .tokens = 97}).message(),
      HasSubstr("97 tokens at once"));
  rows[heads + 33] = std::numeric_limits<float>::quiet_NaN();
  EXPECT_THAT((*context)->Append(0, input).message(),
              HasSubstr("keys of layer 0: token 1, KV head 1, element 1 is not finite as fp16"));
  rows[heads + 33] = 1e6f;  // beyond fp16
  EXPECT_TRUE(absl::IsInvalidArgument((*context)->Append(0, input)));
  EXPECT_EQ((*context)->tokens(0), 0);
  rows[heads + 33] = 0;
  ASSERT_TRUE((*context)->Append(0, input).ok());

  std::vector<float> queries(rig.shape().query_heads * rig.shape().head_dim, 1.0f);
  std::vector<float> out(queries.size());
  const auto attend = [&](std::vector<int64_t> positions, absl::Span<float> to) {
    return (*context)->Attend(0, {.queries = queries.data(), .positions = positions}, {.out = to});
  };
  EXPECT_THAT(attend({2}, absl::MakeSpan(out)).message(),
              HasSubstr("query position 2 is not above -1 and below the 2 tokens"));
  EXPECT_THAT(attend({1}, absl::MakeSpan(out).first(3)).message(), HasSubstr("not 3"));
  queries[70] = std::numeric_limits<float>::infinity();
  EXPECT_THAT(attend({1}, absl::MakeSpan(out)).message(),
              HasSubstr("position 1, query head 2, element 6 is not finite"));
  EXPECT_TRUE(absl::IsInvalidArgument((*context)->Truncate(1)));  // layer 1 has no token
  EXPECT_TRUE(absl::IsFailedPrecondition((*context)->Save("half a step")));
  (*context)->Drop();
  EXPECT_TRUE(absl::IsFailedPrecondition((*context)->Append(0, input)));
}

TEST(ContextErrors, ALongerContextThanTheTiersHoldIsRefusedAndSaysWhere) {
  RuntimeOptions options = SmallRuntime();
  options.tiers.dram_bytes = 8 * options.BlockBytes();
  ContextRig rig(options);
  const auto context = rig.runtime().NewContext();
  const absl::Status status = rig.Prefill(**context, 1000, 32);
  EXPECT_TRUE(absl::IsResourceExhausted(status)) << status;
  EXPECT_THAT(status.message(), HasSubstr("layer 0"));
  // What it has is still right.
  const int64_t tokens = (*context)->tokens();
  ASSERT_GT(tokens, 64);
  EXPECT_TRUE((*context)->Truncate(tokens).ok());
  ExpectFullAttention(rig, **context);
}

}  // namespace
}  // namespace terrace
