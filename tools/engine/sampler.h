#ifndef TERRACE_TOOLS_ENGINE_SAMPLER_H_
#define TERRACE_TOOLS_ENGINE_SAMPLER_H_

#include <cstddef>
#include <cstdint>
#include <random>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"

namespace terrace {

struct SamplerOptions {
  double temperature = 0;  // 0 takes the likeliest token; the others do not matter then
  size_t top_k = 0;        // draw among so many; 0 for all
  double top_p = 1;        // draw among the likeliest that have this probability together
  uint64_t seed = 1;

  // kInvalidArgument naming the field and its value.
  absl::Status Validate() const;
};

// The likeliest token, the first among equals; logits that are no number count as minus infinity.
// REQUIRES: at least one.
int32_t LikeliestToken(absl::Span<const float> logits);

// Draws tokens from logits. Equal seeds and logits give equal tokens on every machine whose
// exponential function is the same. Thread-compatible.
class Sampler {
 public:
  static absl::StatusOr<Sampler> Create(const SamplerOptions& options);

  // logits: [vocab], at least one; those that are no number are never drawn while others are.
  int32_t Sample(absl::Span<const float> logits);

 private:
  struct Candidate {
    int32_t token;
    double weight;  // first the logit, then exp of it over the temperature, relative to the largest
  };

  explicit Sampler(const SamplerOptions& options) : options_(options), random_(options.seed) {}

  const SamplerOptions options_;
  std::mt19937_64 random_;
  std::vector<Candidate> candidates_;
};

}  // namespace terrace

#endif  // TERRACE_TOOLS_ENGINE_SAMPLER_H_
