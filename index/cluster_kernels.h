#ifndef TERRACE_INDEX_CLUSTER_KERNELS_H_
#define TERRACE_INDEX_CLUSTER_KERNELS_H_

#include <cstddef>
#include <cstdint>

namespace terrace {

// The loops over all clusters of a table, by SIMD chosen at run time. Thread-safe.

// logits[c] += shift + gain * spreads[c] for c below `count`, at least 1; returns the largest.
float RaiseLogits(const float* spreads, size_t count, float shift, float gain, float* logits);

// weights[c] = exp(logits[c] - shift) for c below `count`; returns the sum of sizes[c] *
// weights[c]. No logit is above shift.
double WeighClusters(const float* logits, const float* sizes, size_t count, float shift,
                     float* weights);

// sums[row, d] += factors[row] * vector[d] for `rows` rows of `dimensions`, a multiple of 16.
void AddScaled(const int8_t* vector, const float* factors, size_t rows, size_t dimensions,
               float* sums);

}  // namespace terrace

#endif  // TERRACE_INDEX_CLUSTER_KERNELS_H_
