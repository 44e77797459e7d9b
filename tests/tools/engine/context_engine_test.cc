// The reference engine on a context of Terrace, against its own attention.

#include <algorithm>
#include <cmath>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "gtest/gtest.h"
#include "runtime/runtime.h"
#include "tests/support/temp_dir.h"
#include "tests/tools/engine/tiny_llama.h"
#include "tools/engine/byte_tokenizer.h"
#include "tools/engine/context_attention.h"
#include "tools/engine/input_file.h"
#include "tools/engine/sampler.h"

namespace terrace {
namespace {

constexpr size_t kPromptTokens = 1400;
constexpr size_t kBlockTokens = 64;
constexpr int kSteps = 12;

float LargestDifference(const std::vector<float>& a, const std::vector<float>& b) {
  EXPECT_EQ(a.size(), b.size());
  float largest = 0;
  for (size_t i = 0; i < a.size(); ++i) largest = std::max(largest, std::abs(a[i] - b[i]));
  return largest;
}

// The logits after each step, and the tokens that they come to.
struct Decoded {
  std::vector<std::vector<float>> logits;
  std::vector<int32_t> tokens;
};

class ContextEngineTest : public TinyLlamaTest {
 protected:
  void SetUp() override {
    TinyLlamaTest::SetUp();
    if (IsSkipped() || HasFatalFailure()) return;
    const absl::StatusOr<std::string> text = ReadWholeFile(Join("eval.txt"), 1 << 20);
    ASSERT_TRUE(text.ok()) << text.status();
    prompt_ = EncodeText(text->substr(0, kPromptTokens - 1));
  }

  // With full lookup. Of the keys and values of the prompt, DRAM holds `dram_share`.
  std::unique_ptr<Runtime> Open(KvDtype dtype, double dram_share) {
    absl::StatusOr<ModelShape> shape = ShapeOf(engine_->config(), dtype, LookupKind::kFull);
    EXPECT_TRUE(shape.ok()) << shape.status();
    RuntimeOptions options;
    options.shape = *shape;
    options.tokens_per_block = kBlockTokens;
    options.sink_tokens = 4;
    options.window_tokens = 128;
    options.threads = 2;
    const auto blocks = static_cast<size_t>(dram_share * kPromptTokens / kBlockTokens *
                                            shape->layers * shape->kv_heads);
    options.tiers.dram_bytes = blocks * options.BlockBytes();
    if (dram_share < 1) {
      options.tiers.nvme_bytes = uint64_t{64} << 20;
      options.tiers.nvme_dir = dir_.path();
    }
    auto runtime = Runtime::Open(options);
    EXPECT_TRUE(runtime.ok()) << runtime.status();
    return *std::move(runtime);
  }

  // Runs the prompt from where the source is, then a few steps greedily.
  Decoded Prefill(AttentionSource& source) {
    Forward({absl::MakeConstSpan(prompt_).first(kPromptTokens - 1), 0, LogitsOf::kNone}, source);
    return Decode(source);
  }
  Decoded Decode(AttentionSource& source) {
    Decoded decoded;
    int32_t token = prompt_.back();
    for (int64_t i = 0; i < kSteps; ++i) {
      const ForwardStep step = {absl::MakeConstSpan(&token, 1), Count(prompt_) - 1 + i};
      decoded.logits.push_back(Forward(step, source));
      token = LikeliestToken(decoded.logits.back());
      decoded.tokens.push_back(token);
    }
    return decoded;
  }

  static void ExpectSame(const Decoded& got, const Decoded& expected) {
    EXPECT_EQ(got.tokens, expected.tokens);
    for (size_t i = 0; i < kSteps; ++i) {
      ASSERT_LE(LargestDifference(got.logits[i], expected.logits[i]), 1e-3) << "step " << i;
    }
  }

  const TempDir dir_;
  std::vector<int32_t> prompt_;
};

TEST_F(ContextEngineTest, FullLookupIsPlainAttentionWhereverTheBlocksAre) {
  for (const KvDtype dtype : {KvDtype::kFloat32, KvDtype::kFloat16, KvDtype::kBfloat16}) {
    const auto plain = Attention(kPromptTokens + kSteps, dtype);
    const Decoded expected = Prefill(*plain);
    for (const double dram_share : {2.0, 0.1}) {
      const auto runtime = Open(dtype, dram_share);
      const auto context = *runtime->NewContext();
      ContextAttention attention(*context, KeyState::kAfterRope);
      const Decoded got = Prefill(attention);
      SCOPED_TRACE(KvDtypeName(dtype));
      // Where elements are rounded, a difference in the last place of fp32 may round another way.
      if (dtype == KvDtype::kFloat32) {
        ExpectSame(got, expected);
      } else {
        EXPECT_EQ(got.tokens, expected.tokens);
      }
      RecordProperty(std::string(KvDtypeName(dtype)) + "_logit_difference",
                     std::to_string(LargestDifference(got.logits.back(), expected.logits.back())));
      const LookupStats lookups = context->Stats().Total().AllLookups();
      EXPECT_EQ(lookups.lost_blocks, 0u);
      EXPECT_EQ(lookups.fetched_bytes > 0, dram_share < 1);
    }
  }
}

TEST_F(ContextEngineTest, AForkIsAnotherContinuation) {
  const auto plain = Attention(kPromptTokens + kSteps);
  const Decoded expected = Prefill(*plain);
  const auto runtime = Open(KvDtype::kFloat32, 0.1);
  const auto context = *runtime->NewContext();
  ContextAttention attention(*context, KeyState::kAfterRope);
  Prefill(attention);
  const auto fork = context->Fork(kPromptTokens - 1);
  ASSERT_TRUE(fork.ok()) << fork.status();
  ContextAttention of_fork(**fork, KeyState::kAfterRope);
  ExpectSame(Decode(of_fork), expected);
  ASSERT_TRUE(attention.Truncate(kPromptTokens - 1).ok());
  ExpectSame(Decode(attention), expected);
}

// Keeps the keys and values of one layer that pass through.
class Recorder : public AttentionSource {
 public:
  Recorder(AttentionSource& source, size_t layer) : source_(source), layer_(layer) {}
  bool rotated() const override { return source_.rotated(); }
  absl::Status Attend(const AttentionStep& step) override {
    if (step.layer == layer_) {
      keys.insert(keys.end(), step.key.begin(), step.key.end());
      values.insert(values.end(), step.value.begin(), step.value.end());
    }
    return source_.Attend(step);
  }
  absl::Status Truncate(int64_t tokens) override { return source_.Truncate(tokens); }

  std::vector<float> keys;    // [tokens, kv_heads, head_dim]
  std::vector<float> values;  // the same

 private:
  AttentionSource& source_;
  const size_t layer_;
};

TEST_F(ContextEngineTest, ALostBlockStopsNothingAndCanBeRecomputed) {
  const auto plain = Attention(kPromptTokens + kSteps);
  const Decoded expected = Prefill(*plain);
  const auto runtime = Open(KvDtype::kFloat32, 0.1);
  const auto context = *runtime->NewContext();
  ContextAttention attention(*context, KeyState::kAfterRope);
  Prefill(attention);
  ASSERT_TRUE(attention.Truncate(kPromptTokens - 1).ok());

  const std::vector<BlockId> blocks = runtime->tiers().OwnedBlocks();
  runtime->tiers().Drop(absl::MakeConstSpan(blocks).subspan(blocks.size() / 2, 1));
  EXPECT_EQ(Decode(attention).tokens.size(), static_cast<size_t>(kSteps));
  const std::vector<LostTokens> lost = context->Lost();
  ASSERT_EQ(lost.size(), 1u);
  EXPECT_EQ(lost[0].count, static_cast<int64_t>(kBlockTokens));
  EXPECT_GT(context->Stats().Total().AllLookups().lost_blocks, 0u);

  // What was decoded meanwhile lacked the block, so it goes too.
  ASSERT_TRUE(attention.Truncate(kPromptTokens - 1).ok());
  const auto fork = context->Fork(lost[0].first);
  ASSERT_TRUE(fork.ok()) << fork.status();
  ContextAttention of_fork(**fork, KeyState::kAfterRope);
  Recorder recorder(of_fork, lost[0].layer);
  Forward({absl::MakeConstSpan(prompt_).subspan(static_cast<size_t>(lost[0].first), kBlockTokens),
           lost[0].first, LogitsOf::kNone},
          recorder);
  const absl::Status refilled = context->Refill(
      lost[0].layer, lost[0].first,
      {.keys = recorder.keys.data(), .values = recorder.values.data(), .tokens = kBlockTokens});
  ASSERT_TRUE(refilled.ok()) << refilled;
  EXPECT_TRUE(context->Lost().empty());
  ExpectSame(Decode(attention), expected);
}

}  // namespace
}  // namespace terrace
