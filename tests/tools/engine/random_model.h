#ifndef TERRACE_TESTS_TOOLS_ENGINE_RANDOM_MODEL_H_
#define TERRACE_TESTS_TOOLS_ENGINE_RANDOM_MODEL_H_

#include <cmath>
#include <cstdint>
#include <fstream>
#include <functional>
#include <map>
#include <numeric>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "gtest/gtest.h"
#include "nlohmann/json.hpp"
#include "tools/engine/safetensors.h"

namespace terrace {

inline std::vector<float> RandomFloats(size_t count, float deviation, std::mt19937_64& random) {
  std::normal_distribution<float> normal(0, deviation);
  std::vector<float> values(count);
  for (float& value : values) value = normal(random);
  return values;
}

struct RandomTensor {
  std::vector<uint64_t> shape;
  std::vector<float> values;
};

// A Llama with random weights and a shape in which no two sizes are equal, to be changed and
// written into a folder.
struct RandomModel {
  nlohmann::json config = {
      {"model_type", "llama"},        {"hidden_size", 24},        {"num_hidden_layers", 2},
      {"num_attention_heads", 6},     {"num_key_value_heads", 2}, {"head_dim", 8},
      {"intermediate_size", 40},      {"rms_norm_eps", 1e-5},     {"rope_theta", 10000.0},
      {"hidden_act", "silu"},         {"vocab_size", 264},        {"max_position_embeddings", 512},
      {"tie_word_embeddings", false}, {"bos_token_id", 256}};
  std::map<std::string, RandomTensor> tensors;

  explicit RandomModel(uint64_t seed) {
    std::mt19937_64 random(seed);
    const auto add = [&](const std::string& name, std::vector<uint64_t> shape) {
      const uint64_t count =
          std::accumulate(shape.begin(), shape.end(), uint64_t{1}, std::multiplies<uint64_t>());
      const float deviation = 1 / std::sqrt(static_cast<float>(shape.back()));
      std::vector<float> values = RandomFloats(count, deviation, random);
      if (shape.size() == 1) {
        for (float& value : values) value += 1;
      }
      tensors[name] = {std::move(shape), std::move(values)};
    };
    add("model.embed_tokens.weight", {264, 24});
    for (int layer = 0; layer < 2; ++layer) {
      const std::string prefix = absl::StrCat("model.layers.", layer, ".");
      add(prefix + "input_layernorm.weight", {24});
      add(prefix + "self_attn.q_proj.weight", {48, 24});
      add(prefix + "self_attn.k_proj.weight", {16, 24});
      add(prefix + "self_attn.v_proj.weight", {16, 24});
      add(prefix + "self_attn.o_proj.weight", {24, 48});
      add(prefix + "post_attention_layernorm.weight", {24});
      add(prefix + "mlp.gate_proj.weight", {40, 24});
      add(prefix + "mlp.up_proj.weight", {40, 24});
      add(prefix + "mlp.down_proj.weight", {24, 40});
    }
    add("model.norm.weight", {24});
    add("lm_head.weight", {264, 24});
  }

  void WriteConfig(const std::string& directory) const {
    std::ofstream(directory + "/config.json") << config.dump();
  }

  // Writes config.json and the tensors: with one shard model.safetensors, with more as many files
  // and their index, the tensors dealt out in turn.
  void Write(const std::string& directory, KvDtype dtype = KvDtype::kFloat32,
             size_t shards = 1) const {
    WriteConfig(directory);
    std::vector<std::vector<TensorToWrite>> files(shards);
    nlohmann::json index = {{"weight_map", nlohmann::json::object()}};
    const auto file_name = [&](size_t shard) {
      return shards == 1 ? std::string("model.safetensors")
                         : absl::StrCat("model-", shard, ".safetensors");
    };
    size_t dealt = 0;
    for (const auto& [name, tensor] : tensors) {
      const size_t shard = dealt++ % shards;
      files[shard].push_back({name, dtype, tensor.shape, tensor.values});
      index["weight_map"][name] = file_name(shard);
    }
    for (size_t shard = 0; shard < shards; ++shard) {
      const absl::Status status =
          WriteSafetensors(absl::StrCat(directory, "/", file_name(shard)), files[shard]);
      ASSERT_TRUE(status.ok()) << status;
    }
    if (shards > 1) std::ofstream(directory + "/model.safetensors.index.json") << index.dump();
  }
};

}  // namespace terrace

#endif  // TERRACE_TESTS_TOOLS_ENGINE_RANDOM_MODEL_H_
