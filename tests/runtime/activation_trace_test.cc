#include "bench/activation_trace.h"

#include "gtest/gtest.h"

namespace terrace {
namespace {

// Alizadeh et al., "LLM in a flash", 2023, on OPT-6.7B: 97 % of the neurons do not fire, and
// s_agg(k + 1) - s_agg(k) is 2.4 % at k = 5.
TEST(ActivationTraceTest, ActiveShareAndIncrementAreThoseOfOpt) {
  constexpr size_t kWindow = 40;
  for (const uint64_t seed : {1, 2, 3}) {
    const ActivationTraceParameters parameters;
    ActivationTrace trace(parameters, seed, seed + 100);
    const ActivationShares shares = MeasureShares(trace, parameters.neurons, 300, kWindow);
    EXPECT_NEAR(shares.active, 0.03, 0.003);
    EXPECT_NEAR(shares.of_last[1], 0.03, 0.003);
    EXPECT_NEAR(shares.of_last[6] - shares.of_last[5], 0.024, 0.0024);
    RecordProperty("increment", std::to_string(shares.of_last[6] - shares.of_last[5]));
    for (size_t k = 2; k <= kWindow; ++k) {
      EXPECT_GT(shares.of_last[k], shares.of_last[k - 1]);
      EXPECT_LT(shares.of_last[k], 1);
    }
  }
}

TEST(ActivationTraceTest, TheSameSeedsGiveTheSameTokens) {
  const ActivationTraceParameters parameters = {.neurons = 500};
  ActivationTrace a(parameters, 1, 2), b(parameters, 1, 2), other(parameters, 1, 3);
  bool differs = false;
  for (int token = 0; token < 20; ++token) {
    const std::vector<uint32_t> firing = a.Next();
    EXPECT_EQ(firing, b.Next());
    differs |= firing != other.Next();
  }
  EXPECT_TRUE(differs);
}

}  // namespace
}  // namespace terrace
