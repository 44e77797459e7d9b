#ifndef TERRACE_TOOLS_ENGINE_FFN_TENSORS_H_
#define TERRACE_TOOLS_ENGINE_FFN_TENSORS_H_

#include <cstdint>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "runtime/activation.h"
#include "tools/engine/checkpoint.h"

namespace terrace {

// Names of the matrices of one expert. `gate` is empty where the network has none.
struct FfnNames {
  std::string gate;  // [neurons, width]
  std::string up;    // [neurons, width]
  std::string down;  // [width, neurons]
};

// The feed-forward networks of a checkpoint, by the names that Hugging Face gives them: those of
// Llama (model.layers.L.mlp.gate_proj and so on), with a gate or without one, or those of Mixtral
// (model.layers.L.block_sparse_moe.experts.E.w1, w3 and w2).
struct FfnTensors {
  uint32_t layers = 0;
  uint32_t experts = 1;
  uint32_t neurons = 0;  // of an expert
  uint32_t width = 0;
  bool gated = true;
  Activation activation = Activation::kSilu;

  FfnNames Names(uint32_t layer, uint32_t expert) const;

  // Finds them, and the activation in config.json. kInvalidArgument, naming the tensor or field,
  // when there are none, when one is missing, has another shape than the others or a bias, or when
  // the activation is not "silu" or "relu".
  static absl::StatusOr<FfnTensors> Find(const Checkpoint& checkpoint);

 private:
  bool mixture = false;
};

}  // namespace terrace

#endif  // TERRACE_TOOLS_ENGINE_FFN_TENSORS_H_
