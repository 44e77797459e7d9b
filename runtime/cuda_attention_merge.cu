#include <cstdint>

#include "runtime/cuda_attention_kernels.h"

namespace terrace {
namespace {

// A block merges the pieces of one row. Each warp sums up every kWarps-th piece, so that many reads
// are under way at once, and the block sums up the warps; the order is always the same.
constexpr uint32_t kWarps = 8;
constexpr uint32_t kThreads = 32 * kWarps;
constexpr uint32_t kMaxHeadDim = 512;
constexpr uint32_t kQuads = kMaxHeadDim / 128;  // four columns each, of a lane
constexpr uint32_t kAllLanes = 0xffffffff;
constexpr float kLn2 = 0.69314718055994531f;

__device__ float WarpMax(float value) {
#pragma unroll
  for (uint32_t lanes = 16; lanes > 0; lanes /= 2) {
    value = fmaxf(value, __shfl_xor_sync(kAllLanes, value, lanes));
  }
  return value;
}

__global__ void __launch_bounds__(kThreads) MergePieces(const MergeLaunch launch) {
  __shared__ float maxima[kWarps];
  __shared__ float sums[kWarps];
  __shared__ float4 outs[kWarps][kMaxHeadDim / 4];
  const DeviceRange range = launch.ranges[blockIdx.x];
  const uint32_t row = blockIdx.y;
  if (row >= range.rows) return;
  const uint32_t lane = threadIdx.x % 32;
  const uint32_t warp = threadIdx.x / 32;
  const uint32_t quads = launch.head_dim / 4;  // head_dim is a multiple of 8
  const auto* partial_out = reinterpret_cast<const float4*>(launch.partial_out);
  const uint64_t first = static_cast<uint64_t>(range.partial_row) + row;

  float max = -INFINITY;
  for (uint32_t piece = threadIdx.x; piece < range.pieces; piece += kThreads) {
    max = fmaxf(max, launch.partial_stats[first + static_cast<uint64_t>(piece) * range.rows].x);
  }
  max = WarpMax(max);
  if (lane == 0) maxima[warp] = max;
  __syncthreads();
#pragma unroll
  for (uint32_t w = 0; w < kWarps; ++w) max = fmaxf(max, maxima[w]);
  const float base = max == -INFINITY ? 0 : max;

  float sum = 0;
  float4 out[kQuads];
#pragma unroll
  for (uint32_t q = 0; q < kQuads; ++q) out[q] = make_float4(0, 0, 0, 0);
#pragma unroll 4
  for (uint32_t piece = warp; piece < range.pieces; piece += kWarps) {
    const uint64_t at = first + static_cast<uint64_t>(piece) * range.rows;
    const float2 stats = launch.partial_stats[at];
    const float weight = exp2f(stats.x - base);
    sum = fmaf(weight, stats.y, sum);
#pragma unroll
    for (uint32_t q = 0; q < kQuads; ++q) {
      if (lane + 32 * q >= quads) continue;
      const float4 partial = partial_out[at * quads + lane + 32 * q];
      out[q].x = fmaf(weight, partial.x, out[q].x);
      out[q].y = fmaf(weight, partial.y, out[q].y);
      out[q].z = fmaf(weight, partial.z, out[q].z);
      out[q].w = fmaf(weight, partial.w, out[q].w);
    }
  }
  if (lane == 0) sums[warp] = sum;
#pragma unroll
  for (uint32_t q = 0; q < kQuads; ++q) {
    if (lane + 32 * q < quads) outs[warp][lane + 32 * q] = out[q];
  }
  __syncthreads();

  sum = 0;
#pragma unroll
  for (uint32_t w = 0; w < kWarps; ++w) sum += sums[w];
  const uint64_t to = static_cast<uint64_t>(range.first_row) + row;
  if (threadIdx.x == 0) launch.lse[to] = sum > 0 ? (max + log2f(sum)) * kLn2 : -INFINITY;
  const float factor = sum > 0 ? 1 / sum : 0;
  for (uint32_t quad = threadIdx.x; quad < quads; quad += kThreads) {
    float4 total = make_float4(0, 0, 0, 0);
#pragma unroll
    for (uint32_t w = 0; w < kWarps; ++w) {
      total.x += outs[w][quad].x;
      total.y += outs[w][quad].y;
      total.z += outs[w][quad].z;
      total.w += outs[w][quad].w;
    }
    reinterpret_cast<float4*>(launch.out)[to * quads + quad] =
        make_float4(total.x * factor, total.y * factor, total.z * factor, total.w * factor);
  }
}

}  // namespace

cudaError_t LaunchMerge(const MergeLaunch& launch, cudaStream_t stream) {
  MergePieces<<<dim3(launch.range_count, launch.max_range_rows), kThreads, 0, stream>>>(launch);
  return cudaGetLastError();
}

}  // namespace terrace
