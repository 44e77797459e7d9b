#ifndef TERRACE_RUNTIME_CUDA_SCORING_KERNELS_H_
#define TERRACE_RUNTIME_CUDA_SCORING_KERNELS_H_

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>

namespace terrace {

// The kernels that score 8-bit vectors with a scale each against queries in 16 bits, and their
// launches, which return at once. Addresses are the device's. Private to files built with CUDA.

// Rows of queries come in groups of this size, the last of which is filled up with zeros.
inline constexpr unsigned kScoreRowGroup = 8;
// Vectors that a thread block scores, and with that the most of one summary.
inline constexpr unsigned kScoreTile = 256;

// Of each of `heads`, the first `count` of `head_vectors` vectors against `rows` queries.
struct CudaVectorScores {
  unsigned heads = 0;
  unsigned rows = 0;
  unsigned count = 0;
  unsigned dimensions = 0;          // a multiple of 16
  size_t head_vectors = 0;          // from a head's first vector to the next head's
  const int8_t* vectors = nullptr;  // [heads, head_vectors, dimensions], aligned to 16
  const float* scales = nullptr;    // [heads, head_vectors]
  // [heads, row groups, 2, kScoreRowGroup, dimensions], aligned to 16: of each element first the
  // high byte, signed, and then the low one, unsigned.
  const uint8_t* queries = nullptr;
  const float* row_scales = nullptr;  // [heads, row groups, kScoreRowGroup]
};

// What the logits of mean keys are raised by, as RaiseLogits in index/cluster_kernels.h does.
struct CudaLogitRaises {
  float log_keys = 0;
  unsigned segments = 0;
  const uint32_t* segment_of = nullptr;  // [count]
  const float* spreads = nullptr;        // [heads, head_vectors]
  const float* shifts = nullptr;         // [heads, segments, rows]
  const float* gains = nullptr;          // [heads, segments, rows]
};

// scores[head, row, s] = the best of the `per_summary` vectors of summary s, as
// SummaryQueries::Score has it; `scores` is [heads, rows, count / per_summary].
// REQUIRES: per_summary divides count and is from 1 to kScoreTile.
cudaError_t LaunchSummaryScores(const CudaVectorScores& of, unsigned per_summary, float* scores,
                                cudaStream_t stream);

// logits[head, row, c] = the raised logit of vector c; `logits` is [heads, rows, count].
cudaError_t LaunchClusterLogits(const CudaVectorScores& of, const CudaLogitRaises& raises,
                                float* logits, cudaStream_t stream);

// worth[head, c] = the share of a row's mass that cluster c has, summed over the rows, where mass
// is exp(logit). `partials` has room for CudaWorthPartials(count) floats a head and row. Results do
// not depend on the order in which threads run. REQUIRES: rows is at most kMaxWorthRows.
inline constexpr unsigned kMaxWorthRows = 1024;
size_t CudaWorthPartials(unsigned count);
cudaError_t LaunchClusterWorth(const float* logits, unsigned heads, unsigned rows, unsigned count,
                               float* partials, float* worth, cudaStream_t stream);

}  // namespace terrace

#endif  // TERRACE_RUNTIME_CUDA_SCORING_KERNELS_H_
