#ifndef TERRACE_INDEX_CLUSTER_KERNELS_H_
#define TERRACE_INDEX_CLUSTER_KERNELS_H_

#include <cstddef>
#include <cstdint>

namespace terrace {

// The loops over all clusters of a table, by SIMD chosen at run time. Thread-safe.

// What the logits of one row and segment are raised by.
struct LogitRaise {
  float shift = 0;
  float gain = 0;      // half the variance of the logits in a cluster with a spread of 1
  float log_keys = 0;  // the logarithm of the number of keys in a cluster
};

// Makes the logits of mean keys those of mean exponentials, by shift + f(gain * spreads[c]) for c
// below `count`, at least 1; returns the largest. f(x) = x is that of a normal distribution, which
// so few keys follow only as long as the sum does not hang on the largest of them: from log_keys on
// it is f(x) = 2 sqrt(x log_keys) - log_keys (the freezing of the random energy model: Derrida,
// Phys. Rev. B 24, 1981).
float RaiseLogits(const float* spreads, size_t count, const LogitRaise& raise, float* logits);

// weights[c] = exp(logits[c] - shift) for c below `count`; returns their sum. No logit is above
// shift. `weights` may be `logits`.
double WeighLogits(const float* logits, size_t count, float shift, float* weights);

// sums[row, d] += factors[row] * vector[d] for `rows` rows of `dimensions`, a multiple of 16.
void AddScaled(const int8_t* vector, const float* factors, size_t rows, size_t dimensions,
               float* sums);

}  // namespace terrace

#endif  // TERRACE_INDEX_CLUSTER_KERNELS_H_
