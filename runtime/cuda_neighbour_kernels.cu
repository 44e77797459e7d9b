#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "runtime/cuda_neighbour_kernels.h"

namespace terrace {
namespace {

constexpr uint32_t kThreads = 256;
constexpr uint32_t kEach = 4;  // scores that a thread looks at in a round
constexpr uint32_t kRound = kThreads * kEach;
// The best and those that may come to be: 16 KiB of shared memory, room for a round beside the
// best.
constexpr uint32_t kList = 2048;
static_assert(kMostRankedKeys + kRound <= kList);

__device__ float ToFloat(__half value) { return __half2float(value); }
__device__ float ToFloat(__nv_bfloat16 value) { return __bfloat162float(value); }

template <typename Half>
__global__ void Widen(const Half* __restrict__ halves, size_t count, float* __restrict__ floats) {
  const size_t step = size_t{gridDim.x} * blockDim.x;
  for (size_t i = size_t{blockIdx.x} * blockDim.x + threadIdx.x; i < count; i += step) {
    floats[i] = ToFloat(halves[i]);
  }
}

__device__ RankedKey Rank(float score, uint32_t key) {
  uint32_t bits = __float_as_uint(score);
  if (bits << 1 == 0) bits = 0;  // -0 and 0 are equal
  // Positive floats order like their bits; negative ones the other way round.
  bits = bits >> 31 != 0 ? ~bits : bits | 0x80000000u;
  return (static_cast<RankedKey>(bits) << 32) | static_cast<uint32_t>(~key);
}

// Bitonic sort of the first `size`, a power of two, largest first. All threads of the block take
// part, after a barrier; ends with one.
__device__ void SortDescending(RankedKey* list, uint32_t size) {
  for (uint32_t run = 2; run <= size; run *= 2) {
    for (uint32_t stride = run / 2; stride > 0; stride /= 2) {
      for (uint32_t pair = threadIdx.x; pair < size / 2; pair += kThreads) {
        const uint32_t i = 2 * pair - (pair & (stride - 1));  // those with the stride's bit clear
        const RankedKey a = list[i];
        const RankedKey b = list[i + stride];
        const bool descending = (i & run) == 0;
        if ((a < b) == descending) {
          list[i] = b;
          list[i + stride] = a;
        }
      }
      __syncthreads();
    }
  }
}

__device__ uint32_t PowerOfTwoFrom(uint32_t count) {
  return count <= 1 ? 1 : 1u << (32 - __clz(static_cast<int>(count - 1)));
}

// One block for each row. Scores that beat the worst of the best k are collected behind those,
// which are found anew whenever the next round might not fit. The bound only rises, so what it
// keeps out would not have come in later.
__global__ void __launch_bounds__(kThreads)
    KeepBest(const float* __restrict__ scores, uint32_t count, uint32_t first_key, uint32_t k,
             RankedKey* __restrict__ best) {
  __shared__ RankedKey list[kList];  // the best k, sorted; then `collected` others; then zeros
  __shared__ uint32_t collected;
  scores += size_t{blockIdx.x} * count;
  best += size_t{blockIdx.x} * k;
  for (uint32_t i = threadIdx.x; i < kList; i += kThreads) list[i] = i < k ? best[i] : 0;
  if (threadIdx.x == 0) collected = 0;
  __syncthreads();
  RankedKey bound = list[k - 1];
  uint32_t held = 0;  // `collected`, as all threads saw it after the last round
  for (uint32_t start = 0; start < count; start += kRound) {
    if (k + held + kRound > kList) {
      SortDescending(list, PowerOfTwoFrom(k + held));
      bound = list[k - 1];
      for (uint32_t i = k + threadIdx.x; i < kList; i += kThreads) list[i] = 0;
      if (threadIdx.x == 0) collected = 0;
      __syncthreads();
    }
    for (uint32_t each = 0; each < kEach; ++each) {
      const uint32_t i = start + each * kThreads + threadIdx.x;
      if (i >= count) break;
      const RankedKey ranked = Rank(scores[i], first_key + i);
      if (ranked > bound) list[k + atomicAdd(&collected, 1u)] = ranked;
    }
    __syncthreads();
    held = collected;
    __syncthreads();
  }
  if (held > 0) SortDescending(list, PowerOfTwoFrom(k + held));
  for (uint32_t i = threadIdx.x; i < k; i += kThreads) best[i] = list[i];
}

template <typename Half>
cudaError_t StartWiden(const void* halves, size_t count, float* floats, cudaStream_t stream) {
  constexpr size_t kMostBlocks = 4096;
  const size_t blocks = (count + kThreads - 1) / kThreads;
  const auto grid = static_cast<uint32_t>(blocks < kMostBlocks ? blocks : kMostBlocks);
  Widen<<<grid, kThreads, 0, stream>>>(static_cast<const Half*>(halves), count, floats);
  return cudaGetLastError();
}

}  // namespace

cudaError_t LaunchWiden(const void* halves, CudaHalf type, size_t count, float* floats,
                        cudaStream_t stream) {
  if (count == 0) return cudaSuccess;
  return type == CudaHalf::kFloat16 ? StartWiden<__half>(halves, count, floats, stream)
                                    : StartWiden<__nv_bfloat16>(halves, count, floats, stream);
}

cudaError_t LaunchKeepBest(const ScoreTile& tile, uint32_t k, RankedKey* best,
                           cudaStream_t stream) {
  if (k == 0 || k > kMostRankedKeys) return cudaErrorInvalidValue;
  if (tile.rows == 0 || tile.count == 0) return cudaSuccess;
  KeepBest<<<tile.rows, kThreads, 0, stream>>>(tile.scores, tile.count, tile.first_key, k, best);
  return cudaGetLastError();
}

}  // namespace terrace
