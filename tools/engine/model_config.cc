#include "tools/engine/model_config.h"

#include <cmath>
#include <limits>
#include <utility>

#include "absl/strings/str_cat.h"
#include "nlohmann/json.hpp"
#include "tools/engine/json_file.h"

namespace terrace {
namespace {

using Json = nlohmann::json;

// Far above any model, and low enough that no product of sizes overflows.
constexpr int64_t kMaxLayers = 4096;
constexpr int64_t kMaxWidth = int64_t{1} << 20;
constexpr int64_t kMaxHeads = 4096;
constexpr int64_t kMaxVocab = int64_t{1} << 24;
constexpr int64_t kMaxPositions = int64_t{1} << 40;

// A short form of a value for messages; it may be a whole document.
std::string Excerpt(const Json& value) {
  constexpr size_t kMaxBytes = 40;
  std::string text = value.dump(-1, ' ', /*ensure_ascii=*/true, Json::error_handler_t::replace);
  if (text.size() > kMaxBytes) text = absl::StrCat(text.substr(0, kMaxBytes), "...");
  return text;
}

// Fetches members of one JSON object and remembers the first that is wrong. A member that is null
// counts as absent, and so do those of no object.
class FieldReader {
 public:
  FieldReader(const Json* object, std::string prefix)
      : object_(object), prefix_(std::move(prefix)) {}

  int64_t Integer(const char* name, int64_t min, int64_t max, std::optional<int64_t> otherwise) {
    const Json* const value = Find(name, otherwise.has_value());
    if (value == nullptr) return otherwise.value_or(min);
    const bool fits = !value->is_number_unsigned() || value->get<uint64_t>() <= INT64_MAX;
    if (value->is_number_integer() && fits) {
      const int64_t number = value->get<int64_t>();
      if (number >= min && number <= max) return number;
    }
    Fail(name, absl::StrCat(Excerpt(*value), " is not an integer from ", min, " to ", max));
    return min;
  }

  double Number(const char* name, std::optional<double> otherwise) {
    const Json* const value = Find(name, otherwise.has_value());
    if (value == nullptr) return otherwise.value_or(1);
    if (value->is_number() && std::isfinite(value->get<double>())) return value->get<double>();
    Fail(name, absl::StrCat(Excerpt(*value), " is not a number"));
    return 1;
  }

  bool Flag(const char* name, bool otherwise) {
    const Json* const value = Find(name, /*optional=*/true);
    if (value == nullptr) return otherwise;
    if (value->is_boolean()) return value->get<bool>();
    Fail(name, absl::StrCat(Excerpt(*value), " is not true or false"));
    return otherwise;
  }

  std::string Text(const char* name, const char* otherwise) {
    const Json* const value = Find(name, /*optional=*/true);
    if (value == nullptr) return otherwise;
    if (value->is_string()) return value->get<std::string>();
    Fail(name, absl::StrCat(Excerpt(*value), " is not text"));
    return otherwise;
  }

  // Null when there is none.
  const Json* Object(const char* name) {
    const Json* const value = Find(name, /*optional=*/true);
    if (value == nullptr || value->is_object()) return value;
    Fail(name, absl::StrCat(Excerpt(*value), " is not an object"));
    return nullptr;
  }

  void Fail(const char* name, absl::string_view what) {
    if (!status_.ok()) return;
    status_ = absl::InvalidArgumentError(absl::StrCat(prefix_, name, ": ", what));
  }

  bool Has(const char* name) const { return Member(name) != nullptr; }
  const absl::Status& status() const { return status_; }

 private:
  const Json* Member(const char* name) const {
    if (object_ == nullptr) return nullptr;
    const auto found = object_->find(name);
    return found == object_->end() || found->is_null() ? nullptr : &*found;
  }

  const Json* Find(const char* name, bool optional) {
    const Json* const value = Member(name);
    if (value == nullptr && !optional) Fail(name, "is missing");
    return value;
  }

  const Json* object_;
  const std::string prefix_;
  absl::Status status_;
};

// What this engine would run wrongly without noticing.
void RefuseOtherModels(FieldReader& fields) {
  if (const std::string type = fields.Text("model_type", "llama"); type != "llama") {
    fields.Fail("model_type", absl::StrCat(Excerpt(type), " is not supported, only \"llama\" is"));
  }
  for (const char* const bias : {"attention_bias", "mlp_bias"}) {
    if (fields.Flag(bias, false)) fields.Fail(bias, "true is not supported");
  }
}

void ReadShape(FieldReader& fields, ModelConfig& config) {
  const auto size = [&](const char* name, int64_t max, std::optional<int64_t> otherwise = {}) {
    return static_cast<size_t>(fields.Integer(name, 1, max, otherwise));
  };
  config.layers = size("num_hidden_layers", kMaxLayers);
  config.hidden = size("hidden_size", kMaxWidth);
  config.query_heads = size("num_attention_heads", kMaxHeads);
  config.kv_heads =
      size("num_key_value_heads", kMaxHeads, static_cast<int64_t>(config.query_heads));
  config.ffn = size("intermediate_size", kMaxWidth);
  config.vocab = size("vocab_size", kMaxVocab);
  if (!fields.status().ok()) return;

  if (config.query_heads % config.kv_heads != 0) {
    fields.Fail("num_key_value_heads", absl::StrCat(config.kv_heads, " does not divide the ",
                                                    config.query_heads, " attention heads"));
  }
  if (!fields.Has("head_dim") && config.hidden % config.query_heads != 0) {
    fields.Fail("hidden_size",
                absl::StrCat(config.hidden, " is no multiple of the ", config.query_heads,
                             " attention heads, and head_dim is missing"));
  }
  config.head_dim =
      size("head_dim", kMaxHeadDim, static_cast<int64_t>(config.hidden / config.query_heads));
  if (config.head_dim % 2 != 0 || config.head_dim > kMaxHeadDim) {
    fields.Fail("head_dim",
                absl::StrCat(config.head_dim, " is not an even number from 2 to ", kMaxHeadDim));
  }
}

// Newer files have everything in "rope_parameters", older ones the scaling in "rope_scaling".
absl::Status ReadRope(FieldReader& fields, RopeOptions& rope) {
  const bool newer = fields.Has("rope_parameters");
  const char* const name = newer ? "rope_parameters" : "rope_scaling";
  FieldReader scaling(fields.Object(name), absl::StrCat(name, "."));
  rope.theta = newer ? scaling.Number("rope_theta", std::nullopt)
                     : fields.Number("rope_theta", RopeOptions().theta);
  const std::string old_type = scaling.Text("type", "default");
  const std::string type = scaling.Text("rope_type", old_type.c_str());
  if (type == "linear") {
    rope.scaling = RopeOptions::Scaling::kLinear;
    rope.factor = scaling.Number("factor", std::nullopt);
  } else if (type == "llama3") {
    rope.scaling = RopeOptions::Scaling::kLlama3;
    rope.factor = scaling.Number("factor", std::nullopt);
    rope.low_frequency_factor = scaling.Number("low_freq_factor", std::nullopt);
    rope.high_frequency_factor = scaling.Number("high_freq_factor", std::nullopt);
    rope.original_context = scaling.Number("original_max_position_embeddings", std::nullopt);
  } else if (type != "default") {
    scaling.Fail("rope_type",
                 absl::StrCat(Excerpt(type), " is not \"default\", \"linear\" or \"llama3\""));
  }
  if (!fields.status().ok()) return fields.status();
  if (!scaling.status().ok()) return scaling.status();
  return rope.Validate();
}

absl::StatusOr<ModelConfig> ParseModelConfig(const Json& json) {
  FieldReader fields(&json, "");
  ModelConfig config;
  RefuseOtherModels(fields);
  ReadShape(fields, config);
  const std::string activation = fields.Text("hidden_act", "silu");
  if (activation != "silu" && activation != "relu") {
    fields.Fail("hidden_act", absl::StrCat(Excerpt(activation), " is not \"silu\" or \"relu\""));
  }
  config.activation = activation == "relu" ? Activation::kRelu : Activation::kSilu;
  config.rms_norm_eps = fields.Number("rms_norm_eps", 1e-6);
  if (config.rms_norm_eps < 0 || config.rms_norm_eps > 1) {
    fields.Fail("rms_norm_eps", absl::StrCat(config.rms_norm_eps, " is not from 0 to 1"));
  }
  config.tied_head = fields.Flag("tie_word_embeddings", false);
  config.max_positions = fields.Integer("max_position_embeddings", 1, kMaxPositions, 2048);
  if (fields.Has("bos_token_id")) {
    const auto last = static_cast<int64_t>(config.vocab) - 1;
    config.start_token = static_cast<int32_t>(fields.Integer("bos_token_id", 0, last, 0));
  }
  if (!fields.status().ok()) return fields.status();
  if (absl::Status status = ReadRope(fields, config.rope); !status.ok()) return status;
  return config;
}

}  // namespace

absl::StatusOr<ModelConfig> ReadModelConfig(const std::string& path) {
  const absl::StatusOr<Json> json = ReadJsonObject(path);
  if (!json.ok()) return json.status();
  absl::StatusOr<ModelConfig> config = ParseModelConfig(*json);
  if (!config.ok()) {
    return absl::InvalidArgumentError(absl::StrCat(path, ": ", config.status().message()));
  }
  return config;
}

}  // namespace terrace
