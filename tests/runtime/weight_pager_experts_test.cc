// Mixtures of experts: rows of whole experts, and of their neurons, under a router's trace.

#include <algorithm>
#include <cmath>
#include <cstring>
#include <random>
#include <vector>

#include "gtest/gtest.h"
#include "runtime/weight_pager.h"
#include "tests/support/bundle_sample.h"
#include "tests/support/kv_samples.h"

namespace terrace {
namespace {

constexpr BundleShape kShape = {.layers = 2,
                                .experts = 8,
                                .neurons = 30,
                                .width = 64,
                                .gated = true,
                                .activation = Activation::kSilu,
                                .dtype = KvDtype::kFloat16,
                                .layout = BundleLayout::kBundled,
                                .group_neurons = 11};

// A made-up router: two experts a token, expert 0 every other time, the others in spells.
struct Routed {
  std::vector<uint32_t> experts;
  std::vector<float> weights;  // [experts of the layer], zero but for the chosen
};
Routed Route(std::mt19937_64& random, uint32_t& spell) {
  if (random() % 4 == 0) spell = 1 + static_cast<uint32_t>(random() % 7);
  Routed routed = {.experts = {spell}, .weights = std::vector<float>(kShape.experts)};
  uint32_t other = 0;
  if (random() % 2 == 0) other = 1 + static_cast<uint32_t>(random() % 7);
  if (other != spell) routed.experts.push_back(other);
  for (const uint32_t expert : routed.experts) {
    routed.weights[expert] = 1.0f / static_cast<float>(routed.experts.size());
  }
  return routed;
}

std::vector<uint32_t> PlacesOf(const std::vector<uint32_t>& experts) {
  std::vector<uint32_t> places;
  for (const uint32_t expert : experts) {
    for (uint32_t i = 0; i < kShape.neurons; ++i) places.push_back(expert * kShape.neurons + i);
  }
  return places;
}

// Expert 0 is the hottest.
std::vector<float> Frequencies() {
  std::vector<float> frequency(kShape.all_neurons(), 0.1f);
  for (uint32_t layer = 0; layer < kShape.layers; ++layer) {
    const auto first = frequency.begin() + layer * kShape.experts * kShape.neurons;
    std::fill_n(first, kShape.neurons, 0.5f);
  }
  return frequency;
}

class WeightPagerExpertsTest : public testing::TestWithParam<WeightRow> {};

TEST_P(WeightPagerExpertsTest, ARouterTraceEqualsTheReferenceAndHotExpertsStay) {
  const BundleSample sample(kShape, 1, Frequencies());
  WeightPagerOptions options;
  options.row = GetParam();
  // Four of eight experts.
  const uint64_t expert_bytes = kShape.groups() * (kShape.group_bytes() + 128);
  options.dram_bytes =
      WeightPager::MinDramBytes(kShape, options) + 3 * kShape.layers * expert_bytes * 16 / 15;
  options.pinned_share = 0.25;
  const auto opened = WeightPager::Open(sample.file(), options, sample.Device());
  ASSERT_TRUE(opened.ok()) << opened.status();
  WeightPager& pager = **opened;
  std::mt19937_64 random(2);
  uint32_t spell = 1;
  std::vector<float> out(kShape.width);
  uint64_t used = 0;
  for (int token = 0; token < 60; ++token) {
    pager.BeginToken();
    for (uint32_t layer = 0; layer < kShape.layers; ++layer) {
      const Routed routed = Route(random, spell);
      used += routed.experts.size();
      const std::vector<float> x = NormalFloats(kShape.width, random());
      ASSERT_TRUE(pager.RequireExperts(layer, routed.experts).ok());
      if (token % 3 == 0) pager.PrefetchExperts(1 - layer, {spell});
      ASSERT_TRUE(pager.FfnExperts(layer, x, routed.weights, absl::MakeSpan(out)).ok());
      const std::vector<double> expected =
          sample.Reference(layer, x, PlacesOf(routed.experts), routed.weights);
      for (size_t i = 0; i < expected.size(); ++i) ASSERT_NEAR(out[i], expected[i], 1e-4);
      for (uint32_t place = 0; place < kShape.neurons; ++place) {
        ASSERT_TRUE(GetParam() != WeightRow::kExpert || pager.IsResident(layer, place));
      }
    }
  }
  const WeightPagerStats stats = pager.Stats();
  if (GetParam() == WeightRow::kExpert) {
    EXPECT_EQ(stats.required_rows, used);
    EXPECT_EQ(stats.capacity_rows, 4 * kShape.layers);
    EXPECT_EQ(stats.pinned_rows, kShape.layers);
  }
  // Spells and the hot expert are found in memory.
  EXPECT_GT(stats.hit_rows + stats.joined_rows, stats.required_rows * 6 / 10);
  EXPECT_GT(stats.evicted_rows, 0u);
}

TEST_P(WeightPagerExpertsTest, MoreExpertsThanMemoryHoldsPassThroughStaging) {
  const BundleSample sample(kShape, 3);
  WeightPagerOptions options;
  options.row = GetParam();
  options.dram_bytes = WeightPager::MinDramBytes(kShape, options);
  const auto opened = WeightPager::Open(sample.file(), options, sample.Device());
  ASSERT_TRUE(opened.ok()) << opened.status();
  const std::vector<float> x = NormalFloats(kShape.width, 4);
  std::vector<float> weights(kShape.experts, 0.125f), out(kShape.width);
  const std::vector<uint32_t> experts = {7, 2, 5, 0};
  (*opened)->BeginToken();
  ASSERT_TRUE((*opened)->RequireExperts(1, experts).ok());
  ASSERT_TRUE((*opened)->FfnExperts(1, x, weights, absl::MakeSpan(out)).ok());
  const std::vector<double> expected = sample.Reference(1, x, PlacesOf(experts), weights);
  for (size_t i = 0; i < expected.size(); ++i) ASSERT_NEAR(out[i], expected[i], 1e-4);
}

INSTANTIATE_TEST_SUITE_P(Rows, WeightPagerExpertsTest,
                         testing::Values(WeightRow::kExpert, WeightRow::kGroup),
                         [](const testing::TestParamInfo<WeightRow>& row) {
                           return row.param == WeightRow::kExpert ? "Experts" : "Groups";
                         });

}  // namespace
}  // namespace terrace
