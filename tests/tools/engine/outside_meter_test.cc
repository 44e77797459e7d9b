#include "tools/engine/outside_meter.h"

#include <cmath>
#include <random>
#include <vector>

#include "gtest/gtest.h"
#include "tests/tools/engine/random_model.h"

namespace terrace {
namespace {

constexpr size_t kQueryHeads = 6;
constexpr size_t kKvHeads = 2;
constexpr size_t kHeadDim = 8;
constexpr size_t kTokens = 90;
constexpr size_t kSinks = 3;
constexpr size_t kWindow = 20;

ModelConfig Config() {
  ModelConfig config;
  config.layers = 2;
  config.query_heads = kQueryHeads;
  config.kv_heads = kKvHeads;
  config.head_dim = kHeadDim;
  return config;
}

std::unique_ptr<OutsideMeter> Meter() {
  auto meter = OutsideMeter::Create(
      Config(), {.max_tokens = kTokens, .sink_tokens = kSinks, .window_tokens = kWindow});
  EXPECT_TRUE(meter.ok()) << meter.status();
  return *std::move(meter);
}

struct Sequence {
  std::vector<float> query;
  std::vector<float> key;
  std::vector<float> value;

  explicit Sequence(uint64_t seed) {
    std::mt19937_64 random(seed);
    query = RandomFloats(kTokens * kQueryHeads * kHeadDim, 2, random);
    key = RandomFloats(kTokens * kKvHeads * kHeadDim, 2, random);
    value = RandomFloats(kTokens * kKvHeads * kHeadDim, 2, random);
  }
  float* KeyOf(size_t token, size_t kv_head) {
    return key.data() + (token * kKvHeads + kv_head) * kHeadDim;
  }
  // Runs [first, first + count) of it through a layer; returns what attention gives.
  std::vector<float> Run(size_t layer, size_t first, size_t count, AttentionSource& source) const {
    std::vector<float> out(count * kQueryHeads * kHeadDim);
    const auto rows = [&](const std::vector<float>& all, size_t heads) {
      return absl::MakeConstSpan(all).subspan(first * heads * kHeadDim, count * heads * kHeadDim);
    };
    const absl::Status status = source.Attend({.layer = layer,
                                               .position = static_cast<int64_t>(first),
                                               .tokens = count,
                                               .query = rows(query, kQueryHeads),
                                               .key = rows(key, kKvHeads),
                                               .value = rows(value, kKvHeads),
                                               .out = absl::MakeSpan(out)});
    EXPECT_TRUE(status.ok()) << status;
    return out;
  }
  // The share outside, from its definition and in double, of one query head at `token`.
  double Outside(size_t token, size_t head) const {
    double all = 0;
    double outside = 0;
    for (size_t other = 0; other <= token; ++other) {
      double score = 0;
      for (size_t i = 0; i < kHeadDim; ++i) {
        score += static_cast<double>(query[(token * kQueryHeads + head) * kHeadDim + i]) *
                 key[(other * kKvHeads + head / (kQueryHeads / kKvHeads)) * kHeadDim + i];
      }
      const double weight = std::exp(score / std::sqrt(static_cast<double>(kHeadDim)));
      all += weight;
      if (other >= kSinks && token - other >= kWindow) outside += weight;
    }
    return outside / all;
  }
};

TEST(OutsideMeterTest, SharesAreThoseOfTheDefinition) {
  const Sequence sequences[] = {Sequence(1), Sequence(2)};  // a layer each
  const auto meter = Meter();
  // In steps that end inside of the window, beyond it, and at one token.
  for (size_t layer = 0; layer < 2; ++layer) {
    size_t first = 0;
    for (const size_t count : {10u, 40u, 1u, 39u}) {
      meter->set_measures(first > 0);
      sequences[layer].Run(layer, first, count, *meter);
      first += count;
    }
  }
  EXPECT_EQ(meter->queries(), kTokens - kSinks - kWindow);
  const std::vector<HeadProfile::Head> heads = meter->Heads();
  ASSERT_EQ(heads.size(), 2 * kKvHeads);
  for (size_t i = 0; i < heads.size(); ++i) {
    double sum = 0;
    double largest = 0;
    size_t count = 0;
    for (size_t token = kSinks + kWindow; token < kTokens; ++token) {
      for (size_t head = i % kKvHeads * 3; head < i % kKvHeads * 3 + 3; ++head) {
        const double share = sequences[i / kKvHeads].Outside(token, head);
        sum += share;
        largest = std::max(largest, share);
        ++count;
      }
    }
    EXPECT_NEAR(heads[i].mean_outside, sum / static_cast<double>(count), 1e-5) << "head " << i;
    EXPECT_NEAR(heads[i].max_outside, largest, 1e-5) << "head " << i;
  }
}

// A key that every query points to takes nearly all attention, wherever it stands.
TEST(OutsideMeterTest, SinksAndWindowEndAtTheirToken) {
  const size_t last = kTokens - 1;
  const std::pair<size_t, bool> cases[] = {
      {kSinks - 1, false}, {kSinks, true}, {last - kWindow, true}, {last - kWindow + 1, false}};
  for (const auto& [token, is_outside] : cases) {
    Sequence sequence(3);
    for (float& element : sequence.query) element = 1;
    for (float& element : sequence.key) element = 0;
    std::fill_n(sequence.KeyOf(token, 1), kHeadDim, 20.0f);
    const auto meter = Meter();
    sequence.Run(0, 0, last, *meter);
    meter->set_measures(true);
    sequence.Run(0, last, 1, *meter);
    EXPECT_EQ(meter->queries(), 1u);
    EXPECT_NEAR(meter->Heads()[1].mean_outside, is_outside ? 1 : 0, 1e-6) << "token " << token;
    const double even = static_cast<double>(kTokens - kSinks - kWindow) / kTokens;
    EXPECT_NEAR(meter->Heads()[0].mean_outside, even, 1e-6) << "of a head without such a key";
  }
}

TEST(OutsideMeterTest, MeasuringLeavesAttentionAsItIs) {
  const Sequence sequence(4);
  const auto meter = Meter();
  meter->set_measures(true);
  const auto plain = PlainAttention::Create(Config(), {kTokens});
  ASSERT_TRUE(plain.ok());
  EXPECT_EQ(sequence.Run(1, 0, kTokens, *meter), sequence.Run(1, 0, kTokens, **plain));
}

TEST(OutsideMeterTest, WhatHasNothingOutsideDoesNotCount) {
  const Sequence sequence(5);
  const auto meter = Meter();
  meter->set_measures(true);
  sequence.Run(0, 0, kSinks + kWindow, *meter);
  EXPECT_EQ(meter->queries(), 0u);
  EXPECT_EQ(meter->Heads()[0].mean_outside, 0);
  ASSERT_TRUE(meter->Truncate(0).ok());
  sequence.Run(0, 0, kSinks + kWindow + 1, *meter);
  EXPECT_EQ(meter->queries(), 1u) << "texts add up";
}

}  // namespace
}  // namespace terrace
