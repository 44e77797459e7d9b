#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <limits>
#include <numeric>
#include <thread>

#include "runtime/prefix_cache.h"
#include "tests/support/context_rig.h"

namespace terrace {
namespace {

// The keys of a rig follow from the position, so equal positions stand for equal tokens here.
std::vector<int32_t> Tokens(int32_t count) {
  std::vector<int32_t> tokens(static_cast<size_t>(count));
  std::iota(tokens.begin(), tokens.end(), 1000);
  return tokens;
}

void RunTokens(ContextRig& rig, Context& context, absl::Span<const int32_t> tokens) {
  const auto known = static_cast<size_t>(context.tokens());
  ASSERT_TRUE(context.AddTokenIds(static_cast<int64_t>(known), tokens.subspan(known)).ok());
  ASSERT_TRUE(rig.Prefill(context, static_cast<int64_t>(tokens.size()), 96).ok());
}

void ExpectExact(ContextRig& rig, Context& context) {
  const int64_t position = context.tokens() - 1;
  const auto out = rig.Attend(context, 1, position, 1);
  ASSERT_TRUE(out.ok()) << out.status();
  EXPECT_LE(ContextRig::Error(*out, rig.Expected(1, position, [](int64_t) { return true; })), 1e-3);
}

class PrefixTest : public ::testing::TestWithParam<LookupKind> {
 protected:
  static RuntimeOptions Options() {
    RuntimeOptions options = SmallRuntime();
    options.lookup = {.kind = GetParam(), .blocks = 1000};
    options.tiers.dram_bytes = 64 * options.BlockBytes();
    options.tiers.nvme_bytes = 16 << 20;
    return options;
  }
};

TEST_P(PrefixTest, ALaterContextBeginsWithWhatAnEarlierOneSealed) {
  ContextRig rig(Options());
  const std::vector<int32_t> tokens = Tokens(400);
  {
    auto first = *rig.runtime().NewContext(tokens);
    EXPECT_EQ(first->tokens(), 0);
    RunTokens(rig, *first, tokens);
  }
  auto second = *rig.runtime().NewContext(tokens);
  // The window of the first was never sealed.
  EXPECT_EQ(second->tokens(), 320);
  EXPECT_EQ(second->Stats().prefix_tokens, 320u);
  RunTokens(rig, *second, tokens);
  ExpectExact(rig, *second);
}

TEST_P(PrefixTest, LiveContextsShareTheirBlocks) {
  ContextRig rig(Options());
  const std::vector<int32_t> tokens = Tokens(400);
  auto first = *rig.runtime().NewContext(tokens);
  RunTokens(rig, *first, tokens);
  const size_t columns = rig.runtime().Stats().columns;
  auto second = *rig.runtime().NewContext(tokens);
  RunTokens(rig, *second, tokens);
  EXPECT_EQ(rig.runtime().Stats().columns, columns);
  first.reset();
  ExpectExact(rig, *second);
}

TEST_P(PrefixTest, ADivergingPromptSharesUpToTheTokenWhereItDiverges) {
  ContextRig rig(Options());
  std::vector<int32_t> tokens = Tokens(400);
  auto first = *rig.runtime().NewContext(tokens);
  RunTokens(rig, *first, tokens);
  tokens[205] = 7;  // in the middle of a block
  auto second = *rig.runtime().NewContext(tokens);
  EXPECT_EQ(second->tokens(), 205);
  ASSERT_TRUE(rig.Step(*second, 1).ok());
  ExpectExact(rig, *second);
  tokens[0] = 7;
  auto third = *rig.runtime().NewContext(tokens);
  EXPECT_EQ(third->tokens(), 0);
}

TEST_P(PrefixTest, TheLastTokenIsLeftToTheEngine) {
  ContextRig rig(Options());
  const std::vector<int32_t> tokens = Tokens(400);
  auto first = *rig.runtime().NewContext(tokens);
  RunTokens(rig, *first, tokens);
  auto second = *rig.runtime().NewContext(absl::MakeConstSpan(tokens).first(320));
  EXPECT_EQ(second->tokens(), 319);
  ASSERT_TRUE(rig.Step(*second, 1).ok());
  ExpectExact(rig, *second);
}

TEST_P(PrefixTest, SurvivesARestart) {
  ContextRig rig(Options());
  const std::vector<int32_t> tokens = Tokens(400);
  auto first = *rig.runtime().NewContext(tokens);
  RunTokens(rig, *first, tokens);
  first.reset();
  ASSERT_TRUE(rig.runtime().tiers().Flush().ok());
  rig.Reopen();
  auto second = *rig.runtime().NewContext(tokens);
  EXPECT_EQ(second->tokens(), 320);
  RunTokens(rig, *second, tokens);
  ExpectExact(rig, *second);
}

TEST_P(PrefixTest, WhatWasEvictedIsNoHit) {
  RuntimeOptions options = Options();
  options.tiers.dram_bytes = 60 * options.BlockBytes();
  options.tiers.nvme_bytes = 0;
  ContextRig rig(options);
  const std::vector<int32_t> tokens = Tokens(400);
  auto first = *rig.runtime().NewContext(tokens);
  RunTokens(rig, *first, tokens);
  first.reset();
  std::vector<int32_t> others = tokens;
  for (int32_t& token : others) token += 100000;
  auto other = *rig.runtime().NewContext(others);
  RunTokens(rig, *other, others);
  other.reset();
  auto second = *rig.runtime().NewContext(tokens);
  EXPECT_LT(second->tokens(), 320);
  RunTokens(rig, *second, absl::MakeConstSpan(tokens).first(380));
  ExpectExact(rig, *second);
}

INSTANTIATE_TEST_SUITE_P(Lookups, PrefixTest,
                         ::testing::Values(LookupKind::kFull, LookupKind::kQuest),
                         [](const auto& info) { return LookupKindName(info.param); });

TEST(PrefixNames, AStepThatIsTriedAgainNamesItsTokensOnce) {
  ContextRig rig(SmallRuntime());
  const std::vector<int32_t> tokens = Tokens(400);
  const absl::Span<const int32_t> chunk = absl::MakeConstSpan(tokens).first(96);
  const auto context = *rig.runtime().NewContext();
  const std::vector<float> bad(96 * size_t{rig.shape().kv_heads} * rig.shape().head_dim,
                               std::numeric_limits<float>::infinity());
  for (int attempt = 0; attempt < 2; ++attempt) {
    ASSERT_TRUE(context->AddTokenIds(0, chunk).ok());
    ASSERT_FALSE(context->Append(0, {.keys = bad.data(), .values = bad.data(), .tokens = 96}).ok());
  }
  RunTokens(rig, *context, tokens);
  EXPECT_EQ(context->TokenIds(), tokens);
  std::vector<int32_t> twice(chunk.begin(), chunk.end());
  twice.insert(twice.end(), chunk.begin(), chunk.end());
  twice.push_back(5);
  EXPECT_LE((*rig.runtime().NewContext(twice))->tokens(), 96) << "no context began like this";
  EXPECT_GT((*rig.runtime().NewContext(tokens))->tokens(), 96);
}

TEST(PrefixNames, WhatContradictsTheTokensThatAreThereIsRefused) {
  ContextRig rig(SmallRuntime());
  const std::vector<int32_t> tokens = Tokens(50);
  const auto context = *rig.runtime().NewContext();
  EXPECT_TRUE(absl::IsInvalidArgument(context->AddTokenIds(1, tokens)));
  EXPECT_TRUE(absl::IsInvalidArgument(context->AddTokenIds(-1, tokens)));
  RunTokens(rig, *context, tokens);
  EXPECT_TRUE(context->AddTokenIds(0, tokens).ok()) << "the same again";
  const int32_t other = 7;
  EXPECT_TRUE(absl::IsInvalidArgument(context->AddTokenIds(49, {&other, 1})));
  EXPECT_EQ(context->TokenIds(), tokens);
}

TEST(PrefixSharing, ContextsThatPushEachOtherOutOfMemoryBeginWithTheirPrefixes) {
  RuntimeOptions options = SmallRuntime();
  options.active_contexts = 2;
  ContextRig rig(options);
  const std::vector<int32_t> tokens = Tokens(400);
  auto first = *rig.runtime().NewContext();
  RunTokens(rig, *first, tokens);
  std::vector<std::thread> threads;
  for (int i = 0; i < 4; ++i) {
    threads.emplace_back([&] {
      for (int round = 0; round < 100; ++round) {
        auto context = rig.runtime().NewContext(tokens);
        if (context.ok()) {
          EXPECT_EQ((*context)->tokens(), 320);
        } else {
          EXPECT_TRUE(absl::IsResourceExhausted(context.status())) << context.status();
        }
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
}

// A rig whose runtime looks up nothing saves 1400 of the tokens, and reopens with one that does.
class LookupChangeTest : public ::testing::Test {
 protected:
  LookupChangeTest() : rig_(Options()) {
    auto saved = *rig_.runtime().NewContext();
    RunTokens(rig_, *saved, absl::MakeConstSpan(tokens_).first(1400));
    EXPECT_TRUE(saved->Save("x").ok());
    saved.reset();
    rig_.ReopenWith([] {},
                    [](RuntimeOptions& changed) {
                      changed.lookup = {.kind = LookupKind::kInfllm, .blocks = 4};
                    });
  }

  static RuntimeOptions Options() {
    RuntimeOptions options = SmallRuntime();
    options.shape.key_state = KeyState::kBeforeRope;
    options.tiers.nvme_bytes = 64 << 20;
    options.lookup = {.kind = LookupKind::kStreaming};
    options.active_contexts = 8;
    return options;
  }
  // Of a context that computed and summarised everything itself.
  std::vector<std::vector<float>> StepAt(int64_t tokens) {
    auto context = *rig_.runtime().NewContext();
    EXPECT_TRUE(rig_.Prefill(*context, tokens, 96).ok());
    return *rig_.Step(*context, 1);
  }

  const std::vector<int32_t> tokens_ = Tokens(1500);
  ContextRig rig_;
};

TEST_F(LookupChangeTest, APrefixOfASavedContextIsLookedUpAsIfItWasComputed) {
  auto context = *rig_.runtime().NewContext(tokens_);
  ASSERT_GT(context->tokens(), 1000);
  const std::vector<std::vector<float>> expected = StepAt(context->tokens());
  EXPECT_EQ(*rig_.Step(*context, 1), expected);
}

TEST_F(LookupChangeTest, ContextsThatComeAtTheSameTimeAllWaitForTheSummaries) {
  constexpr size_t kThreads = 6;
  const std::vector<std::vector<float>> of_prefix = StepAt(1280);
  const std::vector<std::vector<float>> of_all = StepAt(1400);
  std::vector<std::vector<std::vector<float>>> got(kThreads);
  std::vector<std::thread> threads;
  for (size_t i = 0; i < kThreads; ++i) {
    threads.emplace_back([&, i] {
      auto context = i % 2 == 0 ? rig_.runtime().NewContext(tokens_) : rig_.runtime().Load("x");
      ASSERT_TRUE(context.ok()) << context.status();
      EXPECT_EQ((*context)->tokens(), i % 2 == 0 ? 1280 : 1400);
      got[i] = *rig_.Step(**context, 1);
    });
  }
  for (std::thread& thread : threads) thread.join();
  for (size_t i = 0; i < kThreads; ++i) EXPECT_EQ(got[i], i % 2 == 0 ? of_prefix : of_all) << i;
}

TEST(PrefixChain, KeysFollowFromAllTokensBefore) {
  const std::vector<int32_t> a = {1, 2, 3};
  const std::vector<int32_t> b = {1, 2, 4};
  const ColumnKey root = ChainRoot(1, 0);
  EXPECT_EQ(ChainNext(root, a), ChainNext(root, a));
  EXPECT_FALSE(ChainNext(root, a) == ChainNext(root, b));
  EXPECT_FALSE(ChainNext(ChainNext(root, a), a) == ChainNext(ChainNext(root, b), a));
  EXPECT_FALSE(root == ChainRoot(2, 0));
  EXPECT_FALSE(root == ChainRoot(1, 1));
}

}  // namespace
}  // namespace terrace
