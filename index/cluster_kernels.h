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

// Adds the shift to the logits of mean keys, and writes the logarithms of mean exponentials,
// raised[c] = logits[c] + f(gain * spreads[c]), for c below `count`, at least 1; returns the
// largest. f(x) = x is that of a normal distribution, which so few keys follow only as long as the
// sum does not hang on the largest of them: from log_keys on it is f(x) = 2 sqrt(x log_keys) -
// log_keys (the freezing of the random energy model: Derrida, Phys. Rev. B 24, 1981).
float RaiseLogits(const float* spreads, size_t count, const LogitRaise& raise, float* logits,
                  float* raised);

// weights[c] = exp(logits[c] - shift) for c below `count`; returns their sum. No logit is above
// shift. `weights` may be `logits`.
double WeighLogits(const float* logits, size_t count, float shift, float* weights);

// The largest of `count` logits, at least 1.
float LargestLogit(const float* logits, size_t count);

// masses[i] *= factor for i below `count`; returns their sum.
double ScaleMasses(float* masses, size_t count, float factor);
// sums[i] = the sum of masses[i * size] to masses[(i + 1) * size - 1].
void SumGroups(const float* masses, size_t groups, size_t size, float* sums);
// sums[row] = the sum of weights[i] * masses[row * stride + i] for i below `count`.
void WeightedSums(const float* masses, size_t stride, size_t rows, const float* weights,
                  size_t count, float* sums);
// shares[i] += factor * masses[i] for i below `count`.
void AddShares(const float* masses, size_t count, float factor, float* shares);

// Writes the numbers of those of `count` masses that are `least` or more, ascending, and returns
// how many there are. `numbers` is [count + kNumbersRoom].
inline constexpr size_t kNumbersRoom = 16;
size_t NumbersFrom(const float* masses, size_t count, float least, uint32_t* numbers);

// What ScoreCodes multiplies codes with, and how residual_codes.h lays them out.
struct CodeProducts {
  size_t bits = 4;   // of a code, 4 or 2
  size_t words = 0;  // of 16 / bits codes
  size_t rows = 0;
  // [rows, words, 8 / bits]: the steps of two codes of a word, from -127 to 127: that of the i-th
  // in the low byte, and that of the (i + 8 / bits)-th in the high one.
  const int16_t* steps = nullptr;
  const float* bases = nullptr;    // [rows]
  const float* factors = nullptr;  // [rows]
};

// logits[row * stride + i] = bases[row] + factors[row] * (codes of place i . steps of the row), for
// the 16 * `groups` places of `codes`, [groups, words, 16]. No such sum overflows 16 bits.
void ScoreCodes(const CodeProducts& products, const uint16_t* codes, size_t groups, size_t stride,
                float* logits);

// sums[row, d] += the sum over i below `count` of factors[i, row] * vectors[i][d], for `rows` rows
// of `dimensions`, a multiple of 16.
void AddScaled(const int8_t* const* vectors, size_t count, const float* factors, size_t rows,
               size_t dimensions, float* sums);

}  // namespace terrace

#endif  // TERRACE_INDEX_CLUSTER_KERNELS_H_
