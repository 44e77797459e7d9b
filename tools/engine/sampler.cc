#include "tools/engine/sampler.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "absl/strings/str_cat.h"
#include "io/check.h"

namespace terrace {
namespace {

float Comparable(float logit) {
  return std::isnan(logit) ? -std::numeric_limits<float>::infinity() : logit;
}

}  // namespace

absl::Status SamplerOptions::Validate() const {
  if (!(temperature >= 0 && temperature <= 100)) {
    return absl::InvalidArgumentError(
        absl::StrCat("sampler: temperature: ", temperature, " is not from 0 to 100"));
  }
  if (!(top_p > 0 && top_p <= 1)) {
    return absl::InvalidArgumentError(
        absl::StrCat("sampler: top_p: ", top_p, " is not above 0 and at most 1"));
  }
  return absl::OkStatus();
}

int32_t LikeliestToken(absl::Span<const float> logits) {
  TERRACE_CHECK(!logits.empty());
  const auto less = [](float a, float b) { return Comparable(a) < Comparable(b); };
  return static_cast<int32_t>(std::max_element(logits.begin(), logits.end(), less) -
                              logits.begin());
}

absl::StatusOr<Sampler> Sampler::Create(const SamplerOptions& options) {
  if (absl::Status status = options.Validate(); !status.ok()) return status;
  return Sampler(options);
}

int32_t Sampler::Sample(absl::Span<const float> logits) {
  const int32_t likeliest = LikeliestToken(logits);
  const double largest = Comparable(logits[static_cast<size_t>(likeliest)]);
  // Without a finite maximum there is nothing to weigh the others against.
  if (options_.temperature == 0 || !std::isfinite(largest)) return likeliest;

  candidates_.clear();
  for (size_t i = 0; i < logits.size(); ++i) {
    candidates_.push_back({static_cast<int32_t>(i), Comparable(logits[i])});
  }
  // Ties by id, so that the order is one.
  std::sort(candidates_.begin(), candidates_.end(), [](const Candidate& a, const Candidate& b) {
    return a.weight != b.weight ? a.weight > b.weight : a.token < b.token;
  });
  if (options_.top_k > 0 && options_.top_k < candidates_.size()) {
    candidates_.resize(options_.top_k);
  }
  double total = 0;
  for (Candidate& candidate : candidates_) {
    candidate.weight = std::exp((candidate.weight - largest) / options_.temperature);
    total += candidate.weight;
  }
  double kept = 0;
  size_t count = 0;
  while (count < candidates_.size() && kept < options_.top_p * total) {
    kept += candidates_[count++].weight;
  }

  // The library's distributions differ from one implementation to the next.
  double left = static_cast<double>(random_() >> 11) * 0x1p-53 * kept;
  for (size_t i = 0; i < count; ++i) {
    left -= candidates_[i].weight;
    if (left < 0) return candidates_[i].token;
  }
  return likeliest;  // rounding ate the last of it
}

}  // namespace terrace
