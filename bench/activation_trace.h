#ifndef TERRACE_BENCH_ACTIVATION_TRACE_H_
#define TERRACE_BENCH_ACTIVATION_TRACE_H_

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <random>
#include <string>
#include <vector>

#include "absl/strings/str_format.h"

namespace terrace {

// What the made-up activations of a feed-forward layer are like. The defaults give what "LLM in a
// flash" (Alizadeh et al., 2023) measured on OPT-6.7B: about 3 % of the neurons fire for a token,
// and 2.4 % of them do that did not for the 5 tokens before.
struct ActivationTraceParameters {
  uint32_t neurons = 16384;
  // Neurons differ: each has a rate of its own, from a gamma distribution of this mean and shape,
  // so that the larger the shape, the more they are alike.
  double active_share = 0.03;
  double shape = 2.5;
  double max_rate = 0.9;
  // Tokens resemble each other: with this probability a neuron stays what it was a token ago, else
  // it fires at its rate.
  double persistence = 0.01;

  std::string ToString() const {
    return absl::StrFormat(
        "%d neurons, rates gamma(mean %.3f, shape %.2f) at most %.2f, persistence %.3f", neurons,
        active_share, shape, max_rate, persistence);
  }
};

// Which neurons of one layer fire, token after token; the same for the same seeds. `model_seed`
// makes the neurons, `text_seed` the tokens.
class ActivationTrace {
 public:
  ActivationTrace(const ActivationTraceParameters& parameters, uint64_t model_seed,
                  uint64_t text_seed)
      : persistence_(parameters.persistence), random_(text_seed * 0x9e3779b97f4a7c15 + model_seed) {
    std::mt19937_64 model(model_seed);
    std::gamma_distribution<double> gamma(parameters.shape,
                                          parameters.active_share / parameters.shape);
    rates_.resize(parameters.neurons);
    for (double& rate : rates_) rate = std::min(gamma(model), parameters.max_rate);
    fires_.resize(parameters.neurons);
    for (size_t i = 0; i < fires_.size(); ++i) fires_[i] = Uniform() < rates_[i];
  }

  // The neurons that fire for the next token, ascending.
  std::vector<uint32_t> Next() {
    std::vector<uint32_t> firing;
    for (uint32_t i = 0; i < fires_.size(); ++i) {
      if (Uniform() >= persistence_) fires_[i] = Uniform() < rates_[i];
      if (fires_[i]) firing.push_back(i);
    }
    return firing;
  }

 private:
  double Uniform() { return static_cast<double>(random_() >> 11) * 0x1p-53; }

  const double persistence_;
  std::mt19937_64 random_;
  std::vector<double> rates_;
  std::vector<bool> fires_;
};

// Shares of a layer's neurons over many tokens.
struct ActivationShares {
  double active = 0;            // that fire for a token
  std::vector<double> of_last;  // [k]: that fire for some of k tokens in a row, s_agg(k)
};

// Measured over `tokens` tokens, for k up to `window`.
inline ActivationShares MeasureShares(ActivationTrace& trace, uint32_t neurons, size_t tokens,
                                      size_t window) {
  ActivationShares shares = {.active = 0, .of_last = std::vector<double>(window + 1)};
  std::vector<size_t> last(neurons, 0);  // token of the last time it fired, from 1
  size_t windows = 0;
  for (size_t token = 1; token <= tokens; ++token) {
    const std::vector<uint32_t> firing = trace.Next();
    shares.active += static_cast<double>(firing.size());
    for (const uint32_t neuron : firing) last[neuron] = token;
    if (token < window) continue;
    ++windows;
    for (const size_t fired : last) {
      // Belongs to all windows of more than `age` tokens.
      const size_t age = token - fired;
      if (fired > 0 && age < window) ++shares.of_last[age + 1];
    }
  }
  shares.active /= static_cast<double>(tokens) * neurons;
  for (size_t k = 1; k <= window; ++k) {
    shares.of_last[k] =
        shares.of_last[k] / (static_cast<double>(windows) * neurons) + shares.of_last[k - 1];
  }
  return shares;
}

}  // namespace terrace

#endif  // TERRACE_BENCH_ACTIVATION_TRACE_H_
