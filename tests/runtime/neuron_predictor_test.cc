#include "runtime/neuron_predictor.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <memory>
#include <random>
#include <string>
#include <vector>

#include "index/kv_convert.h"
#include "runtime/bundle_writer.h"
#include "tests/support/bundle_sample.h"
#include "tests/support/temp_dir.h"

namespace terrace {
namespace {

using ::testing::HasSubstr;

BundleShape Small(BundleLayout layout = BundleLayout::kBundled) {
  BundleShape shape;
  shape.layers = 2;
  shape.neurons = 61;
  shape.width = 48;
  shape.group_neurons = 4;
  shape.layout = layout;
  return shape;
}

std::vector<float> RandomInput(size_t size, uint64_t seed) {
  std::mt19937_64 random(seed);
  std::normal_distribution<float> normal;
  std::vector<float> x(size);
  for (float& value : x) value = normal(random);
  return x;
}

TEST(NeuronPredictorTest, OracleNamesExactlyWhatFiresInEveryLayout) {
  for (const BundleLayout layout :
       {BundleLayout::kBundled, BundleLayout::kGateFirst, BundleLayout::kUnbundled}) {
    for (const bool gated : {true, false}) {
      BundleShape shape = Small(layout);
      shape.gated = gated;
      const BundleSample sample(shape, /*seed=*/1);
      const auto oracle = MakeOraclePredictor(sample.file());
      ASSERT_TRUE(oracle.ok()) << oracle.status();
      std::vector<uint32_t> places = {7};
      for (uint32_t layer = 0; layer < shape.layers; ++layer) {
        const std::vector<float> x = RandomInput(shape.width, 10 + layer);
        ASSERT_TRUE((*oracle)->Predict(layer, x, places).ok());
        EXPECT_EQ(places, sample.Firing(layer, x));
        EXPECT_GT(places.size(), shape.neurons / 4);
      }
      EXPECT_EQ((*oracle)->memory_bytes(), shape.all_neurons() * shape.part_bytes());
    }
  }
}

TEST(NeuronPredictorTest, LowRankFollowsTheFactorsOfTheFile) {
  const BundleShape shape = Small();
  const TempDir dir;
  BundleTables tables;
  std::vector<std::vector<float>> a;
  std::vector<std::vector<float>> b;
  for (uint32_t layer = 0; layer < shape.layers; ++layer) {
    PredictorFactors factors;
    factors.rank = 5;
    const auto draw = [&](size_t size, uint64_t seed, std::vector<uint16_t>& halves) {
      std::vector<float> values = RandomInput(size, seed);
      halves.resize(size);
      EncodeKv(values.data(), KvDtype::kFloat32, KvDtype::kFloat16, size, halves.data());
      DecodeKv(halves.data(), KvDtype::kFloat16, size, values.data());
      return values;
    };
    a.push_back(draw(size_t{5} * shape.width, 20 + layer, factors.a));
    b.push_back(draw(size_t{5} * shape.neurons, 30 + layer, factors.b));
    factors.thresholds = RandomInput(shape.neurons, 40 + layer);
    tables.predictors.push_back(factors);
  }
  const auto zeros = [](const BundleRun&, absl::Span<std::byte> bundles) {
    std::fill(bundles.begin(), bundles.end(), std::byte{0});
    return absl::OkStatus();
  };
  ASSERT_TRUE(WriteBundleFile(dir.Join("file"), shape, tables, zeros).ok());
  auto file = BundleFile::Open(dir.Join("file"));
  ASSERT_TRUE(file.ok()) << file.status();
  const auto predictor = MakeLowRankPredictor(*std::move(file));
  ASSERT_TRUE(predictor.ok()) << predictor.status();
  for (uint32_t layer = 0; layer < shape.layers; ++layer) {
    const std::vector<float> x = RandomInput(shape.width, 50);
    std::vector<uint32_t> places;
    ASSERT_TRUE((*predictor)->Predict(layer, x, places).ok());
    std::vector<uint32_t> expected;
    for (uint32_t place = 0; place < shape.neurons; ++place) {
      double score = 0;
      for (size_t i = 0; i < 5; ++i) {
        double reduced = 0;
        for (size_t j = 0; j < shape.width; ++j) reduced += a[layer][i * shape.width + j] * x[j];
        score += b[layer][place * 5 + i] * reduced;
      }
      if (score > tables.predictors[layer].thresholds[place]) expected.push_back(place);
    }
    EXPECT_EQ(places, expected);
  }
}

TEST(NeuronPredictorTest, CoreKeepsTheNeuronsOfThePrompt) {
  const BundleShape shape = Small();
  const BundleSample sample(shape, /*seed=*/2);
  const auto core =
      MakeCorePredictor(sample.file(), {.token_share = 1, .text_share = 0.25, .first_layer = 1});
  ASSERT_TRUE(core.ok()) << core.status();
  const std::vector<float> token = RandomInput(shape.width, 3);
  const std::vector<float> other = RandomInput(shape.width, 4);
  std::vector<float> prompt = token;
  prompt.insert(prompt.end(), token.begin(), token.end());
  prompt.insert(prompt.end(), other.begin(), other.end());
  for (uint32_t layer = 0; layer < 2; ++layer) {
    ASSERT_TRUE((*core)->Observe(layer, /*begins=*/true, prompt).ok());
  }
  std::vector<uint32_t> places;
  ASSERT_TRUE((*core)->Predict(0, other, places).ok());
  EXPECT_EQ(places, AllPlaces(shape)) << "layers below the first predict all";
  ASSERT_TRUE((*core)->Predict(1, other, places).ok());
  EXPECT_EQ(places.size(), 16u);  // a quarter, rounded up
  EXPECT_THAT(sample.Firing(1, token), ::testing::IsSupersetOf(places)) << "most tokens";
  const std::vector<uint32_t> frozen = places;
  ASSERT_TRUE((*core)->Predict(1, token, places).ok());
  EXPECT_EQ(places, frozen);
  ASSERT_TRUE((*core)->Observe(1, /*begins=*/true, other).ok());
  ASSERT_TRUE((*core)->Predict(1, token, places).ok());
  EXPECT_THAT(sample.Firing(1, other), ::testing::IsSupersetOf(places)) << "a new text";
}

TEST(NeuronPredictorTest, WhatCannotBePredictedIsRefused) {
  const BundleSample plain(Small(), /*seed=*/1);
  EXPECT_THAT(std::string(MakeLowRankPredictor(plain.file()).status().message()),
              HasSubstr("no low-rank predictors"));
  EXPECT_THAT(std::string(MakeCorePredictor(plain.file(), {.text_share = 0}).status().message()),
              HasSubstr("text_share: 0"));
  BundleShape silu = Small();
  silu.activation = Activation::kSilu;
  const BundleSample smooth(silu, /*seed=*/1);
  EXPECT_THAT(std::string(MakeOraclePredictor(smooth.file()).status().message()),
              HasSubstr("silu"));
  BundleShape mixture = Small();
  mixture.experts = 2;
  const BundleSample experts(mixture, /*seed=*/1);
  EXPECT_THAT(std::string(MakeOraclePredictor(experts.file()).status().message()),
              HasSubstr("2 experts"));
}

TEST(NeuronPredictorTest, AWrongGateRowIsAnError) {
  const BundleShape shape = Small();
  const BundleSample sample(shape, /*seed=*/1);
  std::FILE* const file = std::fopen(sample.path().c_str(), "r+b");
  ASSERT_NE(file, nullptr);
  std::fseek(file, static_cast<long>(shape.GroupOffset(1, 3)) + 5, SEEK_SET);
  const int byte = std::fgetc(file);
  std::fseek(file, -1, SEEK_CUR);
  std::fputc(byte ^ 1, file);
  std::fclose(file);
  EXPECT_EQ(MakeOraclePredictor(sample.file()).status().code(), absl::StatusCode::kDataLoss);
}

}  // namespace
}  // namespace terrace
