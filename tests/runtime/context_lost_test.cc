#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/support/context_rig.h"

namespace terrace {
namespace {

// Recomputes lost tokens as an engine would, and puts them back.
absl::Status Recompute(const ContextRig& rig, Context& context, const LostTokens& lost) {
  std::vector<float> keys;
  std::vector<float> values;
  for (int64_t token = lost.first; token < lost.first + lost.count; ++token) {
    const std::vector<float> key = rig.Keys(lost.layer, token);
    const std::vector<float> value = rig.Values(lost.layer, token);
    keys.insert(keys.end(), key.begin(), key.end());
    values.insert(values.end(), value.begin(), value.end());
  }
  return context.Refill(
      lost.layer, lost.first,
      {.keys = keys.data(), .values = values.data(), .tokens = static_cast<size_t>(lost.count)});
}

TEST(ContextLost, AStepCompletesWithoutLostBlocksAndNamesThem) {
  ContextRig rig(SmallRuntime());
  const auto context = *rig.runtime().NewContext();
  ASSERT_TRUE(rig.Prefill(*context, 400, 96).ok());
  const std::vector<BlockId> blocks = rig.runtime().tiers().OwnedBlocks();
  rig.runtime().tiers().Drop(absl::MakeConstSpan(blocks).first(5));
  const auto outputs = rig.Step(*context, 1);
  ASSERT_TRUE(outputs.ok()) << outputs.status();
  const std::vector<LostTokens> lost = context->Lost();
  ASSERT_EQ(lost.size(), 5u);
  for (const LostTokens& one : lost) {
    EXPECT_EQ(one.count, 32);
    EXPECT_EQ(one.first % 32, 0);
  }
  EXPECT_EQ(context->Stats().Total().AllLookups().lost_blocks, 5u);
  // Each head that lost nothing is exact, and each that did is exact over what is left.
  for (uint32_t layer = 0; layer < rig.shape().layers; ++layer) {
    const size_t rows = rig.shape().group() * rig.shape().head_dim;
    for (uint32_t head = 0; head < rig.shape().kv_heads; ++head) {
      const auto is_left = [&](int64_t token) {
        return std::none_of(lost.begin(), lost.end(), [&](const LostTokens& one) {
          return one.layer == layer && one.kv_head == head && token >= one.first &&
                 token < one.first + one.count && token >= 4;  // sinks are in memory
        });
      };
      const std::vector<double> expected = rig.Expected(layer, 400, is_left);
      EXPECT_LE(ContextRig::Error(absl::MakeConstSpan((*outputs)[layer]).subspan(head * rows, rows),
                                  absl::MakeConstSpan(expected).subspan(head * rows, rows)),
                1e-3)
          << "layer " << layer << ", KV head " << head;
    }
  }
}

TEST(ContextLost, WhatTheEngineRecomputesIsThereAgain) {
  ContextRig rig(SmallRuntime());
  const auto context = *rig.runtime().NewContext();
  ASSERT_TRUE(rig.Prefill(*context, 400, 96).ok());
  const std::vector<BlockId> blocks = rig.runtime().tiers().OwnedBlocks();
  rig.runtime().tiers().Drop(blocks);
  ASSERT_TRUE(rig.Step(*context, 1).ok());
  EXPECT_EQ(context->Lost().size(), blocks.size());
  for (const LostTokens& lost : context->Lost()) {
    const absl::Status status = Recompute(rig, *context, lost);
    ASSERT_TRUE(status.ok()) << status;
  }
  EXPECT_TRUE(context->Lost().empty());
  ASSERT_TRUE(rig.Step(*context, 1).ok());
  const auto out = rig.Attend(*context, 1, 401, 1);
  EXPECT_LE(ContextRig::Error(*out, rig.Expected(1, 401, [](int64_t) { return true; })), 1e-3);
  EXPECT_TRUE(context->Lost().empty());
}

TEST(ContextLost, RefillTakesWholeBlocksBelowTheWindowOnly) {
  ContextRig rig(SmallRuntime());
  const auto context = *rig.runtime().NewContext();
  ASSERT_TRUE(rig.Prefill(*context, 400, 96).ok());
  EXPECT_TRUE(absl::IsInvalidArgument(Recompute(rig, *context, {.first = 16, .count = 32})));
  EXPECT_TRUE(absl::IsInvalidArgument(Recompute(rig, *context, {.first = 0, .count = 31})));
  EXPECT_TRUE(absl::IsInvalidArgument(Recompute(rig, *context, {.first = 384, .count = 32})));
}

// A prefix that a live context shares, and blocks of it that the tiers lost.
class LostPrefixTest : public ::testing::Test {
 protected:
  LostPrefixTest() : rig_(SmallRuntime()) {
    for (int32_t i = 0; i < 800; ++i) tokens_.push_back(i);
    first_ = Compute();
    blocks_ = rig_.runtime().tiers().OwnedBlocks();
  }

  // A context that computes 700 tokens without looking for a prefix.
  std::unique_ptr<Context> Compute() {
    auto context = *rig_.runtime().NewContext();
    EXPECT_TRUE(context->AddTokenIds(0, absl::MakeConstSpan(tokens_).first(700)).ok());
    EXPECT_TRUE(rig_.Prefill(*context, 700, 96).ok());
    return context;
  }

  ContextRig rig_;
  std::vector<int32_t> tokens_;
  std::unique_ptr<Context> first_;
  std::vector<BlockId> blocks_;
};

TEST_F(LostPrefixTest, IsNoHitEvenWhileAContextHoldsIt) {
  EXPECT_EQ((*rig_.runtime().NewContext(tokens_))->tokens(), 608);
  rig_.runtime().tiers().Drop(blocks_);
  const auto context = *rig_.runtime().NewContext(tokens_);
  EXPECT_EQ(context->tokens(), 0);
  ASSERT_TRUE(rig_.Step(*context, 1).ok());
  EXPECT_TRUE(context->Lost().empty());
}

TEST_F(LostPrefixTest, IsWholeAgainOnceAContextComputedIt) {
  const size_t columns = rig_.runtime().Stats().columns;
  for (const size_t lost : {size_t{3}, blocks_.size()}) {
    rig_.runtime().tiers().Drop(absl::MakeConstSpan(blocks_).first(lost));
    const auto second = Compute();
    ASSERT_TRUE(rig_.Step(*second, 1).ok());
    EXPECT_TRUE(second->Lost().empty());
    EXPECT_EQ(rig_.runtime().Stats().columns, columns);
    EXPECT_EQ((*rig_.runtime().NewContext(tokens_))->tokens(), 608);
  }
  // Whoever had it has it again.
  const auto out = rig_.Attend(*first_, 1, 699, 1);
  EXPECT_LE(ContextRig::Error(*out, rig_.Expected(1, 699, [](int64_t) { return true; })), 1e-3);
  EXPECT_TRUE(first_->Lost().empty());
}

TEST(ContextLost, AWindowLostWhileIdleIsSaidAndDoesNoOtherHarm) {
  ContextRig rig(SmallRuntime());
  const auto context = *rig.runtime().NewContext();
  ASSERT_TRUE(rig.Prefill(*context, 60, 60).ok());
  ASSERT_TRUE(context->Park().ok());
  rig.runtime().tiers().Drop(rig.runtime().tiers().OwnedBlocks());
  const auto outputs = rig.Step(*context, 1);
  EXPECT_TRUE(absl::IsDataLoss(outputs.status())) << outputs.status();
  EXPECT_TRUE(absl::IsFailedPrecondition(rig.Step(*context, 1).status()));
  const auto other = *rig.runtime().NewContext();
  EXPECT_TRUE(rig.Prefill(*other, 60, 60).ok());
}

}  // namespace
}  // namespace terrace
