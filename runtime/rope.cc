#include "runtime/rope.h"

#include <array>
#include <cmath>
#include <numbers>
#include <utility>

#include "absl/strings/str_cat.h"
#include "io/check.h"

namespace terrace {
namespace {

constexpr size_t kMaxHeadDim = 1024;

// Llama 3.1's rule, from its published configuration: wavelengths under a quarter of the trained
// context (with the usual factors) are kept, those over all of it are stretched.
double Llama3Frequency(const RopeOptions& options, double frequency) {
  const double turns = options.original_context * frequency / (2 * std::numbers::pi);
  if (turns <= options.low_frequency_factor) return frequency / options.factor;
  if (turns >= options.high_frequency_factor) return frequency;
  const double kept = (turns - options.low_frequency_factor) /
                      (options.high_frequency_factor - options.low_frequency_factor);
  return (1 - kept) * frequency / options.factor + kept * frequency;
}

double Scaled(const RopeOptions& options, double frequency) {
  switch (options.scaling) {
    case RopeOptions::Scaling::kNone:
      return frequency;
    case RopeOptions::Scaling::kLinear:
      return frequency / options.factor;
    case RopeOptions::Scaling::kLlama3:
      return Llama3Frequency(options, frequency);
  }
  return frequency;
}

}  // namespace

absl::Status RopeOptions::Validate() const {
  const auto finite_above = [](const char* field, double value, double limit) {
    if (std::isfinite(value) && value > limit) return absl::OkStatus();
    return absl::InvalidArgumentError(
        absl::StrCat("rope.", field, ": ", value, " is not above ", limit));
  };
  absl::Status status = finite_above("theta", theta, 1);
  if (status.ok()) status = finite_above("factor", factor, 0);
  if (!status.ok() || scaling != Scaling::kLlama3) return status;
  status = finite_above("low_frequency_factor", low_frequency_factor, 0);
  if (status.ok()) {
    status = finite_above("high_frequency_factor", high_frequency_factor, low_frequency_factor);
  }
  if (status.ok()) status = finite_above("original_context", original_context, 0);
  return status;
}

absl::StatusOr<Rope> Rope::Create(size_t head_dim, const RopeOptions& options) {
  if (head_dim == 0 || head_dim % 2 != 0 || head_dim > kMaxHeadDim) {
    return absl::InvalidArgumentError(absl::StrCat("head_dim: ", head_dim,
                                                   " is not an even number from 2 to ", kMaxHeadDim,
                                                   ", which rope needs"));
  }
  if (absl::Status status = options.Validate(); !status.ok()) return status;
  std::vector<double> frequencies(head_dim / 2);
  for (size_t i = 0; i < frequencies.size(); ++i) {
    const double exponent = -2.0 * static_cast<double>(i) / static_cast<double>(head_dim);
    frequencies[i] = Scaled(options, std::pow(options.theta, exponent));
  }
  return Rope(std::move(frequencies));
}

void Rope::Angles(int64_t position, absl::Span<float> cosines, absl::Span<float> sines) const {
  TERRACE_CHECK(cosines.size() == frequencies_.size() && sines.size() == frequencies_.size());
  for (size_t i = 0; i < frequencies_.size(); ++i) {
    const double angle = static_cast<double>(position) * frequencies_[i];
    cosines[i] = static_cast<float>(std::cos(angle));
    sines[i] = static_cast<float>(std::sin(angle));
  }
}

void Rope::Rotate(absl::Span<const float> cosines, absl::Span<const float> sines,
                  absl::Span<float> rows) {
  const size_t half = cosines.size();
  TERRACE_CHECK(sines.size() == half && rows.size() % (2 * half) == 0);
  for (float* row = rows.data(); row != rows.data() + rows.size(); row += 2 * half) {
    for (size_t i = 0; i < half; ++i) {
      const float low = row[i];
      const float high = row[half + i];
      row[i] = low * cosines[i] - high * sines[i];
      row[half + i] = high * cosines[i] + low * sines[i];
    }
  }
}

void Rope::RotateTokens(int64_t first_position, size_t heads, absl::Span<float> rows) const {
  const size_t token = heads * head_dim();
  TERRACE_CHECK(token > 0 && rows.size() % token == 0);
  std::array<float, kMaxHeadDim / 2> cosines;
  std::array<float, kMaxHeadDim / 2> sines;
  const absl::Span<float> cosine = absl::MakeSpan(cosines).first(frequencies_.size());
  const absl::Span<float> sine = absl::MakeSpan(sines).first(frequencies_.size());
  for (size_t at = 0; at < rows.size(); at += token) {
    Angles(first_position + static_cast<int64_t>(at / token), cosine, sine);
    Rotate(cosine, sine, rows.subspan(at, token));
  }
}

}  // namespace terrace
