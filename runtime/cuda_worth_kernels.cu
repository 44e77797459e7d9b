#include <math_constants.h>

#include "runtime/cuda_scoring_kernels.h"

namespace terrace {
namespace {

constexpr unsigned kThreads = 256;
constexpr unsigned kWarps = kThreads / 32;
constexpr unsigned kPartialLogits = 4096;  // of a row, in one pair of partials
constexpr unsigned kWorthClusters = 1024;  // of a head, by one thread block

unsigned PartialsOf(unsigned count) { return (count + kPartialLogits - 1) / kPartialLogits; }

// The sum of exp(logit - shift), where `shift` is the largest logit.
struct Mass {
  float shift;
  float sum;
};

__device__ Mass NoMass() { return {-CUDART_INF_F, 0}; }

__device__ Mass Merged(Mass a, Mass b) {
  const float shift = fmaxf(a.shift, b.shift);
  if (shift == -CUDART_INF_F) return {shift, 0};
  return {shift, a.sum * expf(a.shift - shift) + b.sum * expf(b.shift - shift)};
}

__device__ Mass MergedOverWarp(Mass mass) {
  for (unsigned apart = 16; apart > 0; apart /= 2) {
    const Mass other = {__shfl_xor_sync(~0u, mass.shift, apart),
                        __shfl_xor_sync(~0u, mass.sum, apart)};
    mass = Merged(mass, other);
  }
  return mass;
}

// partials[row, chunk] = the mass of a chunk of a row, where rows are those of all heads.
__global__ void __launch_bounds__(kThreads)
    SumMasses(const float* logits, unsigned count, float2* partials) {
  __shared__ Mass masses[kWarps];
  const unsigned first = blockIdx.x * kPartialLogits;
  const unsigned end = min(first + kPartialLogits, count);
  const float* const row = logits + size_t{blockIdx.y} * count;
  constexpr unsigned kEach = kPartialLogits / kThreads;
  float mine[kEach];
  Mass mass = NoMass();
#pragma unroll
  for (unsigned i = 0; i < kEach; ++i) {
    const unsigned at = first + i * kThreads + threadIdx.x;
    mine[i] = at < end ? row[at] : -CUDART_INF_F;
    mass.shift = fmaxf(mass.shift, mine[i]);
  }
  if (mass.shift > -CUDART_INF_F) {
#pragma unroll
    for (unsigned i = 0; i < kEach; ++i) mass.sum += expf(mine[i] - mass.shift);
  }
  mass = MergedOverWarp(mass);
  if (threadIdx.x % 32 == 0) masses[threadIdx.x / 32] = mass;
  __syncthreads();
  if (threadIdx.x != 0) return;
  for (unsigned i = 1; i < kWarps; ++i) mass = Merged(mass, masses[i]);
  partials[size_t{blockIdx.y} * gridDim.x + blockIdx.x] = make_float2(mass.shift, mass.sum);
}

__global__ void __launch_bounds__(kThreads)
    SumShares(const float* logits, unsigned rows, unsigned count, const float2* partials,
              unsigned chunks, float* worth) {
  __shared__ float shifts[kMaxWorthRows];
  __shared__ float per_mass[kMaxWorthRows];
  const unsigned head = blockIdx.y;
  for (unsigned row = threadIdx.x / 32; row < rows; row += kWarps) {
    const float2* const of_row = partials + (size_t{head} * rows + row) * chunks;
    Mass mass = NoMass();
    for (unsigned chunk = threadIdx.x % 32; chunk < chunks; chunk += 32) {
      mass = Merged(mass, {of_row[chunk].x, of_row[chunk].y});
    }
    mass = MergedOverWarp(mass);
    if (threadIdx.x % 32 == 0) {
      shifts[row] = mass.shift;
      per_mass[row] = 1 / mass.sum;
    }
  }
  __syncthreads();
  const float* const of_head = logits + size_t{head} * rows * count;
  const unsigned end = min((blockIdx.x + 1) * kWorthClusters, count);
  for (unsigned c = blockIdx.x * kWorthClusters + threadIdx.x; c < end; c += kThreads) {
    float sum = 0;
    for (unsigned row = 0; row < rows; ++row) {
      sum += per_mass[row] * expf(of_head[size_t{row} * count + c] - shifts[row]);
    }
    // Products of huge keys overflow, perhaps both ways at once.
    worth[size_t{head} * count + c] = sum > 0 ? sum : 0;
  }
}

}  // namespace

size_t CudaWorthPartials(unsigned count) { return 2 * size_t{PartialsOf(count)}; }

cudaError_t LaunchClusterWorth(const float* logits, unsigned heads, unsigned rows, unsigned count,
                               float* partials, float* worth, cudaStream_t stream) {
  if (heads == 0 || rows == 0 || count == 0) return cudaSuccess;
  auto* const pairs = reinterpret_cast<float2*>(partials);
  const unsigned chunks = PartialsOf(count);
  SumMasses<<<dim3(chunks, heads * rows), kThreads, 0, stream>>>(logits, count, pairs);
  SumShares<<<dim3((count + kWorthClusters - 1) / kWorthClusters, heads), kThreads, 0, stream>>>(
      logits, rows, count, pairs, chunks, worth);
  return cudaGetLastError();
}

}  // namespace terrace
