#include "tools/engine/ffn_tensors.h"

#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "nlohmann/json.hpp"
#include "runtime/bundle_shape.h"
#include "tools/engine/json_file.h"

namespace terrace {
namespace {

absl::Status Bad(const Checkpoint& checkpoint, absl::string_view what) {
  return absl::InvalidArgumentError(absl::StrCat(checkpoint.directory(), ": ", what));
}

absl::StatusOr<Activation> ReadActivation(const Checkpoint& checkpoint) {
  const std::string path = absl::StrCat(checkpoint.directory(), "/config.json");
  const absl::StatusOr<nlohmann::json> json = ReadJsonObject(path);
  if (!json.ok()) return json.status();
  const auto field = json->find("hidden_act");
  if (field == json->end() || field->is_null()) return Activation::kSilu;
  if (field->is_string() && *field == "silu") return Activation::kSilu;
  if (field->is_string() && *field == "relu") return Activation::kRelu;
  return absl::InvalidArgumentError(
      absl::StrCat(path, ": hidden_act: is not \"silu\" or \"relu\""));
}

absl::Status CheckShape(const Checkpoint& checkpoint, const std::string& name, uint64_t rows,
                        uint64_t columns) {
  const TensorInfo* const tensor = checkpoint.Find(name);
  const std::vector<uint64_t> shape = {rows, columns};
  if (tensor == nullptr) {
    return Bad(checkpoint,
               absl::StrCat("tensor \"", name, "\" is missing, expected shape ", ShapeText(shape)));
  }
  if (tensor->shape == shape) return absl::OkStatus();
  return Bad(checkpoint, absl::StrCat("tensor \"", name, "\" has shape ", ShapeText(tensor->shape),
                                      ", expected ", ShapeText(shape)));
}

// The biases of the networks, whose results would be others without them.
absl::Status RefuseBiases(const Checkpoint& checkpoint) {
  for (const std::string& name : checkpoint.TensorNames()) {
    const bool of_ffn = absl::StrContains(name, ".mlp.") || absl::StrContains(name, ".fc1.") ||
                        absl::StrContains(name, ".fc2.") || absl::StrContains(name, ".experts.");
    if (of_ffn && absl::EndsWith(name, ".bias")) {
      return Bad(checkpoint, absl::StrCat("tensor \"", name, "\": biases are not supported"));
    }
  }
  return absl::OkStatus();
}

}  // namespace

FfnNames FfnTensors::Names(uint32_t layer, uint32_t expert) const {
  const std::string of_layer = absl::StrCat("model.layers.", layer, ".");
  if (mixture) {
    const std::string prefix = absl::StrCat(of_layer, "block_sparse_moe.experts.", expert, ".");
    return {absl::StrCat(prefix, "w1.weight"), absl::StrCat(prefix, "w3.weight"),
            absl::StrCat(prefix, "w2.weight")};
  }
  const std::string prefix = absl::StrCat(of_layer, "mlp.");
  return {gated ? absl::StrCat(prefix, "gate_proj.weight") : "",
          absl::StrCat(prefix, "up_proj.weight"), absl::StrCat(prefix, "down_proj.weight")};
}

absl::StatusOr<FfnTensors> FfnTensors::Find(const Checkpoint& checkpoint) {
  FfnTensors found;
  const auto has_up = [&](uint32_t layer, uint32_t expert) {
    return checkpoint.Find(found.Names(layer, expert).up) != nullptr;
  };
  if (absl::Status status = RefuseBiases(checkpoint); !status.ok()) return status;
  found.mixture = !has_up(0, 0);
  if (!has_up(0, 0)) {
    return Bad(checkpoint,
               "has no feed-forward network named as Llama's (model.layers.0.mlp.up_proj.weight) "
               "or Mixtral's (model.layers.0.block_sparse_moe.experts.0.w3.weight)");
  }
  while (found.layers < BundleShape::kMaxLayers && has_up(found.layers, 0)) ++found.layers;
  while (found.mixture && found.experts < BundleShape::kMaxExperts && has_up(0, found.experts)) {
    ++found.experts;
  }
  found.gated = found.mixture || checkpoint.Find("model.layers.0.mlp.gate_proj.weight") != nullptr;

  const TensorInfo& up = *checkpoint.Find(found.Names(0, 0).up);
  if (up.shape.size() != 2 || up.shape[0] < 1 || up.shape[0] > BundleShape::kMaxNeurons ||
      up.shape[1] < 1 || up.shape[1] > BundleShape::kMaxWidth) {
    return Bad(checkpoint, absl::StrCat("tensor \"", up.name, "\": shape ", ShapeText(up.shape),
                                        " is no matrix within bounds"));
  }
  found.neurons = static_cast<uint32_t>(up.shape[0]);
  found.width = static_cast<uint32_t>(up.shape[1]);
  for (uint32_t layer = 0; layer < found.layers; ++layer) {
    for (uint32_t expert = 0; expert < found.experts; ++expert) {
      const FfnNames names = found.Names(layer, expert);
      absl::Status status = CheckShape(checkpoint, names.up, found.neurons, found.width);
      if (status.ok()) status = CheckShape(checkpoint, names.down, found.width, found.neurons);
      if (status.ok() && found.gated) {
        status = CheckShape(checkpoint, names.gate, found.neurons, found.width);
      }
      if (!status.ok()) return status;
    }
  }
  const absl::StatusOr<Activation> activation = ReadActivation(checkpoint);
  if (!activation.ok()) return activation.status();
  found.activation = *activation;
  return found;
}

}  // namespace terrace
