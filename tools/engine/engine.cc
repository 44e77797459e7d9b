#include "tools/engine/engine.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "io/check.h"
#include "tools/engine/physical_memory.h"

namespace terrace {
namespace {

constexpr size_t kMaxChunkTokens = size_t{1} << 16;

// out[t] = x[t] / rms(x[t]) * weight, for rows of the weight's size (Zhang and Sennrich, 2019).
void RmsNorm(absl::Span<const float> x, absl::Span<const float> weight, double epsilon,
             absl::Span<float> out) {
  const size_t width = weight.size();
  for (size_t at = 0; at < x.size(); at += width) {
    double squares = 0;
    for (size_t i = 0; i < width; ++i) squares += static_cast<double>(x[at + i]) * x[at + i];
    const double mean = squares / static_cast<double>(width);
    const float scale = static_cast<float>(1 / std::sqrt(mean + epsilon));
    for (size_t i = 0; i < width; ++i) out[at + i] = x[at + i] * scale * weight[i];
  }
}

void Add(absl::Span<const float> from, absl::Span<float> to) {
  for (size_t i = 0; i < to.size(); ++i) to[i] += from[i];
}

}  // namespace

absl::Status EngineOptions::Validate() const {
  if (chunk_tokens >= 1 && chunk_tokens <= kMaxChunkTokens) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat("engine: chunk_tokens: ", chunk_tokens, " is not from 1 to ", kMaxChunkTokens));
}

Engine::Engine(const ModelConfig& config, ModelWeights weights, const EngineOptions& options,
               Rope rope)
    : config_(config),
      weights_(std::move(weights)),
      options_(options),
      rope_(std::move(rope)),
      hidden_(options.chunk_tokens * config.hidden),
      normed_(hidden_.size()),
      query_(options.chunk_tokens * config.query_width()),
      key_(options.chunk_tokens * config.kv_width()),
      value_(key_.size()),
      attended_(query_.size()),
      added_(hidden_.size()),
      cosines_(options.chunk_tokens * config.head_dim / 2),
      sines_(cosines_.size()) {
  if (!weights_.has_ffn()) return;
  dense_ffn_ = std::make_unique<DenseFfn>(config_, weights_, options.chunk_tokens);
  ffn_ = dense_ffn_.get();
}

absl::StatusOr<std::unique_ptr<Engine>> Engine::Load(const std::string& directory,
                                                     const EngineOptions& options) {
  const TimelineSpan span(options.timeline.get(), "load model");
  const absl::StatusOr<ModelConfig> config =
      ReadModelConfig(absl::StrCat(directory, "/config.json"));
  if (!config.ok()) return config.status();
  absl::StatusOr<ModelWeights> weights = LoadModelWeights(directory, *config, options.ffn);
  if (!weights.ok()) return weights.status();
  return Create(*config, *std::move(weights), options);
}

absl::StatusOr<std::unique_ptr<Engine>> Engine::Create(const ModelConfig& config,
                                                       ModelWeights weights,
                                                       const EngineOptions& options) {
  if (absl::Status status = options.Validate(); !status.ok()) return status;
  absl::StatusOr<Rope> rope = Rope::Create(config.head_dim, config.rope);
  if (!rope.ok()) return rope.status();
  const uint64_t token_floats = 3 * config.hidden + 2 * config.query_width() +
                                2 * config.kv_width() + 2 * config.ffn + config.head_dim;
  const absl::Status fits =
      CheckFitsMemory(absl::StrCat("engine: buffers of ", options.chunk_tokens, " tokens"),
                      sizeof(float) * token_floats * options.chunk_tokens);
  if (!fits.ok()) return fits;
  TERRACE_CHECK_EQ(weights.layers.size(), config.layers);
  return std::unique_ptr<Engine>(new Engine(config, std::move(weights), options, *std::move(rope)));
}

void Engine::UseFfn(FfnSource* ffn) {
  ffn_ = ffn != nullptr ? ffn : dense_ffn_.get();
  TERRACE_CHECK(ffn_ != nullptr);
}

void Engine::UseProducts(WeightProducts* products) {
  products_ = products != nullptr ? products : &cpu_products_;
  if (dense_ffn_ != nullptr) dense_ffn_->UseProducts(products_);
}

size_t Engine::LogitCount(const ForwardStep& step) const {
  switch (step.logits_of) {
    case LogitsOf::kNone:
      return 0;
    case LogitsOf::kLastToken:
      return config_.vocab;
    case LogitsOf::kEveryToken:
      return step.tokens.size() * config_.vocab;
  }
  return 0;
}

absl::Status Engine::CheckStep(const ForwardStep& step) const {
  if (step.tokens.empty()) return absl::InvalidArgumentError("engine: no tokens to run");
  if (step.position < 0) {
    return absl::InvalidArgumentError(
        absl::StrCat("engine: position ", step.position, " is negative"));
  }
  for (size_t i = 0; i < step.tokens.size(); ++i) {
    if (step.tokens[i] < 0 || static_cast<size_t>(step.tokens[i]) >= config_.vocab) {
      return absl::InvalidArgumentError(
          absl::StrCat("engine: token ", i, " has the id ", step.tokens[i],
                       ", outside of the vocabulary of ", config_.vocab));
    }
  }
  return absl::OkStatus();
}

absl::Status Engine::Forward(const ForwardStep& step, AttentionSource& attention,
                             absl::Span<float> logits) {
  TERRACE_CHECK(ffn_ != nullptr);
  TERRACE_CHECK_EQ(logits.size(), LogitCount(step));
  if (absl::Status status = CheckStep(step); !status.ok()) return status;
  const TimelineSpan span(timeline(), "forward", {"tokens", step.tokens.size()},
                          {"position", step.position});
  const absl::Time start = absl::Now();
  const absl::Duration sources_before = times_.attention + times_.ffn;
  absl::Status status;
  for (size_t at = 0; status.ok() && at < step.tokens.size(); at += options_.chunk_tokens) {
    const absl::Span<const int32_t> chunk = step.tokens.subspan(at, options_.chunk_tokens);
    Embed(chunk);
    status = RunLayers(chunk.size(), step.position + static_cast<int64_t>(at), attention);
    if (!status.ok()) break;
    times_.tokens += static_cast<int64_t>(chunk.size());
    if (step.logits_of == LogitsOf::kEveryToken) {
      status = RunHead(0, chunk.size(),
                       logits.subspan(at * config_.vocab, chunk.size() * config_.vocab));
    } else if (step.logits_of == LogitsOf::kLastToken && at + chunk.size() == step.tokens.size()) {
      status = RunHead(chunk.size() - 1, 1, logits);
    }
  }
  times_.rest += absl::Now() - start - (times_.attention + times_.ffn - sources_before);
  return status;
}

void Engine::Embed(absl::Span<const int32_t> tokens) {
  for (size_t i = 0; i < tokens.size(); ++i) {
    const float* const row =
        weights_.embedding.values.data() + static_cast<size_t>(tokens[i]) * config_.hidden;
    std::copy_n(row, config_.hidden, hidden_.data() + i * config_.hidden);
  }
}

absl::Status Engine::RunLayers(size_t tokens, int64_t position, AttentionSource& attention) {
  if (attention.rotated()) PrepareAngles(tokens, position);
  for (size_t layer = 0; layer < config_.layers; ++layer) {
    absl::Status status = RunAttention(layer, tokens, position, attention);
    if (!status.ok()) return status;
    status = RunFfn(layer, tokens, position);
    if (!status.ok()) return status;
  }
  return absl::OkStatus();
}

// Every layer rotates by the same angles.
void Engine::PrepareAngles(size_t tokens, int64_t position) {
  const size_t half = config_.head_dim / 2;
  for (size_t i = 0; i < tokens; ++i) {
    rope_.Angles(position + static_cast<int64_t>(i),
                 absl::MakeSpan(cosines_).subspan(i * half, half),
                 absl::MakeSpan(sines_).subspan(i * half, half));
  }
}

void Engine::Rotate(size_t tokens, size_t width, absl::Span<float> rows) const {
  const size_t half = config_.head_dim / 2;
  for (size_t i = 0; i < tokens; ++i) {
    Rope::Rotate(absl::MakeConstSpan(cosines_).subspan(i * half, half),
                 absl::MakeConstSpan(sines_).subspan(i * half, half),
                 rows.subspan(i * width, width));
  }
}

absl::Status Engine::RunAttention(size_t layer, size_t tokens, int64_t position,
                                  AttentionSource& attention) {
  const TimelineSpan span(timeline(), "attention", {"layer", layer}, {"tokens", tokens});
  const LayerWeights& weights = weights_.layers[layer];
  const absl::Span<float> hidden = absl::MakeSpan(hidden_).first(tokens * config_.hidden);
  const absl::Span<float> normed = absl::MakeSpan(normed_).first(hidden.size());
  const absl::Span<float> added = absl::MakeSpan(added_).first(hidden.size());
  const absl::Span<float> query = absl::MakeSpan(query_).first(tokens * config_.query_width());
  const absl::Span<float> key = absl::MakeSpan(key_).first(tokens * config_.kv_width());
  const absl::Span<float> value = absl::MakeSpan(value_).first(key.size());
  const absl::Span<float> attended = absl::MakeSpan(attended_).first(query.size());

  RmsNorm(hidden, weights.attention_norm, config_.rms_norm_eps, normed);
  absl::Status status = products_->Apply(normed, {{.weights = &weights.query, .out = query},
                                                  {.weights = &weights.key, .out = key},
                                                  {.weights = &weights.value, .out = value}});
  if (!status.ok()) return status;
  if (attention.rotated()) {
    Rotate(tokens, config_.query_width(), query);
    Rotate(tokens, config_.kv_width(), key);
  }

  AttentionStep step;
  step.layer = layer;
  step.position = position;
  step.tokens = tokens;
  step.query = query;
  step.key = key;
  step.value = value;
  step.out = attended;
  const absl::Time start = absl::Now();
  status = attention.Attend(step);
  times_.attention += absl::Now() - start;
  if (!status.ok()) return status;

  status = products_->Apply(attended, {{.weights = &weights.output, .out = added}});
  if (!status.ok()) return status;
  Add(added, hidden);
  return absl::OkStatus();
}

absl::Status Engine::RunFfn(size_t layer, size_t tokens, int64_t position) {
  const TimelineSpan span(timeline(), "ffn", {"layer", layer}, {"tokens", tokens});
  const absl::Span<float> hidden = absl::MakeSpan(hidden_).first(tokens * config_.hidden);
  const absl::Span<float> normed = absl::MakeSpan(normed_).first(hidden.size());
  const absl::Span<float> added = absl::MakeSpan(added_).first(hidden.size());
  RmsNorm(hidden, weights_.layers[layer].ffn_norm, config_.rms_norm_eps, normed);
  FfnStep step;
  step.layer = layer;
  step.position = position;
  step.tokens = tokens;
  step.x = normed;
  step.out = added;
  const absl::Time start = absl::Now();
  absl::Status status = ffn_->Run(step);
  times_.ffn += absl::Now() - start;
  if (!status.ok()) return status;
  Add(added, hidden);
  return absl::OkStatus();
}

absl::Status Engine::RunHead(size_t first_token, size_t tokens, absl::Span<float> logits) {
  const absl::Span<const float> hidden =
      absl::MakeConstSpan(hidden_).subspan(first_token * config_.hidden, tokens * config_.hidden);
  const TimelineSpan span(timeline(), "output head", {"tokens", tokens});
  const absl::Span<float> normed = absl::MakeSpan(normed_).first(hidden.size());
  RmsNorm(hidden, weights_.norm, config_.rms_norm_eps, normed);
  return products_->Apply(normed, {{.weights = &weights_.output_head(), .out = logits}});
}

}  // namespace terrace
