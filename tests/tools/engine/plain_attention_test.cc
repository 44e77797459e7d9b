#include "tools/engine/plain_attention.h"

#include <algorithm>
#include <cmath>
#include <random>
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "index/kv_convert.h"
#include "tests/tools/engine/random_model.h"

namespace terrace {
namespace {

using ::testing::HasSubstr;

constexpr size_t kQueryHeads = 6;
constexpr size_t kKvHeads = 2;
constexpr size_t kHeadDim = 8;
constexpr size_t kTokens = 200;  // several tiles

ModelConfig Config() {
  ModelConfig config;
  config.layers = 2;
  config.query_heads = kQueryHeads;
  config.kv_heads = kKvHeads;
  config.head_dim = kHeadDim;
  return config;
}

struct Sequence {
  std::vector<float> query;
  std::vector<float> key;
  std::vector<float> value;
};

Sequence RandomSequence(uint64_t seed) {
  std::mt19937_64 random(seed);
  return {RandomFloats(kTokens * kQueryHeads * kHeadDim, 2, random),
          RandomFloats(kTokens * kKvHeads * kHeadDim, 2, random),
          RandomFloats(kTokens * kKvHeads * kHeadDim, 2, random)};
}

// Causal attention as the formula has it, in double.
std::vector<double> Expected(const Sequence& sequence) {
  std::vector<double> out(sequence.query.size());
  for (size_t token = 0; token < kTokens; ++token) {
    for (size_t head = 0; head < kQueryHeads; ++head) {
      const size_t kv_head = head / (kQueryHeads / kKvHeads);
      const size_t at = (token * kQueryHeads + head) * kHeadDim;
      const auto row = [&](size_t other) { return (other * kKvHeads + kv_head) * kHeadDim; };
      double sum = 0;
      for (size_t other = 0; other <= token; ++other) {
        double score = 0;
        for (size_t i = 0; i < kHeadDim; ++i) {
          score += static_cast<double>(sequence.query[at + i]) * sequence.key[row(other) + i];
        }
        const double weight = std::exp(score / std::sqrt(static_cast<double>(kHeadDim)));
        sum += weight;
        for (size_t i = 0; i < kHeadDim; ++i) {
          out[at + i] += weight * sequence.value[row(other) + i];
        }
      }
      for (size_t i = 0; i < kHeadDim; ++i) out[at + i] /= sum;
    }
  }
  return out;
}

class PlainAttentionTest : public ::testing::Test {
 protected:
  std::unique_ptr<PlainAttention> Make(KvDtype rounding = KvDtype::kFloat32) const {
    auto attention = PlainAttention::Create(Config(), {kTokens, rounding});
    EXPECT_TRUE(attention.ok()) << attention.status();
    return *std::move(attention);
  }

  // Appends `tokens` tokens of the sequence from `position` on; their outputs go into out_.
  absl::Status Attend(size_t layer, size_t position, size_t tokens, PlainAttention& attention) {
    const size_t query = kQueryHeads * kHeadDim;
    const size_t kv = kKvHeads * kHeadDim;
    AttentionStep step;
    step.layer = layer;
    step.position = static_cast<int64_t>(position);
    step.tokens = tokens;
    const size_t from = std::min(position, kTokens - tokens);
    step.query = absl::MakeConstSpan(sequence_.query).subspan(from * query, tokens * query);
    step.key = absl::MakeConstSpan(sequence_.key).subspan(from * kv, tokens * kv);
    step.value = absl::MakeConstSpan(sequence_.value).subspan(from * kv, tokens * kv);
    step.out = absl::MakeSpan(out_).subspan(from * query, tokens * query);
    return attention.Attend(step);
  }

  void ExpectNear(const std::vector<double>& expected) const {
    for (size_t i = 0; i < expected.size(); ++i) ASSERT_NEAR(out_[i], expected[i], 1e-4) << i;
  }

  Sequence sequence_ = RandomSequence(3);
  std::vector<float> out_ = std::vector<float>(sequence_.query.size());
};

TEST_F(PlainAttentionTest, IsTheFormulaHoweverTheTokensAreCut) {
  const std::vector<double> expected = Expected(sequence_);
  for (const size_t cut : {1, 2, 3, 63, 64, 65, 150, 200}) {
    std::fill(out_.begin(), out_.end(), 0.0f);
    const auto attention = Make();
    for (size_t at = 0; at < kTokens; at += cut) {
      ASSERT_TRUE(Attend(1, at, std::min(cut, kTokens - at), *attention).ok());
    }
    ExpectNear(expected);
    EXPECT_EQ(attention->token_count(1), static_cast<int64_t>(kTokens));
    EXPECT_EQ(attention->token_count(0), 0);
  }
}

TEST_F(PlainAttentionTest, RoundsWhatItStores) {
  for (const KvDtype rounding : {KvDtype::kFloat16, KvDtype::kBfloat16}) {
    Sequence rounded = sequence_;
    for (std::vector<float>* values : {&rounded.key, &rounded.value}) {
      std::vector<uint16_t> bits(values->size());
      EXPECT_FALSE(
          EncodeKv(values->data(), KvDtype::kFloat32, rounding, values->size(), bits.data())
              .has_value());
      DecodeKv(bits.data(), rounding, values->size(), values->data());
    }
    const auto attention = Make(rounding);
    ASSERT_TRUE(Attend(0, 0, kTokens, *attention).ok());
    ExpectNear(Expected(rounded));
  }
}

TEST_F(PlainAttentionTest, WhatDoesNotFitIsRefusedAndNothingStored) {
  sequence_.value[kHeadDim] = 1e6f;  // token 0, KV head 1
  const auto attention = Make(KvDtype::kFloat16);
  const absl::Status status = Attend(0, 0, 10, *attention);
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << status;
  EXPECT_THAT(std::string(status.message()), HasSubstr("token 0, KV head 1"));
  EXPECT_EQ(attention->token_count(0), 0);
}

TEST_F(PlainAttentionTest, LargeScoresDoNotOverflow) {
  for (float& query : sequence_.query) query *= 1000;
  const auto attention = Make();
  ASSERT_TRUE(Attend(0, 0, kTokens, *attention).ok());
  for (const float value : out_) ASSERT_TRUE(std::isfinite(value));
}

TEST_F(PlainAttentionTest, TruncatedTokensAreForgotten) {
  const auto attention = Make();
  ASSERT_TRUE(Attend(0, 0, 100, *attention).ok());
  std::swap(sequence_.key, sequence_.value);  // other tokens
  ASSERT_TRUE(Attend(0, 100, 50, *attention).ok());
  std::swap(sequence_.key, sequence_.value);
  ASSERT_TRUE(attention->Truncate(100).ok());
  EXPECT_EQ(attention->token_count(0), 100);
  ASSERT_TRUE(Attend(0, 100, 100, *attention).ok());
  ExpectNear(Expected(sequence_));
  ASSERT_TRUE(attention->Truncate(1000).ok()) << "of more than there are";
  EXPECT_EQ(attention->token_count(0), 200);
  EXPECT_EQ(attention->Truncate(-1).code(), absl::StatusCode::kInvalidArgument);
}

TEST_F(PlainAttentionTest, AWrongPositionStoresNothing) {
  const auto attention = Make();
  ASSERT_TRUE(Attend(0, 0, 10, *attention).ok());
  for (const size_t position : {0, 9, 11}) {
    const absl::Status status = Attend(0, position, 1, *attention);
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << status;
    EXPECT_THAT(std::string(status.message()), HasSubstr("layer 0 has 10 tokens"));
  }
  EXPECT_EQ(attention->token_count(0), 10);
}

TEST_F(PlainAttentionTest, AFullSourceTakesNoMore) {
  const auto attention = Make();
  ASSERT_TRUE(Attend(0, 0, 150, *attention).ok());
  const absl::Status status = Attend(0, 150, 51, *attention);
  EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted) << status;
  EXPECT_THAT(std::string(status.message()), HasSubstr("no room for 51 tokens after 150"));
  EXPECT_TRUE(Attend(0, 150, 50, *attention).ok());
}

TEST_F(PlainAttentionTest, BadSizesAreRefused) {
  for (const int64_t tokens : {int64_t{-1}, int64_t{0}, int64_t{1} << 31}) {
    EXPECT_EQ(PlainAttention::Create(Config(), {tokens}).status().code(),
              absl::StatusCode::kInvalidArgument);
  }
  ModelConfig large = Config();
  large.layers = 4096;
  EXPECT_EQ(PlainAttention::Create(large, {(int64_t{1} << 31) - 1}).status().code(),
            absl::StatusCode::kResourceExhausted);
}

}  // namespace
}  // namespace terrace
