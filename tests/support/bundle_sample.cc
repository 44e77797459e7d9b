#include "tests/support/bundle_sample.h"

#include <cmath>
#include <fstream>
#include <numeric>
#include <utility>

#include "index/kv_convert.h"
#include "io/check.h"
#include "runtime/bundle_writer.h"
#include "tests/support/kv_samples.h"

namespace terrace {

BundleSample::BundleSample(const BundleShape& shape, uint64_t seed, std::vector<float> frequency)
    : shape_(shape), path_(dir_.Join("weights.bundles")) {
  const size_t neuron = size_t{shape.parts()} * shape.width;
  weights_ = NormalFloats(shape.all_neurons() * neuron, seed,
                          1 / std::sqrt(static_cast<float>(shape.width)));
  std::vector<std::byte> encoded(weights_.size() * KvDtypeBytes(shape.dtype));
  TERRACE_CHECK(
      !EncodeKv(weights_.data(), KvDtype::kFloat32, shape.dtype, weights_.size(), encoded.data()));
  DecodeKv(encoded.data(), shape.dtype, weights_.size(), weights_.data());
  BundleTables tables;
  tables.frequency = std::move(frequency);
  const absl::Status written = WriteBundleFile(
      path_, shape, std::move(tables), [&](const BundleRun& run, absl::Span<std::byte> bundles) {
        const size_t first = size_t{run.unit} * shape.neurons + run.first_place;
        std::copy_n(encoded.data() + first * shape.bundle_bytes(), bundles.size(), bundles.data());
        return absl::OkStatus();
      });
  TERRACE_CHECK(written.ok());
  absl::StatusOr<std::unique_ptr<const BundleFile>> file = BundleFile::Open(path_);
  TERRACE_CHECK(file.ok());
  file_ = *std::move(file);
}

std::unique_ptr<MemoryDevice> BundleSample::Device(size_t depth) const {
  absl::StatusOr<std::unique_ptr<MemoryDevice>> device = MemoryDevice::Create(
      {.size_bytes = PageAlignUp(file_->file_bytes()), .depth = depth, .transfer_hook = {}});
  TERRACE_CHECK(device.ok());
  std::ifstream in(path_, std::ios::binary);
  in.read(reinterpret_cast<char*>((*device)->bytes().data()),
          static_cast<std::streamsize>(file_->file_bytes()));
  TERRACE_CHECK(in.good());
  return *std::move(device);
}

absl::Span<const float> BundleSample::Part(uint32_t layer, uint32_t place, uint32_t part) const {
  const uint64_t neuron = uint64_t{layer} * shape_.experts * shape_.neurons + place;
  return absl::MakeConstSpan(weights_).subspan((neuron * shape_.parts() + part) * shape_.width,
                                               shape_.width);
}

double BundleSample::PreActivation(uint32_t layer, uint32_t place,
                                   absl::Span<const float> x) const {
  const absl::Span<const float> row = Part(layer, place, 0);
  return std::inner_product(row.begin(), row.end(), x.begin(), 0.0, std::plus<double>(),
                            [](double a, double b) { return a * b; });
}

std::vector<double> BundleSample::Reference(uint32_t layer, absl::Span<const float> x,
                                            absl::Span<const uint32_t> places,
                                            absl::Span<const float> expert_weights) const {
  std::vector<double> out(shape_.width);
  for (const uint32_t place : places) {
    const double gate = PreActivation(layer, place, x);
    double scale = gate / (1 + std::exp(-gate));
    if (shape_.activation == Activation::kRelu) scale = std::max(0.0, gate);
    if (shape_.gated) {
      const absl::Span<const float> up = Part(layer, place, 1);
      double sum = 0;
      for (size_t i = 0; i < shape_.width; ++i) sum += double{up[i]} * x[i];
      scale *= sum;
    }
    if (!expert_weights.empty()) scale *= expert_weights[place / shape_.neurons];
    const absl::Span<const float> down = Part(layer, place, shape_.parts() - 1);
    for (size_t i = 0; i < shape_.width; ++i) out[i] += scale * down[i];
  }
  return out;
}

std::vector<uint32_t> BundleSample::Firing(uint32_t layer, absl::Span<const float> x) const {
  std::vector<uint32_t> firing;
  for (const uint32_t place : AllPlaces(shape_)) {
    // A sum that is nearly zero may have either sign in fp32.
    if (PreActivation(layer, place, x) > -1e-5) firing.push_back(place);
  }
  return firing;
}

std::vector<uint32_t> AllPlaces(const BundleShape& shape) {
  std::vector<uint32_t> places(shape.experts * shape.neurons);
  std::iota(places.begin(), places.end(), 0u);
  return places;
}

}  // namespace terrace
