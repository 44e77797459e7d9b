#include "tools/engine/low_rank_fit.h"

#include <cmath>
#include <random>
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "index/kv_convert.h"

namespace terrace {
namespace {

using ::testing::HasSubstr;

constexpr size_t kWidth = 24;
constexpr size_t kNeurons = 40;

std::vector<float> Normal(size_t size, uint64_t seed) {
  std::mt19937_64 random(seed);
  std::normal_distribution<float> normal;
  std::vector<float> values(size);
  for (float& value : values) value = normal(random);
  return values;
}

// Inputs with a mean, whose spread falls from direction to direction.
std::vector<float> Inputs(size_t tokens, uint64_t seed) {
  std::vector<float> x = Normal(tokens * kWidth, seed);
  for (size_t i = 0; i < x.size(); ++i) {
    const auto direction = static_cast<double>(i % kWidth);
    x[i] = static_cast<float>(x[i] * std::pow(0.7, direction) + 0.3);
  }
  return x;
}

Matrix Gate() { return {kNeurons, kWidth, Normal(kNeurons * kWidth, 1)}; }

// The root of the mean square of what the fit of G x lacks, over neurons and tokens.
double Error(const LowRankFit& fit, const Matrix& gate, const std::vector<float>& x) {
  std::vector<float> a(fit.a.size());
  std::vector<float> b(fit.b.size());
  DecodeKv(fit.a.data(), KvDtype::kFloat16, a.size(), a.data());
  DecodeKv(fit.b.data(), KvDtype::kFloat16, b.size(), b.data());
  double squares = 0;
  for (size_t token = 0; token < x.size(); token += kWidth) {
    std::vector<double> reduced(fit.rank);
    for (size_t i = 0; i < fit.rank; ++i) {
      for (size_t j = 0; j < kWidth; ++j) reduced[i] += a[i * kWidth + j] * x[token + j];
    }
    for (size_t neuron = 0; neuron < kNeurons; ++neuron) {
      double lacking = -fit.offset[neuron];
      for (size_t j = 0; j < kWidth; ++j) {
        lacking += gate.values[neuron * kWidth + j] * x[token + j];
      }
      for (size_t i = 0; i < fit.rank; ++i) lacking -= b[neuron * fit.rank + i] * reduced[i];
      squares += lacking * lacking;
    }
  }
  return std::sqrt(squares / static_cast<double>(x.size() / kWidth * kNeurons));
}

LowRankFit Fit(const std::vector<float>& x, uint32_t rank) {
  InputMoments moments;
  const absl::Span<const float> all = x;
  moments.Add(all.first(10 * kWidth), kWidth);
  moments.Add(all.subspan(10 * kWidth), kWidth);
  const auto fit = FitLowRank(Gate(), moments, rank);
  EXPECT_TRUE(fit.ok()) << fit.status();
  return *fit;
}

TEST(LowRankFitTest, FullRankIsExactButForRounding) {
  const std::vector<float> x = Inputs(500, 2);
  EXPECT_LT(Error(Fit(x, kWidth), Gate(), x), 2e-3);
}

TEST(LowRankFitTest, ErrorFallsWithTheRankAndIsWhatTheResidualsSay) {
  const std::vector<float> x = Inputs(2000, 2);
  double last = 1e9;
  for (const uint32_t rank : {1u, 2u, 4u, 8u, 16u}) {
    const LowRankFit fit = Fit(x, rank);
    const double error = Error(fit, Gate(), x);
    EXPECT_LT(error, last) << rank;
    double squares = 0;
    for (const float residual : fit.residual) squares += residual * residual;
    EXPECT_NEAR(error, std::sqrt(squares / kNeurons), 0.02 * error + 1e-3) << rank;
    last = error;
  }
}

TEST(LowRankFitTest, KnowsTheInputs) {
  // Cutting the gate matrix off by itself would lack more: its directions are all alike, those of
  // the inputs are not. Keeping the best 8 of 24 directions of the inputs leaves 0.7^8 of the
  // strongest's spread.
  const std::vector<float> x = Inputs(2000, 2);
  const double all = Error(Fit(x, 1), Gate(), x);
  EXPECT_LT(Error(Fit(x, 8), Gate(), x), 0.2 * all);
}

TEST(LowRankFitTest, BadInputIsNamed) {
  InputMoments moments;
  EXPECT_THAT(std::string(FitLowRank(Gate(), moments, 4).status().message()),
              HasSubstr("no tokens"));
  moments.Add(Inputs(30, 1), kWidth);
  EXPECT_THAT(std::string(FitLowRank(Gate(), moments, 25).status().message()),
              HasSubstr("rank: 25"));
  Matrix broken = Gate();
  broken.values[7] = std::nanf("");
  EXPECT_THAT(std::string(FitLowRank(broken, moments, 4).status().message()),
              HasSubstr("not finite"));
  EXPECT_THAT(std::string(FitLowRank(Gate(), moments, 0).status().message()), HasSubstr("rank: 0"));
}

TEST(LowRankFitTest, FewerTokensThanDirectionsStillFit) {
  const std::vector<float> x = Inputs(12, 5);
  EXPECT_LT(Error(Fit(x, kWidth), Gate(), x), 0.05);
}

}  // namespace
}  // namespace terrace
