// Contexts whose attention runs in HBM, which is host memory here, or a device's where one answers.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "io/cuda_copy_engine.h"
#include "tests/support/indexed_context.h"
#include "tests/support/tier_fixture.h"

namespace terrace {
namespace {

using ::testing::HasSubstr;

constexpr double kTolerance = 2e-3;

bool Everything(int64_t) { return true; }

// HBM for the windows and so many blocks.
RuntimeOptions WithHbm(RuntimeOptions options, size_t blocks, HbmDevice device) {
  options.tiers.hbm_bytes = 1;
  options.tiers.hbm_bytes = options.HbmWindowBytes() + blocks * options.BlockBytes();
  options.tiers.hbm_device = device;
  return options;
}

void ExpectFullAttention(const ContextRig& rig, Context& context) {
  const int64_t position = context.tokens() - 1;
  for (size_t layer = 0; layer < rig.shape().layers; ++layer) {
    const auto out = rig.Attend(context, layer, position, 1);
    ASSERT_TRUE(out.ok()) << out.status();
    EXPECT_LE(ContextRig::Error(*out, rig.Expected(layer, position, Everything)), kTolerance)
        << "layer " << layer << " of " << position + 1 << " tokens";
  }
}

// Tokens that the rig knows nothing of, which are attended to and taken back.
void TakeBackOthers(const ContextRig& rig, Context& context, size_t count) {
  const int64_t before = context.tokens();
  const std::vector<float> ones(count * rig.shape().kv_heads * rig.shape().head_dim, 1.0f);
  for (size_t layer = 0; layer < rig.shape().layers; ++layer) {
    ASSERT_TRUE(
        context.Append(layer, {.keys = ones.data(), .values = ones.data(), .tokens = count}).ok());
    ASSERT_TRUE(rig.Attend(context, layer, before + static_cast<int64_t>(count) - 1, 1).ok());
  }
  ASSERT_TRUE(context.Truncate(before).ok());
}

// A decode step of each policy in HBM against the same in DRAM.
double DifferenceFromDram(const RuntimeOptions& options, HbmDevice device) {
  std::vector<std::vector<float>> outputs;
  for (const bool hbm : {false, true}) {
    ContextRig rig(hbm ? WithHbm(options, 40, device) : options);
    const auto context = Filled(rig);
    outputs.push_back({});
    for (int step = 0; step < 2; ++step) {
      const auto out = rig.Step(*context, 1);
      EXPECT_TRUE(out.ok()) << out.status();
      if (!out.ok()) return 1;
      for (const std::vector<float>& layer : *out) {
        outputs.back().insert(outputs.back().end(), layer.begin(), layer.end());
      }
    }
  }
  const std::vector<double> expected(outputs[0].begin(), outputs[0].end());
  return ContextRig::Error(outputs[1], expected);
}

class HbmContext : public ::testing::TestWithParam<HbmDevice> {
 protected:
  void SetUp() override {
    if (GetParam() != HbmDevice::kCuda) return;
    const auto engine = MakeCudaCopyEngine();
    if (!engine.ok()) GTEST_SKIP() << engine.status();
  }
};

TEST_P(HbmContext, AttendsToEveryTokenAtEveryLength) {
  ContextRig rig(WithHbm(SmallRuntime(), 12, GetParam()));
  const auto context = *rig.runtime().NewContext();
  for (const int64_t tokens : {1, 2, 5, 31, 32, 33, 64, 96, 97, 130, 200, 300, 700}) {
    ASSERT_TRUE(rig.Prefill(*context, tokens, 96).ok());
    ExpectFullAttention(rig, *context);
  }
  const LookupStats stats = StatsOf(*context, LookupKind::kFull);
  EXPECT_GT(stats.hits[static_cast<size_t>(Tier::kDram)], 0u) << "more than HBM holds";
  EXPECT_GT(rig.runtime().tiers().Stats().hbm_copied_bytes, 0u);
}

TEST_P(HbmContext, AllQueriesOfAChunkSeeWhatIsBeforeThem) {
  ContextRig rig(WithHbm(SmallRuntime(), 12, GetParam()));
  const auto context = *rig.runtime().NewContext();
  ASSERT_TRUE(rig.Prefill(*context, 150, 96).ok());
  const auto outputs = rig.Step(*context, 96);
  ASSERT_TRUE(outputs.ok()) << outputs.status();
  const size_t row = rig.shape().query_heads * rig.shape().head_dim;
  for (const size_t i : {0u, 1u, 40u, 41u, 95u}) {
    EXPECT_LE(ContextRig::Error(absl::MakeConstSpan((*outputs)[1]).subspan(i * row, row),
                                rig.Expected(1, 150 + static_cast<int64_t>(i), Everything)),
              kTolerance)
        << "query " << i;
  }
}

TEST_P(HbmContext, PoliciesFindTheSameAsInDram) {
  for (const LookupKind kind : {LookupKind::kFull, LookupKind::kStreaming, LookupKind::kQuest,
                                LookupKind::kGraph, LookupKind::kCluster}) {
    RuntimeOptions options = Options(kind);
    options.lookup.blocks = 4;
    EXPECT_LE(DifferenceFromDram(options, GetParam()), kTolerance) << LookupKindName(kind);
    EXPECT_LE(DifferenceFromDram(OnNvme(options), GetParam()), kTolerance)
        << LookupKindName(kind) << " with NVMe";
  }
}

TEST_P(HbmContext, KeysBeforeRopeAreMirroredAfterIt) {
  RuntimeOptions options = SmallRuntime();
  options.shape.key_state = KeyState::kBeforeRope;
  options.lookup = {.kind = LookupKind::kInfllm, .blocks = 4};
  EXPECT_LE(DifferenceFromDram(options, GetParam()), kTolerance);
}

TEST_P(HbmContext, BlocksThatAreWantedAgainStay) {
  RuntimeOptions options = SmallRuntime();
  options.lookup = {.kind = LookupKind::kQuest, .blocks = 4};
  ContextRig rig(WithHbm(options, 40, GetParam()));
  const auto context = Filled(rig);
  const int64_t position = context->tokens() - 1;
  ASSERT_TRUE(rig.Attend(*context, 0, position, 1).ok());
  const LookupStats before = StatsOf(*context, LookupKind::kQuest);
  ASSERT_TRUE(rig.Attend(*context, 0, position, 1).ok());
  const LookupStats after = StatsOf(*context, LookupKind::kQuest);
  const auto hbm = static_cast<size_t>(Tier::kHbm);
  EXPECT_EQ(after.hits[hbm] - before.hits[hbm], after.blocks - before.blocks);
  EXPECT_GT(after.blocks, before.blocks);
}

TEST_P(HbmContext, WindowsFollowWhatBecomesOfAContext) {
  RuntimeOptions options = SmallRuntime();
  options.active_contexts = 2;
  options.tiers.nvme_bytes = kNvmeBytes;
  ContextRig rig(WithHbm(options, 12, GetParam()));
  std::unique_ptr<Context> context = *rig.runtime().NewContext();
  ASSERT_TRUE(rig.Prefill(*context, 200, 96).ok());
  ExpectFullAttention(rig, *context);
  for (const int64_t tokens : {190, 130, 60, 3}) {
    SCOPED_TRACE(tokens);
    ASSERT_TRUE(context->Truncate(tokens).ok());
    TakeBackOthers(rig, *context, 20);
    ASSERT_TRUE(rig.Prefill(*context, tokens + 2, 96).ok());
    ExpectFullAttention(rig, *context);
    ASSERT_TRUE(rig.Prefill(*context, 200, 96).ok());
  }
  TakeBackOthers(rig, *context, 20);
  const std::unique_ptr<Context> fork = *context->Fork(150);
  TakeBackOthers(rig, *fork, 20);
  ASSERT_TRUE(rig.Prefill(*fork, 170, 96).ok());
  ExpectFullAttention(rig, *fork);
  ExpectFullAttention(rig, *context);
  TakeBackOthers(rig, *context, 20);
  // Each comes back into the memory that was the other's.
  ASSERT_TRUE(context->Park().ok());
  ASSERT_TRUE(fork->Park().ok());
  ASSERT_TRUE(rig.Prefill(*context, 210, 96).ok());
  ExpectFullAttention(rig, *context);
  ASSERT_TRUE(rig.Prefill(*fork, 180, 96).ok());
  ExpectFullAttention(rig, *fork);
  ASSERT_TRUE(context->Save("saved").ok());
  const auto loaded = rig.runtime().Load("saved");
  ASSERT_TRUE(loaded.ok()) << loaded.status();
  ASSERT_TRUE(rig.Prefill(**loaded, 215, 96).ok());
  ExpectFullAttention(rig, **loaded);
}

TEST_P(HbmContext, ContextsOfABatchAreServedTogether) {
  ContextRig rig(WithHbm(SmallRuntime(), 12, GetParam()));
  std::vector<std::unique_ptr<Context>> contexts;
  std::vector<std::vector<float>> queries;
  std::vector<std::vector<float>> outs;
  std::vector<int64_t> positions;
  for (const int64_t tokens : {40, 150, 300}) {
    contexts.push_back(*rig.runtime().NewContext());
    ASSERT_TRUE(rig.Prefill(*contexts.back(), tokens, 96).ok());
    positions.push_back(tokens - 1);
    queries.push_back(rig.Queries(1, tokens - 1));
    outs.emplace_back(queries.back().size());
  }
  std::vector<BatchedAttend> batch;
  for (size_t i = 0; i < contexts.size(); ++i) {
    batch.push_back({.context = contexts[i].get(),
                     .input = {.queries = queries[i].data(), .positions = {&positions[i], 1}},
                     .output = {.out = absl::MakeSpan(outs[i])}});
  }
  const absl::Status status = rig.runtime().Attend(1, batch);
  ASSERT_TRUE(status.ok()) << status;
  for (size_t i = 0; i < outs.size(); ++i) {
    EXPECT_LE(ContextRig::Error(outs[i], rig.Expected(1, positions[i], Everything)), kTolerance)
        << i;
  }
}

INSTANTIATE_TEST_SUITE_P(Emulated, HbmContext, ::testing::Values(HbmDevice::kEmulated),
                         [](const auto&) { return "InHostMemory"; });
INSTANTIATE_TEST_SUITE_P(OnDevice, HbmContext, ::testing::Values(HbmDevice::kCuda),
                         [](const auto&) { return "InCudaMemory"; });

TEST(HbmContextFaults, ACopyThatFailedIsMadeUpFor) {
  auto owned = std::make_unique<FaultyCopyEngine>();
  FaultyCopyEngine& copies = *owned;
  TierManager::Parts parts;
  parts.copy_engine = std::move(owned);
  ContextRig rig(WithHbm(SmallRuntime(), 12, HbmDevice::kEmulated), 1, std::move(parts));
  const auto context = *rig.runtime().NewContext();
  ASSERT_TRUE(rig.Prefill(*context, 50, 96).ok());
  ASSERT_TRUE(rig.Append(*context, 0, 1).ok());
  copies.FailWhen(CopyDirection::kHostToDevice);
  const absl::Status failed = rig.Attend(*context, 0, 50, 1).status();
  EXPECT_EQ(failed.code(), absl::StatusCode::kUnavailable) << failed;
  copies.FailWhen(std::nullopt);
  const auto out = rig.Attend(*context, 0, 50, 1);
  ASSERT_TRUE(out.ok()) << out.status();
  EXPECT_LE(ContextRig::Error(*out, rig.Expected(0, 50, Everything)), kTolerance);
}

TEST(HbmContextFaults, ABlockThatCannotReachHbmIsNotLeftOut) {
  auto owned = std::make_unique<FaultyCopyEngine>();
  FaultyCopyEngine& copies = *owned;
  TierManager::Parts parts;
  parts.copy_engine = std::move(owned);
  ContextRig rig(WithHbm(SmallRuntime(), 12, HbmDevice::kEmulated), 1, std::move(parts));
  const auto context = *rig.runtime().NewContext();
  ASSERT_TRUE(rig.Prefill(*context, 700, 96).ok());
  ExpectFullAttention(rig, *context);  // the mirror has all of the window now
  copies.FailWhen(CopyDirection::kHostToDevice);
  const absl::Status failed = rig.Attend(*context, 0, 699, 1).status();
  EXPECT_EQ(failed.code(), absl::StatusCode::kUnavailable) << failed;
  EXPECT_THAT(std::string(failed.message()), HasSubstr("could not be copied from or to HBM"));
  copies.FailWhen(std::nullopt);
  ExpectFullAttention(rig, *context);
  EXPECT_TRUE(context->Lost().empty());
}

// The masses of a window outlive a call that failed, and choose what stands for its blocks.
TEST(HbmContextFaults, ACallThatFailedLeavesNoMasses) {
  RuntimeOptions options = SmallRuntime();
  options.shape.key_state = KeyState::kBeforeRope;
  options.lookup = {.kind = LookupKind::kInfllm, .blocks = 2};
  options.lookup.representatives = 2;
  options.lookup.choice = RepresentativeChoice::kMostMass;
  std::vector<std::vector<float>> outputs;
  std::vector<double> missed;  // by what stands for blocks, so that any change of it shows
  for (const bool fails : {false, true}) {
    auto owned = std::make_unique<FaultyCopyEngine>();
    FaultyCopyEngine& copies = *owned;
    TierManager::Parts parts;
    parts.copy_engine = std::move(owned);
    ContextRig rig(WithHbm(options, 40, HbmDevice::kEmulated), 1, std::move(parts));
    const auto context = *rig.runtime().NewContext();
    for (int64_t tokens = 50; tokens <= 600; tokens += 50) {
      ASSERT_TRUE(rig.Prefill(*context, tokens - 1, 50).ok());
      for (size_t layer = 0; layer < rig.shape().layers; ++layer) {
        ASSERT_TRUE(rig.Append(*context, layer, 1).ok());
        if (fails) {
          copies.FailWhen(CopyDirection::kHostToDevice);
          for (int i = 0; i < 3; ++i) {
            EXPECT_FALSE(rig.Attend(*context, layer, tokens - 1, 1).ok());
          }
          copies.FailWhen(std::nullopt);
        }
        ASSERT_TRUE(rig.Attend(*context, layer, tokens - 1, 1).ok());
      }
    }
    outputs.push_back(*rig.Attend(*context, 1, 599, 1));
    missed.push_back(StatsOf(*context, LookupKind::kInfllm).missed_mass);
  }
  EXPECT_EQ(outputs[0], outputs[1]);
  EXPECT_EQ(missed[0], missed[1]);
  EXPECT_GT(missed[0], 0);
}

TEST(HbmContextFaults, TooLittleHbmIsRefusedWithWhatItTakes) {
  RuntimeOptions options = WithHbm(SmallRuntime(), 1, HbmDevice::kEmulated);
  const absl::Status status = options.Validate();
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(status.message()), HasSubstr("tiers.hbm_bytes"));
  EXPECT_THAT(std::string(status.message()),
              HasSubstr(std::to_string(options.HbmWindowBytes() + 2 * options.BlockBytes())));
  EXPECT_TRUE(WithHbm(SmallRuntime(), 2, HbmDevice::kEmulated).Validate().ok());
}

TEST(HbmContextFaults, ADeviceThatIsNotThereIsNamed) {
  if (MakeCudaCopyEngine().ok()) GTEST_SKIP() << "a device answers";
  const auto runtime = Runtime::Open(WithHbm(SmallRuntime(), 12, HbmDevice::kCuda));
  EXPECT_EQ(runtime.status().code(), absl::StatusCode::kUnavailable) << runtime.status();
  EXPECT_THAT(std::string(runtime.status().message()), HasSubstr("CUDA"));
}

}  // namespace
}  // namespace terrace
