#ifndef TERRACE_RUNTIME_CUDA_NEIGHBOUR_KERNELS_H_
#define TERRACE_RUNTIME_CUDA_NEIGHBOUR_KERNELS_H_

#include <cuda_runtime_api.h>
#include <stddef.h>
#include <stdint.h>

namespace terrace {

// A score and its key in one number: the larger is better, and of equal scores the smaller key is.
// 0 is worse than any key below 2^32 - 1. The score is in the upper half, as an integer that orders
// like it; the key in the lower one, inverted.
using RankedKey = uint64_t;
inline uint32_t KeyOf(RankedKey ranked) { return ~static_cast<uint32_t>(ranked); }

// At most so many keys are kept for a row.
inline constexpr uint32_t kMostRankedKeys = 256;

enum class CudaHalf : uint8_t { kFloat16, kBfloat16 };

// Starts fp32 copies of `count` halves. Everything is in device memory.
cudaError_t LaunchWiden(const void* halves, CudaHalf type, size_t count, float* floats,
                        cudaStream_t stream);

// Scores of `rows` queries with `count` consecutive keys.
struct ScoreTile {
  const float* scores = nullptr;  // [rows, count] on the device
  uint32_t rows = 0;
  uint32_t count = 0;
  uint32_t first_key = 0;
};

// Starts merging a tile into the best k of each row: best [rows, k] on the device, sorted, best
// first; zeros where there are no keys yet. The result does not depend on the order of tiles.
// k is from 1 to kMostRankedKeys.
cudaError_t LaunchKeepBest(const ScoreTile& tile, uint32_t k, RankedKey* best, cudaStream_t stream);

}  // namespace terrace

#endif  // TERRACE_RUNTIME_CUDA_NEIGHBOUR_KERNELS_H_
