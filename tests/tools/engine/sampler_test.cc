#include "tools/engine/sampler.h"

#include <array>
#include <cmath>
#include <limits>
#include <vector>

#include "gtest/gtest.h"

namespace terrace {
namespace {

constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
constexpr float kInfinity = std::numeric_limits<float>::infinity();

// How often each of the tokens comes in 20,000 draws.
std::vector<double> Shares(const SamplerOptions& options, const std::vector<float>& logits) {
  constexpr int kDraws = 20'000;
  absl::StatusOr<Sampler> sampler = Sampler::Create(options);
  EXPECT_TRUE(sampler.ok()) << sampler.status();
  std::vector<double> shares(logits.size());
  for (int i = 0; i < kDraws; ++i) {
    shares[static_cast<size_t>(sampler->Sample(logits))] += 1.0 / kDraws;
  }
  return shares;
}

// Probabilities .1, .4, .2, .3 at temperature 1.
const std::vector<float> kLogits = {std::log(1.0f), std::log(4.0f), std::log(2.0f), std::log(3.0f)};

TEST(SamplerTest, WithoutTemperatureTheLikeliestTokenComes) {
  EXPECT_NEAR(Shares({}, kLogits)[1], 1, 1e-9);
}

TEST(SamplerTest, TemperatureOneDrawsByTheProbabilities) {
  SamplerOptions options;
  options.temperature = 1;
  const std::vector<double> shares = Shares(options, kLogits);
  const std::array<double, 4> expected = {0.1, 0.4, 0.2, 0.3};
  for (size_t i = 0; i < expected.size(); ++i) EXPECT_NEAR(shares[i], expected[i], 0.015);
}

TEST(SamplerTest, TemperatureSharpensAndFlattens) {
  SamplerOptions options;
  options.temperature = 0.5;
  EXPECT_NEAR(Shares(options, kLogits)[1], 16.0 / 30, 0.015);
  options.temperature = 100;
  EXPECT_NEAR(Shares(options, kLogits)[1], 0.25, 0.015);
}

TEST(SamplerTest, TopKAndTopPLeaveTheUnlikelyOut) {
  SamplerOptions options;
  options.temperature = 1;
  options.top_k = 2;
  std::vector<double> shares = Shares(options, kLogits);
  EXPECT_EQ(shares[0] + shares[2], 0);
  EXPECT_NEAR(shares[1], 4.0 / 7, 0.015);
  options.top_k = 0;
  options.top_p = 0.65;  // .4 and .3 together have .7
  shares = Shares(options, kLogits);
  EXPECT_EQ(shares[0] + shares[2], 0);
  EXPECT_NEAR(shares[1], 4.0 / 7, 0.015);
  options.top_p = 1e-9;
  EXPECT_NEAR(Shares(options, kLogits)[1], 1, 1e-9);
  options.top_p = 1;
  options.top_k = 1000;
  EXPECT_NEAR(Shares(options, kLogits)[0], 0.1, 0.015);
}

TEST(SamplerTest, EqualSeedsDrawEqualTokens) {
  SamplerOptions options;
  options.temperature = 1;
  options.seed = 42;
  EXPECT_EQ(Shares(options, kLogits), Shares(options, kLogits));
  absl::StatusOr<Sampler> one = Sampler::Create(options);
  options.seed = 43;
  absl::StatusOr<Sampler> other = Sampler::Create(options);
  int different = 0;
  for (int i = 0; i < 100; ++i) different += one->Sample(kLogits) != other->Sample(kLogits);
  EXPECT_GT(different, 20);
}

TEST(SamplerTest, LogitsThatAreNoNumberAreNotDrawn) {
  SamplerOptions options;
  options.temperature = 1;
  const std::vector<double> shares = Shares(options, {kNan, 1, -kInfinity, 1, kNan});
  EXPECT_EQ(shares[0] + shares[2] + shares[4], 0);
  EXPECT_EQ(LikeliestToken({kNan, 1, 2, 2}), 2);
  absl::StatusOr<Sampler> sampler = Sampler::Create(options);
  EXPECT_EQ(sampler->Sample({kNan, kNan}), 0);
  EXPECT_EQ(sampler->Sample({0, kInfinity, kInfinity}), 1);
}

TEST(SamplerTest, BadOptionsAreNamed) {
  const auto message = [](const SamplerOptions& options) {
    return std::string(Sampler::Create(options).status().message());
  };
  SamplerOptions options;
  options.temperature = -1;
  EXPECT_EQ(message(options), "sampler: temperature: -1 is not from 0 to 100");
  options.temperature = kNan;
  EXPECT_EQ(message(options), "sampler: temperature: nan is not from 0 to 100");
  options.temperature = 1;
  options.top_p = 0;
  EXPECT_EQ(message(options), "sampler: top_p: 0 is not above 0 and at most 1");
}

}  // namespace
}  // namespace terrace
