#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>

#include "runtime/rope.h"
#include "tests/support/context_rig.h"
#include "tests/support/reference_attention.h"

namespace terrace {
namespace {

RuntimeOptions InfllmRuntime(size_t blocks) {
  RuntimeOptions options = SmallRuntime();
  options.shape.key_state = KeyState::kBeforeRope;
  options.shape.dtype = KvDtype::kFloat32;
  options.tokens_per_block = 16;  // 4 KiB
  options.window_tokens = 40;
  options.lookup = {.kind = LookupKind::kInfllm, .blocks = blocks, .representatives = 4};
  options.tiers.dram_bytes = 1024 * options.BlockBytes();
  return options;
}

// What InfLLM attends to, from its definition: tokens in the window at their distance, all others
// at the distance of the window.
std::vector<double> Clipped(const ContextRig& rig, size_t layer, int64_t position,
                            const std::function<bool(int64_t)>& sees) {
  const ModelShape& shape = rig.shape();
  const Rope rope = *Rope::Create(shape.head_dim, shape.rope);
  const auto window = static_cast<int64_t>(rig.options().window_tokens);
  const auto block = static_cast<int64_t>(rig.options().tokens_per_block);
  const int64_t begin = std::max<int64_t>(0, (position + 1 - window) / block * block);
  std::vector<double> expected;
  std::vector<float> queries = rig.Queries(layer, position);
  rope.RotateTokens(position, shape.query_heads, absl::MakeSpan(queries));
  for (size_t head = 0; head < shape.kv_heads; ++head) {
    std::vector<float> keys;
    std::vector<float> values;
    for (int64_t token = 0; token <= position; ++token) {
      if (!sees(token)) continue;
      std::vector<float> key = rig.Keys(layer, token);
      const std::vector<float> value = rig.Values(layer, token);
      // A key outside stands where its distance to the query is the window.
      rope.RotateTokens(token >= begin ? token : position - window, shape.kv_heads,
                        absl::MakeSpan(key));
      const auto row = static_cast<ptrdiff_t>(head * shape.head_dim);
      keys.insert(keys.end(), key.begin() + row, key.begin() + row + shape.head_dim);
      values.insert(values.end(), value.begin() + row, value.begin() + row + shape.head_dim);
    }
    const ReferenceRun run = {.run = {.keys = keys.data(),
                                      .values = values.data(),
                                      .tokens = keys.size() / shape.head_dim,
                                      .dtype = KvDtype::kFloat32}};
    const size_t rows = shape.group() * shape.head_dim;
    const ReferenceResult result = ReferenceAttention(
        shape.head_dim, absl::MakeConstSpan(queries).subspan(head * rows, rows), {&run, 1});
    expected.insert(expected.end(), result.out.begin(), result.out.end());
  }
  return expected;
}

TEST(ContextInfllm, ClipsPositionsToTheWindow) {
  ContextRig rig(InfllmRuntime(/*blocks=*/1000));
  const auto context = rig.runtime().NewContext();
  for (const int64_t tokens : {1, 20, 41, 57, 100, 333}) {
    ASSERT_TRUE(rig.Prefill(**context, tokens, 96).ok());
    const auto out = rig.Attend(**context, 1, tokens - 1, 1);
    ASSERT_TRUE(out.ok()) << out.status();
    const auto all = [](int64_t) { return true; };
    EXPECT_LE(ContextRig::Error(*out, Clipped(rig, 1, tokens - 1, all)), 1e-3) << tokens;
  }
}

TEST(ContextInfllm, AttendsToAsManyBlocksAsItMay) {
  for (const bool pooled : {false, true}) {
    RuntimeOptions options = InfllmRuntime(/*blocks=*/3);
    if (pooled) options.lookup = PublishedInfllm(3);
    ContextRig rig(options);
    const auto context = rig.runtime().NewContext();
    ASSERT_TRUE(rig.Prefill(**context, 500, 96).ok());
    const uint64_t before = (*context)->Stats().Total().AllLookups().blocks;
    ASSERT_TRUE(rig.Step(**context, 1).ok());
    EXPECT_EQ((*context)->Stats().Total().AllLookups().blocks - before,
              3 * rig.shape().kv_heads * rig.shape().layers);
  }
}

TEST(ContextInfllm, AForkLooksUpAsItsOriginal) {
  ContextRig rig(InfllmRuntime(/*blocks=*/3));
  const auto context = rig.runtime().NewContext();
  ASSERT_TRUE(rig.Prefill(**context, 500, 96).ok());
  const auto fork = (*context)->Fork(500);
  ASSERT_TRUE(fork.ok());
  EXPECT_EQ(*rig.Step(**fork, 5), *rig.Step(**context, 5));
}

}  // namespace
}  // namespace terrace
