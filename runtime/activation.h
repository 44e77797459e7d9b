#ifndef TERRACE_RUNTIME_ACTIVATION_H_
#define TERRACE_RUNTIME_ACTIVATION_H_

#include <cstdint>

namespace terrace {

// What a feed-forward network applies to its gate: down(activation(gate x) * up x), or, ungated, to
// its up-projection: down(activation(up x)). The numbers are those of bundle files.
enum class Activation : uint8_t { kSilu = 0, kRelu = 1 };

// "silu", "relu".
constexpr const char* ActivationName(Activation activation) {
  return activation == Activation::kSilu ? "silu" : "relu";
}

// Whether it is exactly 0 for everything that is not positive, so that a neuron whose gate is not
// positive adds nothing and need not be read.
constexpr bool IsSparse(Activation activation) { return activation == Activation::kRelu; }

}  // namespace terrace

#endif  // TERRACE_RUNTIME_ACTIVATION_H_
