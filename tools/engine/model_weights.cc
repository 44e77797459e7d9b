#include "tools/engine/model_weights.h"

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "tools/engine/checkpoint.h"
#include "tools/engine/physical_memory.h"
#include "xxhash.h"

namespace terrace {
namespace {

// Reads tensor after tensor and remembers the first error.
class WeightReader {
 public:
  explicit WeightReader(const Checkpoint& checkpoint) : checkpoint_(checkpoint) {}

  void Read(const std::string& name, size_t size, std::vector<float>& vector) {
    if (status_.ok()) status_ = checkpoint_.Read(name, {size}, vector);
  }

  struct Shape {
    size_t rows;
    size_t columns;
  };
  void Read(const std::string& name, Shape shape, Matrix& matrix) {
    matrix.rows = shape.rows;
    matrix.columns = shape.columns;
    if (status_.ok()) {
      status_ = checkpoint_.Read(name, {shape.rows, shape.columns}, matrix.values);
    }
  }

  const absl::Status& status() const { return status_; }

 private:
  const Checkpoint& checkpoint_;
  absl::Status status_;
};

void ReadLayer(const ModelConfig& config, const std::string& prefix, FfnWeights ffn,
               WeightReader& reader, LayerWeights& layer) {
  const size_t hidden = config.hidden;
  const auto name = [&](absl::string_view part) { return absl::StrCat(prefix, part, ".weight"); };
  reader.Read(name("input_layernorm"), hidden, layer.attention_norm);
  reader.Read(name("self_attn.q_proj"), {config.query_width(), hidden}, layer.query);
  reader.Read(name("self_attn.k_proj"), {config.kv_width(), hidden}, layer.key);
  reader.Read(name("self_attn.v_proj"), {config.kv_width(), hidden}, layer.value);
  reader.Read(name("self_attn.o_proj"), {hidden, config.query_width()}, layer.output);
  reader.Read(name("post_attention_layernorm"), hidden, layer.ffn_norm);
  if (ffn == FfnWeights::kLeaveOut) return;
  reader.Read(name("mlp.gate_proj"), {config.ffn, hidden}, layer.gate);
  reader.Read(name("mlp.up_proj"), {config.ffn, hidden}, layer.up);
  reader.Read(name("mlp.down_proj"), {hidden, config.ffn}, layer.down);
}

uint64_t Hash(absl::Span<const float> values, uint64_t seed) {
  return XXH3_64bits_withSeed(values.data(), values.size() * sizeof(float), seed);
}

uint64_t ExpectedBytes(const ModelConfig& config, FfnWeights ffn) {
  const uint64_t attention = 2 * config.hidden * (config.query_width() + config.kv_width());
  const uint64_t network = ffn == FfnWeights::kLoad ? 3 * config.hidden * config.ffn : 0;
  const uint64_t layer = attention + network + 2 * config.hidden;
  const uint64_t ends = (config.tied_head ? 1 : 2) * config.vocab * config.hidden + config.hidden;
  return sizeof(float) * (config.layers * layer + ends);
}

uint64_t Elements(const Matrix& matrix) { return matrix.values.size(); }

}  // namespace

uint64_t ModelWeights::bytes() const {
  uint64_t elements = Elements(embedding) + norm.size() + Elements(head);
  for (const LayerWeights& layer : layers) {
    elements += layer.attention_norm.size() + Elements(layer.query) + Elements(layer.key) +
                Elements(layer.value) + Elements(layer.output) + layer.ffn_norm.size() +
                Elements(layer.gate) + Elements(layer.up) + Elements(layer.down);
  }
  return elements * sizeof(float);
}

absl::StatusOr<ModelWeights> LoadModelWeights(const std::string& directory,
                                              const ModelConfig& config, FfnWeights ffn) {
  const absl::StatusOr<Checkpoint> checkpoint = Checkpoint::Open(directory);
  if (!checkpoint.ok()) return checkpoint.status();
  for (const std::string& name : checkpoint->TensorNames()) {
    if (absl::EndsWith(name, ".bias")) {
      return absl::InvalidArgumentError(
          absl::StrCat(directory, ": tensor \"", name, "\": biases are not supported"));
    }
  }
  const absl::Status fits =
      CheckFitsMemory(absl::StrCat(directory, ": weights in fp32"), ExpectedBytes(config, ffn));
  if (!fits.ok()) return fits;

  ModelWeights weights;
  WeightReader reader(*checkpoint);
  reader.Read("model.embed_tokens.weight", {config.vocab, config.hidden}, weights.embedding);
  weights.layers.resize(config.layers);
  for (size_t i = 0; i < config.layers; ++i) {
    ReadLayer(config, absl::StrCat("model.layers.", i, "."), ffn, reader, weights.layers[i]);
  }
  reader.Read("model.norm.weight", config.hidden, weights.norm);
  if (!config.tied_head) {
    reader.Read("lm_head.weight", {config.vocab, config.hidden}, weights.head);
  }
  if (!reader.status().ok()) return reader.status();
  if (ffn == FfnWeights::kLeaveOut) {
    const absl::StatusOr<uint64_t> hash = checkpoint->Fingerprint();
    if (!hash.ok()) return hash.status();
    weights.left_out_hash = *hash;
  }
  return weights;
}

uint64_t Fingerprint(const ModelWeights& weights) {
  uint64_t hash = Hash(weights.embedding.values, weights.left_out_hash);
  for (const LayerWeights& layer : weights.layers) {
    hash = Hash(layer.attention_norm, hash);
    hash = Hash(layer.ffn_norm, hash);
    for (const Matrix* const matrix : {&layer.query, &layer.key, &layer.value, &layer.output,
                                       &layer.gate, &layer.up, &layer.down}) {
      hash = Hash(matrix->values, hash);
    }
  }
  return Hash(weights.head.values, Hash(weights.norm, hash));
}

}  // namespace terrace
