#ifndef TERRACE_TOOLS_ENGINE_PAGED_FFN_H_
#define TERRACE_TOOLS_ENGINE_PAGED_FFN_H_

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "runtime/bundle_file.h"
#include "runtime/neuron_predictor.h"
#include "runtime/weight_pager.h"
#include "tools/engine/ffn_source.h"
#include "tools/engine/model_config.h"

namespace terrace {

// How a network's active neurons are known before their weights are there.
enum class PredictorKind : uint8_t { kOracle, kLowRank, kCore, kGateFirst, kAll };

// "oracle", "low-rank", "core", "gate-first", "all".
const char* PredictorKindName(PredictorKind kind);
std::optional<PredictorKind> ParsePredictorKind(absl::string_view name);

struct PagedFfnOptions {
  std::string model;    // the folder that the file must have been packed from
  std::string bundles;  // the file
  // Of the pager and the file's directory, low-rank factors included. What measures, as the oracle
  // does, comes on top, and so do the gates of a prompt for core.
  uint64_t dram_bytes = 0;
  size_t window_tokens = 0;  // as WeightPagerOptions
  PredictorKind predictor = PredictorKind::kLowRank;
  CoreOptions core;
  bool prefetch = false;  // what the predictor says of the next layer for this layer's input
  // The depth of the disk, where the tiers of keys and values are on it too; see
  // WeightPagerOptions.
  std::shared_ptr<DeviceShare> device_share = {};
  std::shared_ptr<Timeline> timeline = {};  // as WeightPagerOptions
  bool measure = false;  // compare predictions with what fires, by an oracle beside
};

struct PagedFfnStats {
  uint64_t layers = 1;
  // Of tokens whose networks were predicted, over all layers.
  uint64_t predictions = 0;  // tokens times layers
  uint64_t neurons = 0;      // that there are in these
  uint64_t predicted = 0;    // of these
  // With `measure`:
  uint64_t firing = 0;
  uint64_t missed = 0;  // firing, and not predicted
  uint64_t lost = 0;    // of these, not computed for the sake of a neighbour in their group either

  uint64_t prompt_tokens = 0;  // whose networks were computed whole
  uint64_t prompt_read_bytes = 0;
  double prompt_seconds = 0;
  double predict_seconds = 0;  // of predictions, those for prefetching included
  WeightPagerStats pager;
  uint64_t pager_bytes = 0;      // of memory
  uint64_t directory_bytes = 0;  // of memory
  uint64_t measuring_bytes = 0;  // of memory, beside the budget

  // Shares, 0 where there is nothing to share.
  double predicted_share() const;
  double firing_share() const;
  double missed_share() const;  // of what fires
  double lost_share() const;    // of what fires
  // Of tokens that were predicted, each.
  uint64_t read_bytes_per_token() const;
};

// Feed-forward networks whose weights are in a bundle file and partly in memory. A single token is
// predicted: the neurons that the predictor names are computed, all others left out. A prompt,
// which is several tokens or the first of a text, is computed whole, each layer streaming
// through once. Thread-compatible.
class PagedFfn final : public FfnSource {
 public:
  // kInvalidArgument for a file of another shape or model than `config` and options.model, a
  // predictor that the file does not allow, and fewer dram_bytes than are needed, with both
  // figures; otherwise the errors of BundleFile, WeightPager and predictors.
  static absl::StatusOr<std::unique_ptr<PagedFfn>> Open(const PagedFfnOptions& options,
                                                        const ModelConfig& config);

  absl::Status Run(const FfnStep& step) override;

  // A hash of what makes its results differ from those of the model in memory: the dtype of the
  // file and, unless it is exact, the predictor. What was computed with one does not go on with
  // another.
  uint64_t Fingerprint() const;
  PagedFfnStats Stats() const;
  const BundleFile& file() const { return pager_->file(); }
  const DeviceInfo& device_info() const { return pager_->device_info(); }

 private:
  PagedFfn(const PagedFfnOptions& options, std::unique_ptr<WeightPager> pager,
           std::unique_ptr<NeuronPredictor> predictor, std::unique_ptr<NeuronPredictor> oracle);
  absl::Status RunPrompt(const FfnStep& step);
  absl::Status RunPredicted(const FfnStep& step);
  absl::Status Predict(uint32_t layer, absl::Span<const float> x);
  absl::Status Measure(uint32_t layer, absl::Span<const float> x);

  const PagedFfnOptions options_;
  const std::unique_ptr<WeightPager> pager_;
  const std::unique_ptr<NeuronPredictor> predictor_;
  const std::unique_ptr<NeuronPredictor> oracle_;  // to measure with, or null
  PagedFfnStats stats_;                            // but for what Stats() adds
  std::vector<uint32_t> places_;
  std::vector<uint32_t> firing_;
};

}  // namespace terrace

#endif  // TERRACE_TOOLS_ENGINE_PAGED_FFN_H_
