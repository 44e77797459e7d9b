#include "tools/pack_run.h"

#include <algorithm>
#include <numeric>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "io/aligned_buffer.h"
#include "io/block_device.h"
#include "runtime/bundle_writer.h"
#include "tools/engine/checkpoint.h"
#include "tools/engine/checkpoint_bundles.h"
#include "tools/engine/engine.h"
#include "tools/engine/ffn_tensors.h"
#include "tools/replay_report.h"

namespace terrace {
namespace {

BundleShape ShapeOf(const FfnTensors& tensors, const PackSetup& setup) {
  BundleShape shape;
  shape.layers = tensors.layers;
  shape.experts = tensors.experts;
  shape.neurons = tensors.neurons;
  shape.width = tensors.width;
  shape.gated = tensors.gated;
  shape.activation = tensors.activation;
  shape.dtype = setup.dtype;
  shape.layout = setup.layout;
  shape.group_neurons = setup.group_neurons > 0
                            ? setup.group_neurons
                            : std::min(BundleShape::AutoGroupNeurons(shape.bundle_bytes()),
                                       std::min(shape.neurons, BundleShape::kMaxGroupNeurons));
  return shape;
}

// Neurons by place: the most frequent first, so that groups hold what is used together.
std::vector<uint32_t> Order(const std::vector<float>& frequency, bool keep) {
  std::vector<uint32_t> order(frequency.size());
  std::iota(order.begin(), order.end(), 0u);
  if (keep) return order;
  std::stable_sort(order.begin(), order.end(),
                   [&](uint32_t a, uint32_t b) { return frequency[a] > frequency[b]; });
  return order;
}

// Appends the tables of one layer.
void AddLayer(const LayerCalibration& layer, bool keep_order, BundleTables& tables) {
  PredictorFactors factors;
  factors.rank = layer.fit.rank;
  factors.a = layer.fit.a;
  for (const uint32_t neuron : Order(layer.frequency, keep_order)) {
    tables.order.push_back(neuron);
    tables.frequency.push_back(layer.frequency[neuron]);
    const auto row = layer.fit.b.begin() + static_cast<std::ptrdiff_t>(neuron) * layer.fit.rank;
    factors.b.insert(factors.b.end(), row, row + layer.fit.rank);
    factors.thresholds.push_back(layer.thresholds[neuron]);
  }
  tables.predictors.push_back(std::move(factors));
}

absl::Status CalibrateTables(const PackSetup& setup, PackReport& report, BundleTables& tables) {
  const absl::Time start = absl::Now();
  absl::StatusOr<std::unique_ptr<Engine>> engine = Engine::Load(setup.model);
  if (!engine.ok()) return engine.status();
  const absl::StatusOr<Calibration> calibration =
      Calibrate(*setup.calibration_text, setup.calibration, **engine);
  if (!calibration.ok()) return calibration.status();
  tables.false_negative_bound = setup.calibration.false_negative_bound;
  for (const LayerCalibration& layer : calibration->layers) {
    AddLayer(layer, setup.keep_order, tables);
    report.calibrated.push_back({layer.false_negatives, layer.predicted_share, layer.active_share});
  }
  report.fit_tokens = calibration->fit_tokens;
  report.threshold_tokens = calibration->threshold_tokens;
  report.calibrate_seconds = absl::ToDoubleSeconds(absl::Now() - start);
  return absl::OkStatus();
}

absl::Status Open(const std::string& path, PackReport& report) {
  absl::StatusOr<std::unique_ptr<const BundleFile>> file = BundleFile::Open(path);
  if (!file.ok()) return file.status();
  report.file = *std::move(file);
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<PackReport> RunPack(const PackSetup& setup, const std::atomic<bool>& stop,
                                   absl::FunctionRef<void(uint64_t done, uint64_t all)> progress) {
  const absl::StatusOr<Checkpoint> checkpoint = Checkpoint::Open(setup.model);
  if (!checkpoint.ok()) return checkpoint.status();
  const absl::StatusOr<FfnTensors> tensors = FfnTensors::Find(*checkpoint);
  if (!tensors.ok()) return tensors.status();
  const BundleShape shape = ShapeOf(*tensors, setup);
  if (absl::Status status = shape.Validate(); !status.ok()) return status;
  BundleTables tables;
  const absl::StatusOr<uint64_t> fingerprint = checkpoint->Fingerprint();
  if (!fingerprint.ok()) return fingerprint.status();
  tables.model_fingerprint = *fingerprint;

  PackReport report;
  if (setup.calibration_text.has_value()) {
    absl::Status status = CalibrateTables(setup, report, tables);
    if (!status.ok()) return status;
  }
  const absl::Time start = absl::Now();
  const std::vector<uint32_t> order = tables.order;
  CheckpointBundles bundles(*checkpoint, *tensors, shape, order);
  uint64_t done = 0;
  absl::Status status =
      WriteBundleFile(setup.out, shape, std::move(tables),
                      [&](const BundleRun& run, absl::Span<std::byte> bytes) -> absl::Status {
                        if (stop.load(std::memory_order_relaxed)) {
                          return absl::CancelledError("interrupted by a signal");
                        }
                        progress(done, shape.weight_bytes());
                        done += bytes.size();
                        return bundles.Fill(run, bytes);
                      });
  if (status.ok()) status = Open(setup.out, report);
  if (!status.ok()) return status;
  report.write_seconds = absl::ToDoubleSeconds(absl::Now() - start);
  report.peak_memory_bytes = ProcessUsage::Now().peak_memory_bytes;
  return report;
}

absl::StatusOr<PackReport> InspectBundles(
    const std::string& path, bool verify, const std::atomic<bool>& stop,
    absl::FunctionRef<void(uint64_t done, uint64_t all)> progress) {
  PackReport report;
  if (absl::Status status = Open(path, report); !status.ok()) return status;
  if (!verify) return report;
  const BundleShape& shape = report.file->shape();
  FileDeviceOptions options;
  options.path = path;
  options.size_bytes = report.file->file_bytes();
  options.read_only = true;
  options.depth = 1;
  const absl::StatusOr<std::unique_ptr<BlockDevice>> device = OpenFileDevice(options);
  if (!device.ok()) return device.status();
  const absl::StatusOr<AlignedBuffer> buffer = AlignedBuffer::Create(size_t{8} << 20);
  if (!buffer.ok()) return buffer.status();
  for (uint64_t at = BundleShape::kDataOffset; at < shape.data_end(); at += buffer->size()) {
    if (stop.load(std::memory_order_relaxed)) {
      return absl::CancelledError("interrupted by a signal");
    }
    progress(at, shape.data_end());
    const uint64_t bytes = std::min<uint64_t>(buffer->size(), shape.data_end() - at);
    const iovec vector = {buffer->data(), bytes};
    IoRequest request;
    request.offset = at;
    request.buffers = absl::MakeConstSpan(&vector, 1);
    IoRequest* const batch[] = {&request};
    absl::Status status = RunBatch(**device, batch);
    if (status.ok()) status = report.file->Verify(at, buffer->span().first(bytes));
    if (!status.ok()) return status;
  }
  report.verified_bytes = shape.data_bytes();
  return report;
}

}  // namespace terrace
