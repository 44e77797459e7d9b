#include "tools/engine/model_weights.h"

#include <fstream>
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "index/kv_convert.h"
#include "tests/support/temp_dir.h"
#include "tests/tools/engine/random_model.h"

namespace terrace {
namespace {

using ::testing::HasSubstr;

constexpr char kGate[] = "model.layers.1.mlp.gate_proj.weight";

class ModelWeightsTest : public ::testing::Test {
 protected:
  absl::StatusOr<ModelWeights> Load() const {
    const absl::StatusOr<ModelConfig> config = ReadModelConfig(dir_.Join("config.json"));
    if (!config.ok()) return config.status();
    return LoadModelWeights(dir_.path(), *config);
  }
  void ExpectBad(const std::vector<std::string>& parts) const {
    const absl::Status status = Load().status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << status;
    EXPECT_THAT(std::string(status.message()), HasSubstr(dir_.path()));
    for (const std::string& part : parts) {
      EXPECT_THAT(std::string(status.message()), HasSubstr(part));
    }
  }
  void WriteIndex(const std::string& text) const {
    std::ofstream(dir_.Join("model.safetensors.index.json")) << text;
  }

  const TempDir dir_;
  RandomModel model_ = RandomModel(7);
};

struct Layout {
  KvDtype dtype;
  size_t shards;
};

class ModelLayoutTest : public ModelWeightsTest, public ::testing::WithParamInterface<Layout> {};

TEST_P(ModelLayoutTest, EveryTensorIsLoadedInItsPlace) {
  model_.Write(dir_.path(), GetParam().dtype, GetParam().shards);
  const absl::StatusOr<ModelWeights> weights = Load();
  ASSERT_TRUE(weights.ok()) << weights.status();
  const auto expected = [&](const std::string& name) {
    std::vector<float> values = model_.tensors.at(name).values;
    std::vector<char> stored(values.size() * KvDtypeBytes(GetParam().dtype));
    EXPECT_FALSE(
        EncodeKv(values.data(), KvDtype::kFloat32, GetParam().dtype, values.size(), stored.data())
            .has_value());
    DecodeKv(stored.data(), GetParam().dtype, values.size(), values.data());
    return values;
  };
  uint64_t elements = 0;
  for (const auto& [name, tensor] : model_.tensors) elements += tensor.values.size();
  EXPECT_EQ(weights->bytes(), 4 * elements);

  EXPECT_EQ(weights->embedding.values, expected("model.embed_tokens.weight"));
  EXPECT_EQ(weights->norm, expected("model.norm.weight"));
  EXPECT_EQ(weights->output_head().values, expected("lm_head.weight"));
  for (size_t i = 0; i < 2; ++i) {
    const LayerWeights& layer = weights->layers[i];
    const std::string prefix = absl::StrCat("model.layers.", i, ".");
    EXPECT_EQ(layer.attention_norm, expected(prefix + "input_layernorm.weight"));
    EXPECT_EQ(layer.query.values, expected(prefix + "self_attn.q_proj.weight"));
    EXPECT_EQ(layer.key.values, expected(prefix + "self_attn.k_proj.weight"));
    EXPECT_EQ(layer.value.values, expected(prefix + "self_attn.v_proj.weight"));
    EXPECT_EQ(layer.output.values, expected(prefix + "self_attn.o_proj.weight"));
    EXPECT_EQ(layer.ffn_norm, expected(prefix + "post_attention_layernorm.weight"));
    EXPECT_EQ(layer.gate.values, expected(prefix + "mlp.gate_proj.weight"));
    EXPECT_EQ(layer.up.values, expected(prefix + "mlp.up_proj.weight"));
    EXPECT_EQ(layer.down.values, expected(prefix + "mlp.down_proj.weight"));
    EXPECT_EQ(layer.down.rows, 24u);
    EXPECT_EQ(layer.down.columns, 40u);
  }
}

INSTANTIATE_TEST_SUITE_P(
    Layouts, ModelLayoutTest,
    ::testing::Values(Layout{KvDtype::kFloat32, 1}, Layout{KvDtype::kFloat16, 1},
                      Layout{KvDtype::kBfloat16, 1}, Layout{KvDtype::kFloat32, 3},
                      Layout{KvDtype::kFloat16, 2}),
    [](const auto& info) {
      return absl::StrCat(KvDtypeName(info.param.dtype), "_in_", info.param.shards);
    });

TEST_F(ModelWeightsTest, ATiedHeadIsTheEmbedding) {
  model_.config["tie_word_embeddings"] = true;
  model_.tensors.erase("lm_head.weight");
  model_.Write(dir_.path());
  const absl::StatusOr<ModelWeights> weights = Load();
  ASSERT_TRUE(weights.ok()) << weights.status();
  EXPECT_EQ(&weights->output_head(), &weights->embedding);
}

TEST_F(ModelWeightsTest, AMissingTensorIsNamedWithTheShapeItShouldHave) {
  model_.tensors.erase(kGate);
  model_.Write(dir_.path());
  ExpectBad({kGate, "missing", "[40, 24]", "model.safetensors"});
  model_.Write(dir_.path(), KvDtype::kFloat32, 2);
  ExpectBad({kGate, "missing", "index.json"});
}

TEST_F(ModelWeightsTest, AMisshapedTensorIsNamedWithBothShapes) {
  model_.tensors[kGate].shape = {24, 40};
  model_.Write(dir_.path());
  ExpectBad({kGate, "has shape [24, 40], expected [40, 24]"});
  model_.tensors[kGate].shape = {960};
  model_.Write(dir_.path());
  ExpectBad({kGate, "has shape [960], expected [40, 24]"});
}

TEST_F(ModelWeightsTest, AConfigThatTheTensorsDoNotFitIsRefused) {
  model_.config["num_hidden_layers"] = 3;
  model_.Write(dir_.path());
  ExpectBad({"model.layers.2.input_layernorm.weight", "missing"});
  model_.config["num_hidden_layers"] = 2;
  model_.config["vocab_size"] = 512;
  model_.Write(dir_.path());
  ExpectBad({"model.embed_tokens.weight", "[264, 24], expected [512, 24]"});
}

TEST_F(ModelWeightsTest, AModelBeyondTheMachinesMemoryIsRefused) {
  model_.config["num_hidden_layers"] = 4096;
  model_.config["intermediate_size"] = 1 << 20;
  model_.config["hidden_size"] = 1 << 20;
  model_.Write(dir_.path());
  const absl::Status status = Load().status();
  EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted) << status;
  EXPECT_THAT(std::string(status.message()), HasSubstr("bytes of memory"));
}

TEST_F(ModelWeightsTest, BiasesAreRefusedAndOtherTensorsIgnored) {
  model_.tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = {{1}, {1}};
  model_.Write(dir_.path());
  EXPECT_TRUE(Load().ok());
  model_.tensors["model.layers.0.self_attn.q_proj.bias"] = {{1}, {1}};
  model_.Write(dir_.path());
  ExpectBad({"q_proj.bias", "not supported"});
}

TEST_F(ModelWeightsTest, BadIndexesAreRefused) {
  model_.Write(dir_.path());
  WriteIndex("{}");
  ExpectBad({"index.json", "weight_map"});
  WriteIndex(R"({"weight_map": {"a": 1}})");
  ExpectBad({"index.json", "\"a\""});
  WriteIndex(R"({"weight_map": {"a": "../model.safetensors"}})");
  ExpectBad({"index.json", "\"a\"", "same folder"});
  WriteIndex(R"({"weight_map": {"a": "model.safetensors"}})");
  ExpectBad({"index.json", "\"a\" is not in"});
  WriteIndex("{");
  ExpectBad({"index.json", "not valid JSON"});
  WriteIndex(R"({"weight_map": {"a": "absent.safetensors"}})");
  EXPECT_EQ(Load().status().code(), absl::StatusCode::kNotFound);
}

TEST_F(ModelWeightsTest, AFolderWithoutAModelIsNotFound) {
  model_.WriteConfig(dir_.path());
  const absl::Status status = Load().status();
  EXPECT_EQ(status.code(), absl::StatusCode::kNotFound) << status;
  EXPECT_THAT(std::string(status.message()), HasSubstr("model.safetensors: cannot open"));
}

}  // namespace
}  // namespace terrace
