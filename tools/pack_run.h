#ifndef TERRACE_TOOLS_PACK_RUN_H_
#define TERRACE_TOOLS_PACK_RUN_H_

#include <atomic>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/status/statusor.h"
#include "runtime/bundle_file.h"
#include "tools/engine/ffn_calibration.h"

namespace terrace {

struct PackSetup {
  std::string model;  // folder
  std::string out;
  KvDtype dtype = KvDtype::kFloat16;
  BundleLayout layout = BundleLayout::kBundled;
  uint32_t group_neurons = 0;  // 0: the fewest that waste no more than a quarter
  std::optional<std::string> calibration_text;
  CalibrationOptions calibration;
  bool keep_order = false;  // of the model, although frequencies are known
};

// What one layer's calibration came to; see LayerCalibration.
struct CalibratedLayer {
  double false_negatives = 0;
  double predicted_share = 0;
  double active_share = 0;
};

struct PackReport {
  std::shared_ptr<const BundleFile> file;
  std::vector<CalibratedLayer> calibrated;  // of pack with calibration
  size_t fit_tokens = 0;
  size_t threshold_tokens = 0;
  double calibrate_seconds = 0;
  double write_seconds = 0;
  uint64_t peak_memory_bytes = 0;
  std::optional<uint64_t> verified_bytes;  // of groups, all right
};

// Packs a model and opens the result. `progress` hears of bytes written, of how many. Errors are
// those of the checkpoint, of Calibrate and of BundleWriter, and kCancelled after `stop`.
absl::StatusOr<PackReport> RunPack(const PackSetup& setup, const std::atomic<bool>& stop,
                                   absl::FunctionRef<void(uint64_t done, uint64_t all)> progress);

// Opens a bundle file; with `verify`, reads all groups. Errors are those of BundleFile.
absl::StatusOr<PackReport> InspectBundles(
    const std::string& path, bool verify, const std::atomic<bool>& stop,
    absl::FunctionRef<void(uint64_t done, uint64_t all)> progress);

}  // namespace terrace

#endif  // TERRACE_TOOLS_PACK_RUN_H_
