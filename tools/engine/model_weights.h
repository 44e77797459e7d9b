#ifndef TERRACE_TOOLS_ENGINE_MODEL_WEIGHTS_H_
#define TERRACE_TOOLS_ENGINE_MODEL_WEIGHTS_H_

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "tools/engine/matrix_product.h"
#include "tools/engine/model_config.h"

namespace terrace {

struct LayerWeights {
  std::vector<float> attention_norm;  // [hidden]
  Matrix query;                       // [query_heads * head_dim, hidden]
  Matrix key;                         // [kv_heads * head_dim, hidden]
  Matrix value;                       // [kv_heads * head_dim, hidden]
  Matrix output;                      // [hidden, query_heads * head_dim]
  std::vector<float> ffn_norm;        // [hidden]
  Matrix gate;                        // [ffn, hidden]; empty, as up and down, when left out
  Matrix up;                          // [ffn, hidden]
  Matrix down;                        // [hidden, ffn]
};

// All weights of a model, in fp32 whatever the file has: 4 bytes a parameter, so twice an fp16
// file.
struct ModelWeights {
  Matrix embedding;  // [vocab, hidden]
  std::vector<LayerWeights> layers;
  std::vector<float> norm;  // [hidden]
  Matrix head;              // [vocab, hidden]; empty when it is the embedding

  // Without the matrices of the feed-forward networks: a hash of them. Else 0.
  uint64_t left_out_hash = 0;

  bool has_ffn() const { return !layers.empty() && !layers[0].gate.values.empty(); }
  const Matrix& output_head() const { return head.values.empty() ? embedding : head; }
  uint64_t bytes() const;
};

// A hash of every weight, which tells models of one shape apart.
uint64_t Fingerprint(const ModelWeights& weights);

// What to do with gate, up and down matrices.
enum class FfnWeights : uint8_t {
  kLoad,
  kLeaveOut,  // something else computes the feed-forward networks; saves most of the memory
};

// Reads the tensors of `directory` by their Hugging Face names: from the shards that
// model.safetensors.index.json lists, or without it from model.safetensors. Tensors that a Llama
// does not have are ignored, save biases, without which the model would be another one.
//
// Errors name file and tensor: those of SafetensorsFile, kInvalidArgument for a missing tensor, one
// whose shape is not what the config implies (both are named), a bias and a bad index, and
// kResourceExhausted when the machine has not the memory.
absl::StatusOr<ModelWeights> LoadModelWeights(const std::string& directory,
                                              const ModelConfig& config,
                                              FfnWeights ffn = FfnWeights::kLoad);

}  // namespace terrace

#endif  // TERRACE_TOOLS_ENGINE_MODEL_WEIGHTS_H_
