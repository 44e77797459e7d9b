#ifndef TERRACE_TOOLS_ENGINE_FFN_CALIBRATION_H_
#define TERRACE_TOOLS_ENGINE_FFN_CALIBRATION_H_

#include <cstddef>
#include <cstdint>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "tools/engine/engine.h"
#include "tools/engine/low_rank_fit.h"

namespace terrace {

struct CalibrationOptions {
  size_t tokens = 16384;               // of the text, at most
  uint32_t rank = 0;                   // of the predictors; 0: a quarter of the width
  double false_negative_bound = 0.01;  // the share of firing neurons that predictors may miss

  // kInvalidArgument naming the field.
  absl::Status Validate() const;
};

// What running a text through the model told of one layer.
struct LayerCalibration {
  std::vector<float> frequency;   // [neurons] share of tokens for which each fired
  LowRankFit fit;                 // of its gate matrix
  std::vector<float> thresholds;  // [neurons]: fires where  b (a x) > threshold
  double false_negatives = 0;     // of firing neurons, on the tokens of the thresholds
  double predicted_share = 0;     // of neurons, on the same
  double active_share = 0;        // of neurons, on the same
};
struct Calibration {
  size_t fit_tokens = 0;        // of frequencies and factors
  size_t threshold_tokens = 0;  // others, of the thresholds
  std::vector<LayerCalibration> layers;
};

// Runs windows of the text through a model of bytes with ReLU. Of every four, three give
// frequencies and factors; the fourth gives the thresholds: for each neuron the same number of
// standard deviations of what its fit lacks, as many as the bound allows. Memory: 8 * width^2 bytes
// a layer. kInvalidArgument for bad options, a text of fewer than 1,024 bytes, and a model that
// does not qualify; otherwise the errors of Engine::Forward.
absl::StatusOr<Calibration> Calibrate(absl::string_view text, const CalibrationOptions& options,
                                      Engine& engine);

}  // namespace terrace

#endif  // TERRACE_TOOLS_ENGINE_FFN_CALIBRATION_H_
