#include "tools/engine/ffn_calibration.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <memory>
#include <utility>

#include "absl/strings/str_cat.h"
#include "index/kv_convert.h"
#include "tools/engine/byte_tokenizer.h"
#include "tools/engine/dense_ffn.h"
#include "tools/engine/matrix_product.h"
#include "tools/engine/plain_attention.h"

namespace terrace {
namespace {

constexpr size_t kLeastBytes = 1024;
constexpr size_t kMostWindowTokens = 2048;
constexpr size_t kChunkTokens = 512;

// Computes a model's own networks and shows their inputs and gates to `observe`.
class ObservedFfn : public FfnSource {
 public:
  explicit ObservedFfn(const Engine& engine)
      : config_(engine.config()),
        weights_(engine.weights()),
        dense_(config_, weights_, kChunkTokens) {}

  absl::Status Run(const FfnStep& step) final {
    gates_.resize(step.tokens * config_.ffn);
    ApplyWeights(weights_.layers[step.layer].gate, step.x, absl::MakeSpan(gates_));
    Observe(step.layer, step.x, gates_);
    return dense_.Run(step);
  }

 protected:
  // x: [tokens, width], gates: [tokens, neurons].
  virtual void Observe(size_t layer, absl::Span<const float> x, absl::Span<const float> gates) = 0;

  const ModelConfig& config_;
  const ModelWeights& weights_;

 private:
  DenseFfn dense_;
  std::vector<float> gates_;
};

// Adds up inputs, and how often neurons fire.
class MomentsFfn final : public ObservedFfn {
 public:
  explicit MomentsFfn(const Engine& engine)
      : ObservedFfn(engine), moments_(config_.layers), fired_(config_.layers) {
    for (std::vector<uint64_t>& fired : fired_) fired.resize(config_.ffn);
  }

  const InputMoments& moments(size_t layer) const { return moments_[layer]; }
  std::vector<float> Frequency(size_t layer) const {
    std::vector<float> frequency;
    const auto tokens = static_cast<double>(moments_[layer].tokens);
    for (const uint64_t count : fired_[layer]) {
      frequency.push_back(static_cast<float>(static_cast<double>(count) / tokens));
    }
    return frequency;
  }

 private:
  void Observe(size_t layer, absl::Span<const float> x, absl::Span<const float> gates) override {
    moments_[layer].Add(x, config_.hidden);
    for (size_t i = 0; i < gates.size(); ++i) fired_[layer][i % config_.ffn] += gates[i] > 0;
  }

  std::vector<InputMoments> moments_;
  std::vector<std::vector<uint64_t>> fired_;
};

// Counts by how many standard deviations the fits say that neurons fire, of those that do and of
// those that do not.
class ScoresFfn final : public ObservedFfn {
 public:
  ScoresFfn(const Engine& engine, const std::vector<LayerCalibration>& layers)
      : ObservedFfn(engine), layers_(layers), counts_(layers.size()) {
    for (const LayerCalibration& layer : layers) {
      a_.push_back(ToMatrix(layer.fit.a, layer.fit.rank, config_.hidden));
      b_.push_back(ToMatrix(layer.fit.b, config_.ffn, layer.fit.rank));
    }
  }

  // The largest score, of the histogram's, below which at most the bound's share of firing neurons
  // lies; also how that turns out.
  double Decide(size_t layer, double bound, LayerCalibration& outcome) const {
    const Counts& counts = counts_[layer];
    uint64_t firing = 0;
    uint64_t all = 0;
    for (size_t i = 0; i < kBins; ++i) {
      firing += counts.firing[i];
      all += counts.firing[i] + counts.idle[i];
    }
    uint64_t missed = 0;
    uint64_t left_out = 0;
    size_t bin = 0;
    while (bin < kBins && static_cast<double>(missed + counts.firing[bin]) <=
                              bound * static_cast<double>(firing)) {
      missed += counts.firing[bin];
      left_out += counts.firing[bin] + counts.idle[bin];
      ++bin;
    }
    const auto share = [](uint64_t part, uint64_t whole) {
      return whole == 0 ? 0 : static_cast<double>(part) / static_cast<double>(whole);
    };
    outcome.false_negatives = share(missed, firing);
    outcome.predicted_share = share(all - left_out, all);
    outcome.active_share = share(firing, all);
    return (static_cast<double>(bin) / kBinsPerUnit) - kRange;
  }

 private:
  static constexpr double kRange = 16;  // standard deviations; what is beyond is in the last bin
  static constexpr double kBinsPerUnit = 128;
  static constexpr size_t kBins = static_cast<size_t>(2 * kRange * kBinsPerUnit);
  struct Counts {
    std::array<uint64_t, kBins> firing = {};
    std::array<uint64_t, kBins> idle = {};
  };

  static Matrix ToMatrix(const std::vector<uint16_t>& halves, size_t rows, size_t columns) {
    Matrix matrix = {rows, columns, std::vector<float>(halves.size())};
    DecodeKv(halves.data(), KvDtype::kFloat16, halves.size(), matrix.values.data());
    return matrix;
  }

  void Observe(size_t layer, absl::Span<const float> x, absl::Span<const float> gates) override {
    const LowRankFit& fit = layers_[layer].fit;
    reduced_.resize(x.size() / config_.hidden * fit.rank);
    scores_.resize(gates.size());
    ApplyWeights(a_[layer], x, absl::MakeSpan(reduced_));
    ApplyWeights(b_[layer], reduced_, absl::MakeSpan(scores_));
    Counts& counts = counts_[layer];
    for (size_t i = 0; i < gates.size(); ++i) {
      const size_t neuron = i % config_.ffn;
      const double score = (scores_[i] + fit.offset[neuron]) / fit.residual[neuron];
      const double bin = std::clamp((score + kRange) * kBinsPerUnit, 0.0, kBins - 1.0);
      ++(gates[i] > 0 ? counts.firing : counts.idle)[static_cast<size_t>(bin)];
    }
  }

  const std::vector<LayerCalibration>& layers_;
  std::vector<Matrix> a_;
  std::vector<Matrix> b_;
  std::vector<Counts> counts_;
  std::vector<float> reduced_;
  std::vector<float> scores_;
};

// The windows of the text; every fourth is for thresholds.
struct Windows {
  std::vector<absl::string_view> fit;
  std::vector<absl::string_view> threshold;
};

Windows Cut(absl::string_view text, size_t most_tokens) {
  text = text.substr(0, most_tokens);
  const size_t bytes = std::min(kMostWindowTokens - 1, text.size() / 4);
  Windows windows;
  for (size_t i = 0; (i + 1) * bytes <= text.size(); ++i) {
    (i % 4 == 3 ? windows.threshold : windows.fit).push_back(text.substr(i * bytes, bytes));
  }
  return windows;
}

absl::StatusOr<size_t> RunWindows(absl::Span<const absl::string_view> windows, FfnSource& ffn,
                                  Engine& engine) {
  absl::StatusOr<std::unique_ptr<PlainAttention>> attention =
      PlainAttention::Create(engine.config(), {.max_tokens = kMostWindowTokens});
  if (!attention.ok()) return attention.status();
  engine.UseFfn(&ffn);
  size_t run = 0;
  absl::Status status;
  for (size_t i = 0; status.ok() && i < windows.size(); ++i) {
    const std::vector<int32_t> tokens = EncodeText(windows[i]);
    status = (*attention)->Truncate(0);
    for (size_t at = 0; status.ok() && at < tokens.size(); at += kChunkTokens) {
      const ForwardStep step = {absl::MakeConstSpan(tokens).subspan(at, kChunkTokens),
                                static_cast<int64_t>(at), LogitsOf::kNone};
      status = engine.Forward(step, **attention, {});
    }
    run += tokens.size();
  }
  engine.UseFfn(nullptr);
  if (!status.ok()) return status;
  return run;
}

absl::Status CheckModel(absl::string_view text, const CalibrationOptions& options,
                        const Engine& engine) {
  if (absl::Status status = options.Validate(); !status.ok()) return status;
  if (absl::Status status = CheckByteModel(engine.config()); !status.ok()) return status;
  if (!IsSparse(engine.config().activation)) {
    return absl::InvalidArgumentError(
        absl::StrCat("calibration: the activation ", ActivationName(engine.config().activation),
                     " is never exactly 0, so that there is nothing to predict"));
  }
  if (options.rank > engine.config().hidden) {
    return absl::InvalidArgumentError(absl::StrCat("calibration: rank: ", options.rank,
                                                   " is more than the width of ",
                                                   engine.config().hidden));
  }
  if (std::min(text.size(), options.tokens) >= kLeastBytes) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat("calibration: a text of ",
                                                 std::min(text.size(), options.tokens),
                                                 " bytes is shorter than ", kLeastBytes));
}

}  // namespace

absl::Status CalibrationOptions::Validate() const {
  if (false_negative_bound >= 0 && false_negative_bound < 1) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat("calibration: false_negative_bound: ", false_negative_bound,
                   " is not at least 0 and below 1"));
}

absl::StatusOr<Calibration> Calibrate(absl::string_view text, const CalibrationOptions& options,
                                      Engine& engine) {
  if (absl::Status status = CheckModel(text, options, engine); !status.ok()) return status;
  const auto width = static_cast<uint32_t>(engine.config().hidden);
  const uint32_t rank = options.rank > 0 ? options.rank : std::max(width / 4, 1u);
  const Windows windows = Cut(text, options.tokens);
  Calibration result;

  MomentsFfn moments(engine);
  const absl::StatusOr<size_t> fit_tokens = RunWindows(windows.fit, moments, engine);
  if (!fit_tokens.ok()) return fit_tokens.status();
  result.fit_tokens = *fit_tokens;
  for (size_t i = 0; i < engine.config().layers; ++i) {
    LayerCalibration layer;
    layer.frequency = moments.Frequency(i);
    absl::StatusOr<LowRankFit> fit =
        FitLowRank(engine.weights().layers[i].gate, moments.moments(i), rank);
    if (!fit.ok()) return fit.status();
    layer.fit = *std::move(fit);
    result.layers.push_back(std::move(layer));
  }

  ScoresFfn scores(engine, result.layers);
  const absl::StatusOr<size_t> threshold_tokens = RunWindows(windows.threshold, scores, engine);
  if (!threshold_tokens.ok()) return threshold_tokens.status();
  result.threshold_tokens = *threshold_tokens;
  for (size_t i = 0; i < result.layers.size(); ++i) {
    LayerCalibration& layer = result.layers[i];
    const double score = scores.Decide(i, options.false_negative_bound, layer);
    for (size_t neuron = 0; neuron < layer.fit.offset.size(); ++neuron) {
      layer.thresholds.push_back(static_cast<float>(score) * layer.fit.residual[neuron] -
                                 layer.fit.offset[neuron]);
    }
  }
  return result;
}

}  // namespace terrace
