#include "runtime/neuron_predictor.h"

#include <cstring>
#include <numeric>
#include <utility>

#include "absl/strings/str_cat.h"
#include "io/check.h"
#include "runtime/ffn_kernels.h"
#include "runtime/gate_rows.h"

namespace terrace {
namespace {

// row . x for fp16, bf16 or fp32 rows.
float Dot(KvDtype dtype, const void* row, absl::Span<const float> x) {
  float sum = 0;
  DotTokens(dtype, row, x.data(), x.size(), x.size(), absl::MakeSpan(&sum, 1));
  return sum;
}

class AllPredictor final : public NeuronPredictor {
 public:
  explicit AllPredictor(const BundleShape& shape) : shape_(shape) {}
  const char* name() const override {
    return shape_.layout == BundleLayout::kGateFirst ? "gate-first" : "all";
  }
  absl::Status Predict(uint32_t, absl::Span<const float>, std::vector<uint32_t>& places) override {
    places.resize(shape_.neurons);
    std::iota(places.begin(), places.end(), 0u);
    return absl::OkStatus();
  }

 private:
  const BundleShape shape_;
};

class OraclePredictor final : public NeuronPredictor {
 public:
  explicit OraclePredictor(std::shared_ptr<const BundleFile> file) : file_(std::move(file)) {}

  absl::Status Load() {
    const BundleShape& shape = file_->shape();
    const absl::StatusOr<std::unique_ptr<GateRows>> reader = GateRows::Open(file_);
    if (!reader.ok()) return reader.status();
    rows_.resize(shape.all_neurons() * shape.part_bytes());
    std::byte* to = rows_.data();
    for (uint32_t unit = 0; unit < shape.units(); ++unit) {
      absl::Status status = (*reader)->ForEach(unit, [&](uint32_t, const std::byte* row) {
        std::memcpy(to, row, shape.part_bytes());
        to += shape.part_bytes();
      });
      if (!status.ok()) return status;
    }
    return absl::OkStatus();
  }

  const char* name() const override { return "oracle"; }
  absl::Status Predict(uint32_t layer, absl::Span<const float> x,
                       std::vector<uint32_t>& places) override {
    const BundleShape& shape = file_->shape();
    const std::byte* row = rows_.data() + size_t{layer} * shape.neurons * shape.part_bytes();
    places.clear();
    for (uint32_t place = 0; place < shape.neurons; ++place, row += shape.part_bytes()) {
      if (Dot(shape.dtype, row, x) > 0) places.push_back(place);
    }
    return absl::OkStatus();
  }
  size_t memory_bytes() const override { return rows_.size(); }

 private:
  const std::shared_ptr<const BundleFile> file_;
  std::vector<std::byte> rows_;  // [layers, neurons, width] in the file's dtype
};

class LowRankPredictor final : public NeuronPredictor {
 public:
  explicit LowRankPredictor(std::shared_ptr<const BundleFile> file) : file_(std::move(file)) {}

  const char* name() const override { return "low-rank"; }
  absl::Status Predict(uint32_t layer, absl::Span<const float> x,
                       std::vector<uint32_t>& places) override {
    const PredictorFactors& factors = *file_->Predictor(layer);
    reduced_.resize(factors.rank);
    for (size_t i = 0; i < factors.rank; ++i) {
      reduced_[i] = Dot(KvDtype::kFloat16, factors.a.data() + i * x.size(), x);
    }
    places.clear();
    for (uint32_t place = 0; place < factors.thresholds.size(); ++place) {
      const float score =
          Dot(KvDtype::kFloat16, factors.b.data() + size_t{place} * factors.rank, reduced_);
      if (score > factors.thresholds[place]) places.push_back(place);
    }
    return absl::OkStatus();
  }

 private:
  const std::shared_ptr<const BundleFile> file_;
  std::vector<float> reduced_;  // [rank]
};

}  // namespace

absl::Status NeuronPredictor::Observe(uint32_t, bool, absl::Span<const float>) {
  return absl::OkStatus();
}

absl::Status CheckPredictable(const BundleFile& file) {
  const BundleShape& shape = file.shape();
  if (!IsSparse(shape.activation)) {
    return absl::InvalidArgumentError(
        absl::StrCat(file.path(), ": its activation is ", ActivationName(shape.activation),
                     ", which is never exactly 0, so that no neuron can be left out"));
  }
  if (shape.experts == 1) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat(file.path(), ": has ", shape.experts,
                                                 " experts a layer, which a router chooses"));
}

std::unique_ptr<NeuronPredictor> MakeAllPredictor(const BundleShape& shape) {
  TERRACE_CHECK_EQ(shape.experts, 1);
  return std::make_unique<AllPredictor>(shape);
}

absl::StatusOr<std::unique_ptr<NeuronPredictor>> MakeOraclePredictor(
    std::shared_ptr<const BundleFile> file) {
  if (absl::Status status = CheckPredictable(*file); !status.ok()) return status;
  auto oracle = std::make_unique<OraclePredictor>(std::move(file));
  if (absl::Status status = oracle->Load(); !status.ok()) return status;
  return oracle;
}

absl::StatusOr<std::unique_ptr<NeuronPredictor>> MakeLowRankPredictor(
    std::shared_ptr<const BundleFile> file) {
  if (absl::Status status = CheckPredictable(*file); !status.ok()) return status;
  if (file->Predictor(0) == nullptr) {
    return absl::InvalidArgumentError(
        absl::StrCat(file->path(),
                     ": has no low-rank predictors; terrace pack --calibrate "
                     "makes them"));
  }
  return std::make_unique<LowRankPredictor>(std::move(file));
}

}  // namespace terrace
