#include "index/residual_codes.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

#include "index/cluster_kernels.h"

namespace terrace {

ResidualShape ResidualShape::For(size_t head_dim) {
  if (head_dim >= 128) return {.bits = 4, .dimensions = 32};
  if (head_dim >= 96) return {.bits = 4, .dimensions = 24};
  if (head_dim >= 64) return {.bits = 2, .dimensions = 24};
  return {.bits = 2, .dimensions = 8};
}

std::vector<uint16_t> CodedDimensions(const ResidualShape& shape,
                                      absl::Span<const float> spread_shape) {
  std::vector<uint16_t> order(spread_shape.size());
  std::iota(order.begin(), order.end(), uint16_t{0});
  std::stable_sort(order.begin(), order.end(),
                   [&](uint16_t a, uint16_t b) { return spread_shape[a] > spread_shape[b]; });
  order.resize(std::min(order.size(), shape.dimensions));
  std::sort(order.begin(), order.end());
  return order;
}

void EncodeResidual(const ResidualShape& shape, absl::Span<const uint16_t> dimensions,
                    absl::Span<const float> spread_shape, float spread, const float* residual,
                    size_t place, uint16_t* codes) {
  const size_t per_word = 16 / shape.bits;
  const auto levels = static_cast<float>(shape.levels());
  uint16_t* const out =
      codes + place / kCodedPlaces * kCodedPlaces * shape.words() + place % kCodedPlaces;
  for (size_t i = 0; i < dimensions.size(); ++i) {
    const size_t d = dimensions[i];
    const float step = shape.step() * std::sqrt(spread_shape[d]) * std::sqrt(spread);
    const float steps = step > 0 ? std::floor(residual[d] / step) : 0;
    // Huge keys have residuals that are not numbers.
    const float code = std::isnan(steps) ? 0 : std::clamp(steps + levels / 2, 0.0f, levels - 1);
    out[i / per_word * kCodedPlaces] =
        static_cast<uint16_t>(out[i / per_word * kCodedPlaces] | static_cast<unsigned>(code)
                                                                     << i % per_word * shape.bits);
  }
}

void ResidualQueries::Set(const ResidualShape& shape, absl::Span<const uint16_t> dimensions,
                          absl::Span<const float> spread_shape, absl::Span<const float> represented,
                          size_t rows) {
  shape_ = shape;
  const size_t pairs = 8 / shape.bits;  // of a word
  steps_.assign(rows * shape.words() * pairs, int16_t{0});
  scales_.assign(rows, 0.0f);
  biases_.assign(rows, 0.0f);
  at_zero_.resize(rows);
  factors_.resize(rows);
  const auto largest_code = static_cast<float>(shape.levels() - 1);
  // Rounding may add half a step for every dimension.
  const float room = 32767 / largest_code - static_cast<float>(shape.dimensions) / 2;
  weights_.resize(dimensions.size() * rows);
  for (size_t i = 0; i < dimensions.size(); ++i) {
    const float step = shape.step() * std::sqrt(spread_shape[dimensions[i]]);
    for (size_t row = 0; row < rows; ++row) {
      weights_[i * rows + row] = step * represented[dimensions[i] * rows + row];
    }
  }
  for (size_t row = 0; row < rows; ++row) {
    float sum = 0;
    float largest = 0;
    for (size_t i = 0; i < dimensions.size(); ++i) {
      const float weight = std::abs(weights_[i * rows + row]);
      sum += weight;
      largest = std::max(largest, weight);
    }
    const float scale = std::max(sum / room, largest / 127);
    // Nor one so small that nothing can be divided by it.
    if (!(scale > std::numeric_limits<float>::min()) || !std::isfinite(scale)) continue;
    scales_[row] = scale;
    const float per_scale = 1 / scale;
    float steps = 0;
    for (size_t i = 0; i < dimensions.size(); ++i) {
      const float rounded =
          std::clamp(std::nearbyint(weights_[i * rows + row] * per_scale), -127.0f, 127.0f);
      const auto byte = static_cast<uint8_t>(static_cast<int8_t>(rounded));
      const size_t in_word = i % (2 * pairs);
      int16_t& pair = steps_[(row * shape.words() + i / (2 * pairs)) * pairs + in_word % pairs];
      pair = static_cast<int16_t>(pair | (in_word < pairs ? byte : byte << 8));
      steps += rounded;
    }
    biases_[row] = -0.5f * largest_code * steps * scale;
  }
}

void ResidualQueries::Score(const uint16_t* codes, size_t first, size_t count, float deviation,
                            absl::Span<const float> bases, size_t stride, float* logits) {
  const size_t rows = scales_.size();
  for (size_t row = 0; row < rows; ++row) {
    factors_[row] = scales_[row] * deviation;
    at_zero_[row] = bases[row] + biases_[row] * deviation;
  }
  const size_t begin = first / kCodedPlaces;
  const size_t groups = (first + count + kCodedPlaces - 1) / kCodedPlaces - begin;
  const CodeProducts products{.bits = shape_.bits,
                              .words = shape_.words(),
                              .rows = rows,
                              .steps = steps_.data(),
                              .bases = at_zero_.data(),
                              .factors = factors_.data()};
  const uint16_t* const at = codes + begin * kCodedPlaces * shape_.words();
  if (first % kCodedPlaces == 0 && count % kCodedPlaces == 0) {
    ScoreCodes(products, at, groups, stride, logits);
    return;
  }
  const size_t places = groups * kCodedPlaces;
  padded_.resize(rows * places);
  ScoreCodes(products, at, groups, places, padded_.data());
  for (size_t row = 0; row < rows; ++row) {
    std::copy_n(padded_.data() + row * places + first % kCodedPlaces, count, logits + row * stride);
  }
}

}  // namespace terrace
