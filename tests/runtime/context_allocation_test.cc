#include <gtest/gtest.h>

#include "tests/support/allocation_count.h"
#include "tests/support/context_rig.h"

namespace terrace {
namespace {

struct Case {
  const char* name;
  LookupKind kind;
  KeyState state;
  bool nvme;
};

class DecodeTest : public ::testing::TestWithParam<Case> {};

// The inputs of a step, made beforehand.
struct Step {
  std::vector<std::vector<float>> keys;
  std::vector<std::vector<float>> values;
  std::vector<std::vector<float>> queries;
  int64_t position = 0;
};

TEST_P(DecodeTest, AStepAllocatesNothingOnceWarm) {
  RuntimeOptions options = SmallRuntime();
  options.shape.key_state = GetParam().state;
  options.lookup = {.kind = GetParam().kind, .blocks = 4};
  if (GetParam().nvme) {
    options.tiers.dram_bytes = 48 * options.BlockBytes();
    options.tiers.nvme_bytes = 16 << 20;
  }
  ContextRig rig(options);
  const auto context = *rig.runtime().NewContext();
  ASSERT_TRUE(rig.Prefill(*context, 700, 96).ok());
  // Long enough to seal blocks, before and while allocations are counted.
  std::vector<Step> steps(100);
  for (Step& step : steps) {
    step.position = 700 + (&step - steps.data());
    for (size_t layer = 0; layer < rig.shape().layers; ++layer) {
      step.keys.push_back(rig.Keys(layer, step.position));
      step.values.push_back(rig.Values(layer, step.position));
      step.queries.push_back(rig.Queries(layer, step.position));
    }
  }
  std::vector<float> out(steps[0].queries[0].size());
  size_t before = 0;
  // The second time, nothing is longer than it ever was.
  for (const bool warm : {false, true}) {
    ASSERT_TRUE(context->Truncate(700).ok());
    before = AllocationCount();
    for (const Step& step : steps) {
      for (size_t layer = 0; layer < rig.shape().layers; ++layer) {
        const absl::Status appended = context->Append(
            layer,
            {.keys = step.keys[layer].data(), .values = step.values[layer].data(), .tokens = 1});
        const absl::Status attended = context->Attend(
            layer, {.queries = step.queries[layer].data(), .positions = {&step.position, 1}},
            {.out = absl::MakeSpan(out)});
        ASSERT_TRUE(appended.ok() && attended.ok()) << appended << attended << warm;
      }
    }
  }
  // Where a segment of NVMe gets full, the records of that have memory of their own.
  EXPECT_LE(AllocationCount() - before, GetParam().nvme ? 10 : 0)
      << "in " << steps.size() << " steps";
}

INSTANTIATE_TEST_SUITE_P(
    Lookups, DecodeTest,
    ::testing::Values(Case{"Full", LookupKind::kFull, KeyState::kAfterRope, false},
                      Case{"FullOnNvme", LookupKind::kFull, KeyState::kAfterRope, true},
                      Case{"Streaming", LookupKind::kStreaming, KeyState::kAfterRope, false},
                      Case{"Infllm", LookupKind::kInfllm, KeyState::kBeforeRope, false},
                      Case{"InfllmOnNvme", LookupKind::kInfllm, KeyState::kBeforeRope, true},
                      Case{"Quest", LookupKind::kQuest, KeyState::kAfterRope, false},
                      Case{"QuestOnNvme", LookupKind::kQuest, KeyState::kAfterRope, true}),
    [](const auto& info) { return info.param.name; });

}  // namespace
}  // namespace terrace
