#include <algorithm>
#include <cmath>
#include <functional>
#include <numeric>
#include <utility>

#include "absl/strings/str_cat.h"
#include "runtime/ffn_kernels.h"
#include "runtime/gate_rows.h"
#include "runtime/neuron_predictor.h"

namespace terrace {
namespace {

size_t ShareOf(double share, size_t count) {
  return static_cast<size_t>(std::ceil(share * static_cast<double>(count)));
}

class CorePredictor final : public NeuronPredictor {
 public:
  CorePredictor(std::shared_ptr<const BundleFile> file, std::unique_ptr<GateRows> rows,
                const CoreOptions& options)
      : file_(std::move(file)),
        rows_(std::move(rows)),
        options_(options),
        layers_(file_->shape().layers) {
    for (Layer& layer : layers_) layer.tokens_in_core.resize(file_->shape().neurons);
  }

  const char* name() const override { return "core"; }

  absl::Status Observe(uint32_t layer, bool begins, absl::Span<const float> x) override {
    Layer& of = layers_[layer];
    of.core.clear();
    if (begins) std::fill(of.tokens_in_core.begin(), of.tokens_in_core.end(), 0u);
    if (layer < options_.first_layer) return absl::OkStatus();
    const BundleShape& shape = file_->shape();
    const size_t tokens = x.size() / shape.width;
    gates_.resize(tokens * shape.neurons);
    absl::Status status = rows_->ForEach(layer, [&](uint32_t place, const std::byte* row) {
      DotTokens(shape.dtype, row, x.data(), shape.width, shape.width,
                absl::MakeSpan(gates_).subspan(place * tokens, tokens));
    });
    if (!status.ok()) return status;
    for (size_t token = 0; token < tokens; ++token) AddToken(token, tokens, of);
    return absl::OkStatus();
  }

  absl::Status Predict(uint32_t layer, absl::Span<const float>,
                       std::vector<uint32_t>& places) override {
    Layer& of = layers_[layer];
    if (of.core.empty()) Freeze(layer, of);
    places = of.core;
    return absl::OkStatus();
  }

  size_t memory_bytes() const override {
    return 2 * sizeof(uint32_t) * file_->shape().all_neurons() + gates_.size() * sizeof(float);
  }

 private:
  struct Layer {
    std::vector<uint32_t> tokens_in_core;  // [neurons] of the prompt, by place
    std::vector<uint32_t> core;            // places, ascending; empty: not chosen yet
  };

  // Counts the neurons in the core of one token.
  void AddToken(size_t token, size_t tokens, Layer& of) {
    firing_.clear();
    for (uint32_t place = 0; place < of.tokens_in_core.size(); ++place) {
      const float gate = gates_[place * tokens + token];
      if (gate > 0) firing_.emplace_back(gate, place);
    }
    const size_t keep = ShareOf(options_.token_share, firing_.size());
    std::nth_element(firing_.begin(), firing_.begin() + static_cast<std::ptrdiff_t>(keep),
                     firing_.end(), std::greater<>());
    for (size_t i = 0; i < keep; ++i) ++of.tokens_in_core[firing_[i].second];
  }

  void Freeze(uint32_t layer, Layer& of) {
    const std::vector<uint32_t>& counts = of.tokens_in_core;
    of.core.resize(counts.size());
    std::iota(of.core.begin(), of.core.end(), 0u);
    const bool seen = std::any_of(counts.begin(), counts.end(), [](uint32_t n) { return n > 0; });
    if (layer < options_.first_layer || !seen) return;
    std::stable_sort(of.core.begin(), of.core.end(),
                     [&counts](uint32_t a, uint32_t b) { return counts[a] > counts[b]; });
    of.core.resize(std::max<size_t>(ShareOf(options_.text_share, counts.size()), 1));
    std::sort(of.core.begin(), of.core.end());
  }

  const std::shared_ptr<const BundleFile> file_;
  const std::unique_ptr<GateRows> rows_;
  const CoreOptions options_;
  std::vector<Layer> layers_;
  std::vector<float> gates_;                        // [neurons, tokens]
  std::vector<std::pair<float, uint32_t>> firing_;  // gate and place
};

}  // namespace

absl::Status CoreOptions::Validate() const {
  for (const auto& [field, value] :
       {std::pair("token_share", token_share), std::pair("text_share", text_share)}) {
    if (value > 0 && value <= 1) continue;
    return absl::InvalidArgumentError(
        absl::StrCat("core predictor: ", field, ": ", value, " is not above 0 and at most 1"));
  }
  return absl::OkStatus();
}

absl::StatusOr<std::unique_ptr<NeuronPredictor>> MakeCorePredictor(
    std::shared_ptr<const BundleFile> file, const CoreOptions& options) {
  if (absl::Status status = options.Validate(); !status.ok()) return status;
  if (absl::Status status = CheckPredictable(*file); !status.ok()) return status;
  absl::StatusOr<std::unique_ptr<GateRows>> rows = GateRows::Open(file);
  if (!rows.ok()) return rows.status();
  return std::make_unique<CorePredictor>(std::move(file), *std::move(rows), options);
}

}  // namespace terrace
