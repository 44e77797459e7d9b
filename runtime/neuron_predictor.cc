#include "runtime/neuron_predictor.h"

#include <algorithm>
#include <cstring>
#include <numeric>
#include <utility>

#include "absl/strings/str_cat.h"
#include "io/check.h"
#include "runtime/ffn_kernels.h"
#include "runtime/gate_rows.h"

namespace terrace {
namespace {

// Elements of rows that are worth a task: some tens of microseconds' worth.
constexpr size_t kTaskElements = size_t{512} << 10;

// sums[i] = rows[i] . x, for rows of x.size() elements that lie one after the other.
void DotRows(KvDtype dtype, const void* rows, absl::Span<const float> x, ComputePool* pool,
             absl::Span<float> sums) {
  const size_t row_bytes = x.size() * KvDtypeBytes(dtype);
  const size_t task_rows = std::max<size_t>(kTaskElements / x.size(), 1);
  const auto run = [&](size_t first) {
    const auto* row = static_cast<const std::byte*>(rows) + first * row_bytes;
    const size_t end = std::min(first + task_rows, sums.size());
    for (size_t i = first; i < end; ++i, row += row_bytes) {
      DotTokens(dtype, row, x.data(), x.size(), x.size(), sums.subspan(i, 1));
    }
  };
  const size_t tasks = (sums.size() + task_rows - 1) / task_rows;
  if (pool == nullptr || tasks < 2) {
    for (size_t task = 0; task < tasks; ++task) run(task * task_rows);
  } else {
    pool->ForEach(tasks, [&](size_t task, size_t) { run(task * task_rows); });
  }
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
  OraclePredictor(std::shared_ptr<const BundleFile> file, ComputePool* pool)
      : file_(std::move(file)), pool_(pool), gates_(file_->shape().neurons) {}

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
    DotRows(shape.dtype, rows_.data() + size_t{layer} * shape.neurons * shape.part_bytes(), x,
            pool_, absl::MakeSpan(gates_));
    places.clear();
    for (uint32_t place = 0; place < shape.neurons; ++place) {
      if (gates_[place] > 0) places.push_back(place);
    }
    return absl::OkStatus();
  }
  size_t memory_bytes() const override { return rows_.size(); }

 private:
  const std::shared_ptr<const BundleFile> file_;
  ComputePool* const pool_;      // or null
  std::vector<std::byte> rows_;  // [layers, neurons, width] in the file's dtype
  std::vector<float> gates_;     // [neurons]
};

class LowRankPredictor final : public NeuronPredictor {
 public:
  LowRankPredictor(std::shared_ptr<const BundleFile> file, ComputePool* pool)
      : file_(std::move(file)), pool_(pool), scores_(file_->shape().neurons) {}

  const char* name() const override { return "low-rank"; }
  absl::Status Predict(uint32_t layer, absl::Span<const float> x,
                       std::vector<uint32_t>& places) override {
    const PredictorFactors& factors = *file_->Predictor(layer);
    reduced_.resize(factors.rank);
    DotRows(KvDtype::kFloat16, factors.a.data(), x, pool_, absl::MakeSpan(reduced_));
    DotRows(KvDtype::kFloat16, factors.b.data(), reduced_, pool_, absl::MakeSpan(scores_));
    places.clear();
    for (uint32_t place = 0; place < scores_.size(); ++place) {
      if (scores_[place] > factors.thresholds[place]) places.push_back(place);
    }
    return absl::OkStatus();
  }

 private:
  const std::shared_ptr<const BundleFile> file_;
  ComputePool* const pool_;     // or null
  std::vector<float> reduced_;  // [rank]
  std::vector<float> scores_;   // [neurons]
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
    std::shared_ptr<const BundleFile> file, ComputePool* pool) {
  if (absl::Status status = CheckPredictable(*file); !status.ok()) return status;
  auto oracle = std::make_unique<OraclePredictor>(std::move(file), pool);
  if (absl::Status status = oracle->Load(); !status.ok()) return status;
  return oracle;
}

absl::StatusOr<std::unique_ptr<NeuronPredictor>> MakeLowRankPredictor(
    std::shared_ptr<const BundleFile> file, ComputePool* pool) {
  if (absl::Status status = CheckPredictable(*file); !status.ok()) return status;
  if (file->Predictor(0) == nullptr) {
    return absl::InvalidArgumentError(
        absl::StrCat(file->path(),
                     ": has no low-rank predictors; terrace pack --calibrate "
                     "makes them"));
  }
  return std::make_unique<LowRankPredictor>(std::move(file), pool);
}

}  // namespace terrace
