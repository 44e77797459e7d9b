#ifndef TERRACE_TOOLS_ENGINE_MODEL_CONFIG_H_
#define TERRACE_TOOLS_ENGINE_MODEL_CONFIG_H_

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>

#include "absl/status/statusor.h"
#include "runtime/activation.h"
#include "runtime/rope.h"

namespace terrace {

// No head is larger.
inline constexpr size_t kMaxHeadDim = 1024;

// The shape of a model in the Hugging Face Llama layout, as its config.json has it.
struct ModelConfig {
  size_t layers = 0;
  size_t hidden = 0;
  size_t query_heads = 0;
  size_t kv_heads = 0;  // divides query_heads
  size_t head_dim = 0;
  size_t ffn = 0;    // neurons of the feed-forward network
  size_t vocab = 0;  // token ids are below this
  Activation activation = Activation::kSilu;
  double rms_norm_eps = 0;
  RopeOptions rope;
  bool tied_head = false;  // the output head is the embedding
  int64_t max_positions = 0;
  std::optional<int32_t> start_token;  // the token that begins every text

  size_t query_width() const { return query_heads * head_dim; }
  size_t kv_width() const { return kv_heads * head_dim; }
};

// Reads a config.json. Fields that may be absent have the defaults of Hugging Face's Llama; the
// others are needed. Errors name the path: those of opening and reading, and kInvalidArgument
// naming the field and its value for what is missing, out of range or not supported, such as
// biases.
absl::StatusOr<ModelConfig> ReadModelConfig(const std::string& path);

}  // namespace terrace

#endif  // TERRACE_TOOLS_ENGINE_MODEL_CONFIG_H_
