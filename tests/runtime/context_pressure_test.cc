// Several contexts in little memory: nobody fails because another one is at work, and nobody sees
// another one's tokens.

#include <gtest/gtest.h>

#include <atomic>
#include <limits>
#include <thread>
#include <vector>

#include "tests/support/context_rig.h"

namespace terrace {
namespace {

bool All(int64_t) { return true; }

RuntimeOptions Cramped(size_t dram_blocks) {
  RuntimeOptions options = SmallRuntime();
  options.active_contexts = 4;
  options.tiers.dram_bytes = dram_blocks * options.BlockBytes();
  options.tiers.nvme_bytes = 64 << 20;
  return options;
}

std::unique_ptr<Context> Prefilled(ContextRig& rig, int64_t tokens) {
  std::unique_ptr<Context> context = *rig.runtime().NewContext();
  const absl::Status status = rig.Prefill(*context, tokens, 96);
  EXPECT_TRUE(status.ok()) << status;
  return context;
}

// Streams through all blocks of a context, again and again, until it goes.
class Streamer {
 public:
  Streamer(ContextRig& rig, Context& context, int64_t tokens)
      : thread_([this, &rig, &context, tokens] {
          while (!stop_) failures_ += rig.Attend(context, 0, tokens - 1, 1).ok() ? 0 : 1;
        }) {}
  ~Streamer() {
    stop_ = true;
    thread_.join();
    EXPECT_EQ(failures_, 0);
  }

 private:
  std::atomic<bool> stop_ = false;
  int failures_ = 0;  // of the thread, until it has ended
  std::thread thread_;
};

TEST(ContextPressure, AWindowIsKeptWhenItGoesIdleWithinTheFirstStep) {
  RuntimeOptions options = SmallRuntime();
  options.active_contexts = 1;
  ContextRig rig(options);
  const auto first = *rig.runtime().NewContext();
  ASSERT_TRUE(rig.Append(*first, 0, 60).ok());
  const auto second = *rig.runtime().NewContext();
  const std::vector<float> ones(60 * size_t{rig.shape().kv_heads} * rig.shape().head_dim, 1.0f);
  ASSERT_TRUE(second->Append(0, {.keys = ones.data(), .values = ones.data(), .tokens = 60}).ok());
  const auto out = rig.Attend(*first, 0, 59, 1);
  ASSERT_TRUE(out.ok()) << out.status();
  EXPECT_LE(ContextRig::Error(*out, rig.Expected(0, 59, All)), 1e-3);
}

TEST(ContextPressure, ContextsThatStepAtOnceAllGetTheirRoom) {
  for (const auto& [dram_blocks, threads] : {std::pair<size_t, int>{8, 2}, {16, 3}, {64, 4}}) {
    ContextRig rig(Cramped(dram_blocks));
    std::vector<std::unique_ptr<Context>> contexts;
    for (int i = 0; i < threads; ++i) contexts.push_back(Prefilled(rig, 1000));
    std::atomic<int> failures = 0;
    std::vector<std::thread> pool;
    for (const auto& context : contexts) {
      pool.emplace_back([&] {
        for (int step = 0; step < 40; ++step) {
          const auto out = rig.Step(*context, 1);
          if (!out.ok()) {
            ++failures;
            ADD_FAILURE() << out.status();
          }
        }
      });
    }
    for (std::thread& thread : pool) thread.join();
    EXPECT_EQ(failures, 0) << dram_blocks << " blocks, " << threads << " threads";
    for (const auto& context : contexts) {
      const auto out = rig.Attend(*context, 1, 1039, 1);
      ASSERT_TRUE(out.ok()) << out.status();
      EXPECT_LE(ContextRig::Error(*out, rig.Expected(1, 1039, All)), 1e-3);
    }
  }
}

TEST(ContextPressure, GoingBackWaitsForRoom) {
  ContextRig rig(Cramped(24));
  const auto busy = Prefilled(rig, 1500);
  const auto context = Prefilled(rig, 1500);
  const Streamer streamer(rig, *busy, 1500);
  for (int64_t tokens = 1460; tokens > 500; tokens -= 80) {
    const absl::Status status = context->Truncate(tokens);
    ASSERT_TRUE(status.ok()) << status;
    const auto out = rig.Attend(*context, 0, tokens - 1, 1);
    ASSERT_TRUE(out.ok()) << out.status();
    EXPECT_LE(ContextRig::Error(*out, rig.Expected(0, tokens - 1, All)), 1e-3) << tokens;
  }
}

TEST(ContextPressure, AnIdleWindowComesBackWhileAnotherContextIsBusy) {
  ContextRig rig(Cramped(24));
  const auto busy = Prefilled(rig, 1500);
  const auto context = Prefilled(rig, 1500);
  const Streamer streamer(rig, *busy, 1500);
  for (int i = 0; i < 30; ++i) {
    ASSERT_TRUE(context->Park().ok());
    const auto out = rig.Attend(*context, 0, 1499, 1);
    ASSERT_TRUE(out.ok()) << out.status();
  }
}

TEST(ContextPressure, AnIdleWindowComesBackThroughADramTierSmallerThanHbm) {
  RuntimeOptions options = Cramped(16);
  options.active_contexts = 1;
  options.tiers.hbm_bytes = 1024 * options.BlockBytes();
  ContextRig rig(options);
  const auto context = Prefilled(rig, 300);
  ASSERT_TRUE(context->Park().ok());
  const auto out = rig.Step(*context, 1);
  EXPECT_TRUE(out.ok()) << out.status();
}

TEST(ContextPressure, ABatchLargerThanMemoryIsServedOneByOne) {
  ContextRig rig(Cramped(8));
  std::vector<std::unique_ptr<Context>> contexts;
  std::vector<std::vector<float>> queries;
  std::vector<std::vector<float>> outs;
  std::vector<absl::Status> statuses(4, absl::UnknownError("not written"));
  const int64_t position = 999;
  for (int i = 0; i < 4; ++i) {
    contexts.push_back(Prefilled(rig, 1000));
    queries.push_back(rig.Queries(0, position));
    outs.emplace_back(queries.back().size());
  }
  // One of them asks for what it cannot have.
  queries[2][0] = std::numeric_limits<float>::quiet_NaN();
  std::vector<BatchedAttend> batch;
  for (size_t i = 0; i < 4; ++i) {
    batch.push_back({.context = contexts[i].get(),
                     .input = {.queries = queries[i].data(), .positions = {&position, 1}},
                     .output = {.out = absl::MakeSpan(outs[i])},
                     .status = &statuses[i]});
  }
  EXPECT_TRUE(absl::IsInvalidArgument(rig.runtime().Attend(0, batch)));
  for (size_t i = 0; i < 4; ++i) {
    EXPECT_EQ(statuses[i].ok(), i != 2) << statuses[i];
    if (i == 2) continue;
    EXPECT_LE(ContextRig::Error(outs[i], rig.Expected(0, position, All)), 1e-3);
  }
  batch[1].context = nullptr;
  EXPECT_TRUE(absl::IsInvalidArgument(rig.runtime().Attend(0, batch)));
}

TEST(ContextPressure, AStepThatFailedHalfwayCanBeTakenBack) {
  ContextRig rig(SmallRuntime());
  const auto context = Prefilled(rig, 700);
  const size_t elements = size_t{rig.shape().kv_heads} * rig.shape().head_dim;
  const std::vector<float> bad(96 * elements, std::numeric_limits<float>::quiet_NaN());
  ASSERT_TRUE(rig.Append(*context, 0, 96).ok());
  ASSERT_FALSE(context->Append(1, {.keys = bad.data(), .values = bad.data(), .tokens = 96}).ok());
  const auto fork = context->Fork(650);
  ASSERT_TRUE(fork.ok()) << fork.status();
  ASSERT_TRUE(context->Truncate(700).ok());
  for (Context* const one : {context.get(), fork->get()}) {
    ASSERT_TRUE(rig.Prefill(*one, 800, 50).ok());
    for (size_t layer = 0; layer < rig.shape().layers; ++layer) {
      const auto out = rig.Attend(*one, layer, 799, 1);
      ASSERT_TRUE(out.ok()) << out.status();
      EXPECT_LE(ContextRig::Error(*out, rig.Expected(layer, 799, All)), 1e-3);
    }
  }
}

TEST(ContextPressure, AFullTierInTheMiddleOfAStepLeavesAUsableContext) {
  RuntimeOptions options = SmallRuntime();
  options.tiers.dram_bytes = 33 * options.BlockBytes();
  ContextRig rig(options);
  const auto context = *rig.runtime().NewContext();
  ASSERT_TRUE(absl::IsResourceExhausted(rig.Prefill(*context, 100000, 32)));
  const int64_t tokens = context->tokens() - 64;
  const absl::Status status = context->Truncate(tokens);
  ASSERT_TRUE(status.ok()) << status;
  for (size_t layer = 0; layer < rig.shape().layers; ++layer) {
    const auto out = rig.Attend(*context, layer, tokens - 1, 1);
    ASSERT_TRUE(out.ok()) << out.status();
    EXPECT_LE(ContextRig::Error(*out, rig.Expected(layer, tokens - 1, All)), 1e-3);
  }
}

}  // namespace
}  // namespace terrace
