#ifndef TERRACE_RUNTIME_CUDA_ATTENTION_KERNELS_H_
#define TERRACE_RUNTIME_CUDA_ATTENTION_KERNELS_H_

#include <cuda_runtime_api.h>

#include <cstdint>

#include "runtime/attention_pieces.h"

namespace terrace {

// The kernels below CudaAttention. Private; all pointers are device addresses, and all functions
// act on the current device and return the error of a launch, not of what was launched.
//
// A softmax under way is three things for each row: the largest score `max` in units of log2, that
// is score * log2(e); `sum` of exp2(score - max); and the sum of exp2(score - max) * value. Nothing
// is rounded between them, so pieces merge without loss, however large the scores.

// What attention reads and writes.
struct AttentionLaunch {
  const float* queries;       // [rows, head_dim], not scaled
  const DevicePart* parts;    // of all jobs
  const DevicePiece* pieces;  // [piece_count]
  const uint32_t* limits;     // see DevicePart
  float* partial_out;         // [partial rows, head_dim]: sums of weighted values
  float2* partial_stats;      // [partial rows]: max and sum
  uint32_t piece_count;       // at least 1
  uint32_t head_dim;          // a multiple of 8 up to 512, for tensor cores up to 128
  float scale;                // log2(e) / sqrt(head_dim)
};

// What the merge reads and writes.
struct MergeLaunch {
  const DeviceRange* ranges;    // [range_count]
  const float* partial_out;     // as above
  const float2* partial_stats;  // as above
  float* out;                   // [rows, head_dim]; zeros where a row has seen no token
  float* lse;                   // [rows], natural logarithm; -infinity where a row has seen none
  uint32_t range_count;         // at least 1
  uint32_t max_range_rows;      // the most rows of a range
  uint32_t head_dim;
};

// Makes the kernels for a head_dim ready on the current device, and says how many pieces a
// multiprocessor works on at once. For tensor cores, up to kMaxTensorHeadDim:
cudaError_t PrepareTensorAttention(uint32_t head_dim, int* pieces_at_once);
cudaError_t PreparePlainAttention(uint32_t head_dim, int* pieces_at_once);

// The partial attention of the rows of all pieces, whose runs are fp16 or, with `bfloat16`, bf16.
cudaError_t LaunchTensorAttention(bool bfloat16, const AttentionLaunch& launch,
                                  cudaStream_t stream);
// The same for a kernel that is not for tensor cores.
cudaError_t LaunchPlainAttention(AttentionKernel kernel, const AttentionLaunch& launch,
                                 cudaStream_t stream);

// Merges the pieces of each range in their order.
cudaError_t LaunchMerge(const MergeLaunch& launch, cudaStream_t stream);

}  // namespace terrace

#endif  // TERRACE_RUNTIME_CUDA_ATTENTION_KERNELS_H_
