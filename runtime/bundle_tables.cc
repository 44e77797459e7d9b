#include <cmath>

#include "absl/strings/str_cat.h"
#include "runtime/bundle_file.h"
#include "runtime/bundle_header.h"

namespace terrace {
namespace {

absl::Status Bad(absl::string_view table, uint64_t unit, absl::string_view what) {
  return absl::InvalidArgumentError(
      absl::StrCat("bundles: ", table, ": expert ", unit, " of all layers: ", what));
}

absl::Status CheckOrder(const BundleShape& shape, absl::Span<const uint32_t> order) {
  std::vector<bool> seen;
  for (uint32_t unit = 0; unit < shape.units(); ++unit) {
    seen.assign(shape.neurons, false);
    for (uint32_t place = 0; place < shape.neurons; ++place) {
      const uint32_t neuron = order[uint64_t{unit} * shape.neurons + place];
      if (neuron >= shape.neurons || seen[neuron]) {
        return Bad("order", unit,
                   absl::StrCat("neuron ", neuron, " at place ", place,
                                neuron >= shape.neurons ? " is out of range" : " is there twice"));
      }
      seen[neuron] = true;
    }
  }
  return absl::OkStatus();
}

absl::Status CheckFrequency(const BundleShape& shape, absl::Span<const float> frequency) {
  for (uint64_t i = 0; i < frequency.size(); ++i) {
    if (frequency[i] >= 0 && frequency[i] <= 1) continue;
    return Bad(
        "frequencies", i / shape.neurons,
        absl::StrCat("place ", i % shape.neurons, ": ", frequency[i], " is not from 0 to 1"));
  }
  return absl::OkStatus();
}

// Of an fp16 number by its bits.
bool IsFinite(uint16_t bits) { return (bits & 0x7c00) != 0x7c00; }

absl::Status CheckPredictor(const BundleShape& shape, uint32_t unit,
                            const PredictorFactors& factors) {
  const size_t rank = factors.rank;
  if (rank < 1 || rank > kMaxPredictorRank || factors.a.size() != rank * shape.width ||
      factors.b.size() != rank * shape.neurons || factors.thresholds.size() != shape.neurons) {
    return Bad("predictors", unit, absl::StrCat("factors of rank ", rank, " do not fit the shape"));
  }
  for (const std::vector<uint16_t>* const values : {&factors.a, &factors.b}) {
    for (const uint16_t bits : *values) {
      if (!IsFinite(bits)) return Bad("predictors", unit, "a factor is not finite");
    }
  }
  for (const float threshold : factors.thresholds) {
    if (std::isnan(threshold)) return Bad("predictors", unit, "a threshold is not a number");
  }
  return absl::OkStatus();
}

}  // namespace

size_t BundleTables::bytes() const {
  size_t bytes = order.size() * sizeof(uint32_t) + frequency.size() * sizeof(float);
  for (const PredictorFactors& factors : predictors) bytes += factors.bytes();
  return bytes;
}

absl::Status BundleTables::Validate(const BundleShape& shape) const {
  const auto check_size = [](const char* table, uint64_t size, uint64_t expected) {
    if (size == 0 || size == expected) return absl::OkStatus();
    return absl::InvalidArgumentError(
        absl::StrCat("bundles: ", table, ": has ", size, " entries, expected ", expected));
  };
  absl::Status status = check_size("order", order.size(), shape.all_neurons());
  if (status.ok()) status = check_size("frequencies", frequency.size(), shape.all_neurons());
  if (status.ok()) status = check_size("predictors", predictors.size(), shape.units());
  if (status.ok() && !order.empty()) status = CheckOrder(shape, order);
  if (status.ok()) status = CheckFrequency(shape, frequency);
  for (uint32_t unit = 0; status.ok() && unit < predictors.size(); ++unit) {
    status = CheckPredictor(shape, unit, predictors[unit]);
  }
  if (status.ok() && !(false_negative_bound >= 0 && false_negative_bound <= 1)) {
    status = absl::InvalidArgumentError(absl::StrCat(
        "bundles: false_negative_bound: ", false_negative_bound, " is not from 0 to 1"));
  }
  return status;
}

}  // namespace terrace
