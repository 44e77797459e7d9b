#include "tools/engine/model_config.h"

#include <fstream>
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/support/temp_dir.h"
#include "tests/tools/engine/random_model.h"

namespace terrace {
namespace {

using ::testing::HasSubstr;
using Json = nlohmann::json;

class ModelConfigTest : public ::testing::Test {
 protected:
  absl::StatusOr<ModelConfig> Parse(const std::string& text) const {
    std::ofstream(path_, std::ios::binary) << text;
    return ReadModelConfig(path_);
  }
  // The good config with one field changed.
  absl::StatusOr<ModelConfig> With(const std::string& field, const Json& value) const {
    Json config = good_;
    config[field] = value;
    return Parse(config.dump());
  }
  absl::StatusOr<ModelConfig> Without(const std::string& field) const {
    Json config = good_;
    config.erase(field);
    return Parse(config.dump());
  }
  void ExpectBad(const absl::StatusOr<ModelConfig>& config,
                 const std::vector<std::string>& parts) const {
    EXPECT_EQ(config.status().code(), absl::StatusCode::kInvalidArgument) << config.status();
    EXPECT_THAT(std::string(config.status().message()), HasSubstr(path_));
    for (const std::string& part : parts) {
      EXPECT_THAT(std::string(config.status().message()), HasSubstr(part));
    }
    EXPECT_LT(config.status().message().size(), 500u);
  }

  const TempDir dir_;
  const std::string path_ = dir_.Join("config.json");
  const Json good_ = RandomModel(1).config;
};

TEST_F(ModelConfigTest, ReadsEveryField) {
  const auto config = Parse(good_.dump());
  ASSERT_TRUE(config.ok()) << config.status();
  EXPECT_EQ(config->layers, 2u);
  EXPECT_EQ(config->hidden, 24u);
  EXPECT_EQ(config->query_heads, 6u);
  EXPECT_EQ(config->kv_heads, 2u);
  EXPECT_EQ(config->head_dim, 8u);
  EXPECT_EQ(config->ffn, 40u);
  EXPECT_EQ(config->vocab, 264u);
  EXPECT_EQ(config->activation, Activation::kSilu);
  EXPECT_EQ(config->rms_norm_eps, 1e-5);
  EXPECT_EQ(config->rope, RopeOptions());
  EXPECT_FALSE(config->tied_head);
  EXPECT_EQ(config->max_positions, 512);
  EXPECT_EQ(config->start_token, 256);
}

TEST_F(ModelConfigTest, AbsentFieldsHaveTheirDefaults) {
  EXPECT_EQ(Without("head_dim")->head_dim, 4u);  // 24 / 6
  EXPECT_EQ(With("head_dim", nullptr)->head_dim, 4u);
  EXPECT_EQ(Without("num_key_value_heads")->kv_heads, 6u);
  EXPECT_EQ(Without("hidden_act")->activation, Activation::kSilu);
  EXPECT_EQ(Without("rope_theta")->rope.theta, 10000);
  EXPECT_EQ(Without("bos_token_id")->start_token, std::nullopt);
  EXPECT_EQ(With("hidden_act", "relu")->activation, Activation::kRelu);
  EXPECT_TRUE(With("tie_word_embeddings", true)->tied_head);
}

TEST_F(ModelConfigTest, ReadsRopeScalingOldAndNew) {
  const auto linear = With("rope_scaling", {{"type", "linear"}, {"factor", 4}});
  ASSERT_TRUE(linear.ok()) << linear.status();
  EXPECT_EQ(linear->rope.scaling, RopeOptions::Scaling::kLinear);
  EXPECT_EQ(linear->rope.factor, 4);
  Json llama3 = {{"rope_type", "llama3"},
                 {"factor", 8.0},
                 {"low_freq_factor", 1.0},
                 {"high_freq_factor", 4.0},
                 {"original_max_position_embeddings", 8192}};
  const auto older = With("rope_scaling", llama3);
  ASSERT_TRUE(older.ok()) << older.status();
  EXPECT_EQ(older->rope.scaling, RopeOptions::Scaling::kLlama3);
  EXPECT_EQ(older->rope.factor, 8);
  llama3["rope_theta"] = 5e5;
  const auto newer = With("rope_parameters", llama3);
  ASSERT_TRUE(newer.ok()) << newer.status();
  EXPECT_EQ(newer->rope.theta, 5e5);
  EXPECT_EQ(newer->rope.original_context, 8192);
  EXPECT_EQ(With("rope_scaling", nullptr)->rope, RopeOptions());
}

TEST_F(ModelConfigTest, BadFieldsAreNamedWithTheirValues) {
  for (const char* const field : {"hidden_size", "num_hidden_layers", "num_attention_heads",
                                  "intermediate_size", "vocab_size"}) {
    ExpectBad(Without(field), {field, "missing"});
    ExpectBad(With(field, 0), {field, "0 is not an integer from 1"});
    ExpectBad(With(field, -3), {field, "-3"});
    ExpectBad(With(field, 2.5), {field, "2.5"});
    ExpectBad(With(field, "24"), {field, "\"24\""});
    ExpectBad(With(field, UINT64_MAX), {field, "18446744073709551615"});
    ExpectBad(With(field, Json(std::vector<int>(1000))), {field, "[0,0,0", "..."});
  }
  ExpectBad(With("num_key_value_heads", 4), {"num_key_value_heads: 4 does not divide the 6"});
  ExpectBad(With("num_key_value_heads", 7), {"num_key_value_heads: 7 does not divide the 6"});
  ExpectBad(With("head_dim", 7), {"head_dim: 7 is not an even number"});
  ExpectBad(With("head_dim", 4096), {"head_dim: 4096"});
  Json odd = good_;
  odd.erase("head_dim");
  odd["hidden_size"] = 25;
  ExpectBad(Parse(odd.dump()), {"hidden_size: 25 is no multiple of the 6"});
  ExpectBad(With("hidden_act", "gelu"), {"hidden_act: \"gelu\""});
  ExpectBad(With("hidden_act", 1), {"hidden_act: 1 is not text"});
  ExpectBad(With("rms_norm_eps", "x"), {"rms_norm_eps"});
  ExpectBad(With("rms_norm_eps", -1), {"rms_norm_eps: -1"});
  ExpectBad(With("tie_word_embeddings", 1), {"tie_word_embeddings: 1 is not true or false"});
  ExpectBad(With("max_position_embeddings", 0), {"max_position_embeddings: 0"});
  ExpectBad(With("bos_token_id", 264), {"bos_token_id: 264 is not an integer from 0 to 263"});
  ExpectBad(With("bos_token_id", {1, 2}), {"bos_token_id: [1,2]"});
}

TEST_F(ModelConfigTest, BadRopeIsNamed) {
  ExpectBad(With("rope_theta", 0), {"theta: 0"});
  ExpectBad(With("rope_theta", "x"), {"rope_theta: \"x\" is not a number"});
  ExpectBad(With("rope_scaling", 2), {"rope_scaling: 2 is not an object"});
  ExpectBad(With("rope_scaling", {{"type", "yarn"}}), {"rope_scaling.rope_type: \"yarn\""});
  ExpectBad(With("rope_scaling", {{"type", "linear"}}), {"rope_scaling.factor: is missing"});
  ExpectBad(With("rope_scaling", {{"type", "linear"}, {"factor", 0}}), {"factor: 0"});
  ExpectBad(With("rope_scaling", {{"rope_type", "llama3"}, {"factor", 8}}),
            {"rope_scaling.low_freq_factor: is missing"});
  ExpectBad(With("rope_parameters", {{"rope_type", "default"}}), {"rope_parameters.rope_theta"});
}

TEST_F(ModelConfigTest, ModelsThatWouldRunWronglyAreRefused) {
  ExpectBad(With("model_type", "qwen2"), {"model_type: \"qwen2\" is not supported"});
  ExpectBad(With("attention_bias", true), {"attention_bias: true"});
  ExpectBad(With("mlp_bias", true), {"mlp_bias: true"});
}

TEST_F(ModelConfigTest, FilesThatAreNoConfigAreRefused) {
  ExpectBad(Parse(""), {"not valid JSON"});
  ExpectBad(Parse("{\"hidden_size\": 2"), {"not valid JSON at byte"});
  ExpectBad(Parse("[1, 2]"), {"JSON of type array, expected an object"});
  ExpectBad(Parse("{\"rope_theta\": 1e999}"), {"not valid JSON"});
  EXPECT_EQ(ReadModelConfig(dir_.Join("absent")).status().code(), absl::StatusCode::kNotFound);
  EXPECT_EQ(ReadModelConfig(dir_.path()).status().code(), absl::StatusCode::kInvalidArgument);
}

}  // namespace
}  // namespace terrace
