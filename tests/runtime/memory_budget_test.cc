#include "runtime/memory_budget.h"

#include <random>
#include <utility>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "runtime/runtime.h"
#include "runtime/weight_pager.h"
#include "tests/support/bundle_sample.h"
#include "tests/support/context_rig.h"

namespace terrace {
namespace {

using ::testing::HasSubstr;

TEST(MemoryBudgetTest, EachHasItsMinimumAndTheRestIsLent) {
  const auto budget = *MemoryBudget::Create(100, {{"kv", 30}, {"weights", 20}});
  EXPECT_EQ(*budget->Available("kv"), 80u);
  absl::StatusOr<MemoryReservation> kv = budget->Reserve("kv", 70);
  ASSERT_TRUE(kv.ok());
  EXPECT_EQ(*budget->Available("weights"), 30u);
  const absl::StatusOr<MemoryReservation> more = budget->Reserve("kv", 11);
  EXPECT_EQ(more.status().code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(more.status().message(), HasSubstr("needs 11 bytes, and 10 of 100"));
  const absl::StatusOr<MemoryReservation> weights = budget->Reserve("weights", 30);
  EXPECT_TRUE(weights.ok());
  EXPECT_EQ(*budget->Available("kv"), 0u);
  const MemoryReservation moved = *std::move(kv);
  EXPECT_EQ(moved.bytes(), 70u);
  EXPECT_EQ(*budget->Available("kv"), 0u);
}

TEST(MemoryBudgetTest, WhatIsGivenBackCanBeLentAgain) {
  const auto budget = *MemoryBudget::Create(100, {{"a", 0}, {"b", 0}});
  {
    const absl::StatusOr<MemoryReservation> all = budget->Reserve("a", 100);
    EXPECT_EQ(*budget->Available("b"), 0u);
  }
  EXPECT_EQ(*budget->Available("b"), 100u);
}

TEST(MemoryBudgetTest, RefusesMinimaBeyondTheTotalAndUnknownClients) {
  EXPECT_EQ(MemoryBudget::Create(10, {{"a", 6}, {"b", 5}}).status().code(),
            absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(MemoryBudget::Create(10, {{"a", 1}, {"a", 1}}).status().code(),
            absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(MemoryBudget::Create(UINT64_MAX, {{"a", UINT64_MAX}, {"b", 1}}).status().code(),
            absl::StatusCode::kInvalidArgument);
  const auto budget = *MemoryBudget::Create(10, {{"a", 1}});
  EXPECT_EQ(budget->Reserve("b", 1).status().code(), absl::StatusCode::kNotFound);
}

TEST(MemoryBudgetTest, RandomClientsNeverHaveMoreThanThereIsNorLessThanTheirMinimum) {
  std::mt19937_64 random(1);
  const std::vector<MemoryBudget::Client> clients = {{"a", 10}, {"b", 25}, {"c", 0}};
  const auto budget = *MemoryBudget::Create(100, clients);
  std::vector<std::vector<MemoryReservation>> held(3);
  const auto sum = [&held](size_t client) {
    uint64_t bytes = 0;
    for (const MemoryReservation& reservation : held[client]) bytes += reservation.bytes();
    return bytes;
  };
  for (int i = 0; i < 2000; ++i) {
    const size_t client = random() % 3;
    if (random() % 3 == 0 && !held[client].empty()) {
      held[client].pop_back();
    } else {
      const uint64_t bytes = random() % 20;
      const uint64_t before = sum(client);
      absl::StatusOr<MemoryReservation> got = budget->Reserve(clients[client].name, bytes);
      ASSERT_TRUE(got.ok() || before + bytes > clients[client].minimum_bytes);
      if (got.ok()) held[client].push_back(*std::move(got));
    }
    ASSERT_LE(sum(0) + sum(1) + sum(2), 100u);
  }
}

TEST(MemoryBudgetTest, APagerOfWeightsTakesItsBytesFromIt) {
  const BundleShape shape = {.layers = 2,
                             .experts = 1,
                             .neurons = 64,
                             .width = 64,
                             .gated = true,
                             .activation = Activation::kRelu,
                             .dtype = KvDtype::kFloat16,
                             .layout = BundleLayout::kBundled,
                             .group_neurons = 8};
  const BundleSample sample(shape, 1);
  WeightPagerOptions options;
  options.memory = *MemoryBudget::Create(2 << 20, {{"kv", 1 << 20}, {"weights", 1000}});
  {
    const auto pager = WeightPager::Open(sample.file(), options, sample.Device());
    ASSERT_TRUE(pager.ok()) << pager.status();
    EXPECT_LE((*pager)->memory_bytes(), 1u << 20);
    EXPECT_LT(*options.memory->Available("weights"), 1u << 20);
    options.dram_bytes = 1 << 20;
    const absl::StatusOr<MemoryReservation> most =
        options.memory->Reserve("weights", *options.memory->Available("weights") - 1000);
    ASSERT_TRUE(most.ok());
    EXPECT_EQ(WeightPager::Open(sample.file(), options, sample.Device()).status().code(),
              absl::StatusCode::kResourceExhausted);
  }
  EXPECT_EQ(*options.memory->Available("weights"), 1u << 20);
}

TEST(MemoryBudgetTest, ARuntimeAndAPagerShareIt) {
  RuntimeOptions options = SmallRuntime();
  const uint64_t kv_bytes = options.tiers.dram_bytes + options.IndexBytes();
  options.memory = *MemoryBudget::Create(kv_bytes + (8 << 20), {{"kv", kv_bytes}, {"weights", 0}});
  {
    const auto runtime = Runtime::Open(options);
    ASSERT_TRUE(runtime.ok()) << runtime.status();
    EXPECT_EQ(*options.memory->Available("weights"), (8u << 20) - (*runtime)->Stats().window_bytes);
  }
  const absl::StatusOr<MemoryReservation> weights = options.memory->Reserve("weights", 8 << 20);
  ASSERT_TRUE(weights.ok());
  EXPECT_EQ(Runtime::Open(options).status().code(), absl::StatusCode::kResourceExhausted);
}

}  // namespace
}  // namespace terrace
