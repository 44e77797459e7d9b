#include "runtime/cuda_top_k_kernels.h"
#include "runtime/top_k.h"

namespace terrace {
namespace {

constexpr unsigned kThreads = 256;
constexpr unsigned kSortThreads = 1024;
constexpr unsigned kSortWarps = kSortThreads / 32;
constexpr unsigned kBins = 2048;
// Scores that a thread block looks at before others take part; and the most blocks of an array.
constexpr unsigned kBlockScores = 4096;
constexpr unsigned kMaxBlocks = 128;

// Where the choice of an array stands. Zeros are where it starts.
struct Choice {
  uint32_t prefix;  // the bits that the smallest chosen key begins with; in the end, that key
  uint32_t left;    // how many keys are chosen among those that begin so
  uint32_t equal;   // how many of those there are
  uint32_t found;   // keys written so far
  uint32_t blocks;  // that have counted
  uint32_t unused;
};

// Calls visit(score, place) for this thread's part of an array that all blocks of its row of the
// grid share. Some loads are under way at once.
template <class Visit>
__device__ void VisitScores(const float* array, unsigned count, Visit visit) {
  constexpr unsigned kLoads = 8;
  const size_t step = size_t{gridDim.x} * kThreads;
  for (size_t begin = size_t{blockIdx.x} * kThreads + threadIdx.x; begin < count;
       begin += kLoads * step) {
    float mine[kLoads];
#pragma unroll
    for (unsigned i = 0; i < kLoads; ++i) {
      mine[i] = begin + i * step < count ? __ldg(array + begin + i * step) : 0.0f;
    }
#pragma unroll
    for (unsigned i = 0; i < kLoads; ++i) {
      if (begin + i * step < count) visit(mine[i], static_cast<unsigned>(begin + i * step));
    }
  }
}

// Integers that are ordered as scores are.
__device__ uint32_t KeyOf(float score) {
  if (isnan(score)) return 0;
  const uint32_t bits = score == 0 ? 0 : __float_as_uint(score);
  return (bits >> 31) != 0 ? ~bits : bits | 0x80000000u;
}

// Bits of a key that one of the passes tells apart: 11, 11 and 10.
template <unsigned kPass>
struct Digit {
  static constexpr unsigned kShift = kPass == 0 ? 21 : kPass == 1 ? 10 : 0;
  static constexpr unsigned kBits = kPass == 2 ? 10 : 11;
  static __device__ uint32_t Of(uint32_t key) { return (key >> kShift) & ((1u << kBits) - 1); }
  // Whether the bits of the passes before are those of the smallest chosen key.
  static __device__ bool Candidate(uint32_t key, uint32_t prefix) {
    if constexpr (kPass == 0) {
      return true;
    } else {
      return key >> (kShift + kBits) == prefix;
    }
  }
};

// The bin that the left-th largest key of the candidates is in, by all threads of a block.
template <unsigned kPass>
__device__ void PickBin(Choice& choice, uint32_t* counts, uint32_t left) {
  __shared__ uint32_t sums[kThreads];
  constexpr unsigned kEach = kBins / kThreads;
  // Threads take bins from the largest on.
  const unsigned last = kBins - 1 - threadIdx.x * kEach;
  uint32_t mine[kEach];
  uint32_t sum = 0;
  for (unsigned i = 0; i < kEach; ++i) {
    mine[i] = __ldcg(counts + last - i);
    sum += mine[i];
  }
  sums[threadIdx.x] = sum;
  __syncthreads();
  uint32_t above = sum;  // then the counts of this thread's bins and all before
  for (unsigned apart = 1; apart < kThreads; apart *= 2) {
    const uint32_t other = threadIdx.x >= apart ? sums[threadIdx.x - apart] : 0;
    __syncthreads();
    above += other;
    sums[threadIdx.x] = above;
    __syncthreads();
  }
  above -= sum;
  for (unsigned i = 0; i < kEach; ++i) {
    if (above < left && left <= above + mine[i]) {
      choice.prefix = (choice.prefix << Digit<kPass>::kBits) | (last - i);
      choice.left = left - above;
      choice.equal = mine[i];
      choice.blocks = 0;
    }
    above += mine[i];
    counts[last - i] = 0;  // for the next pass
  }
}

// Counts the candidates by digit; the last block of an array to end narrows the choice down.
template <unsigned kPass>
__global__ void __launch_bounds__(kThreads)
    CountDigits(const float* scores, unsigned count, unsigned k, Choice* choices,
                uint32_t* all_counts) {
  __shared__ uint32_t counts[kBins];
  __shared__ bool is_last;
  Choice& choice = choices[blockIdx.y];
  uint32_t* const array_counts = all_counts + size_t{blockIdx.y} * kBins;
  const float* const array = scores + size_t{blockIdx.y} * count;
  for (unsigned bin = threadIdx.x; bin < kBins; bin += kThreads) counts[bin] = 0;
  __syncthreads();
  const uint32_t prefix = choice.prefix;
  const uint32_t left = kPass == 0 ? k : choice.left;
  VisitScores(array, count, [&](float score, unsigned) {
    const uint32_t key = KeyOf(score);
    if (Digit<kPass>::Candidate(key, prefix)) atomicAdd(counts + Digit<kPass>::Of(key), 1u);
  });
  __syncthreads();
  for (unsigned bin = threadIdx.x; bin < kBins; bin += kThreads) {
    if (counts[bin] != 0) atomicAdd(array_counts + bin, counts[bin]);
  }
  __threadfence();
  __syncthreads();
  if (threadIdx.x == 0) is_last = atomicAdd(&choice.blocks, 1u) == gridDim.x - 1;
  __syncthreads();
  if (!is_last) return;
  __threadfence();
  PickBin<kPass>(choice, array_counts, left);
}

// Larger scores first, then smaller places.
__device__ uint64_t Entry(uint32_t key, uint32_t place) { return (uint64_t{~key} << 32) | place; }

// Writes the chosen, in any order; of several that equal the smallest one, only if all are chosen.
__global__ void __launch_bounds__(kThreads)
    CollectChosen(const float* scores, unsigned count, unsigned k, Choice* choices,
                  uint64_t* entries) {
  Choice& choice = choices[blockIdx.y];
  const float* const array = scores + size_t{blockIdx.y} * count;
  uint64_t* const out = entries + size_t{blockIdx.y} * k;
  const uint32_t smallest = choice.prefix;
  const bool all_equal = choice.equal == choice.left;
  VisitScores(array, count, [&](float score, unsigned place) {
    const uint32_t key = KeyOf(score);
    if (key > smallest || (key == smallest && all_equal)) {
      out[atomicAdd(&choice.found, 1u)] = Entry(key, place);
    }
  });
}

// Adds the first `left` of the scores that equal the smallest chosen one, in order.
__device__ void CollectTies(const float* array, unsigned count, uint32_t smallest, uint32_t left,
                            uint64_t* out) {
  __shared__ uint32_t warp_counts[kSortWarps];
  const unsigned lane = threadIdx.x % 32;
  const unsigned warp = threadIdx.x / 32;
  uint32_t found = 0;
  for (unsigned begin = 0; begin < count && found < left; begin += kSortThreads) {
    const unsigned i = begin + threadIdx.x;
    const bool is_equal = i < count && KeyOf(array[i]) == smallest;
    const uint32_t ballot = __ballot_sync(~0u, is_equal);
    if (lane == 0) warp_counts[warp] = __popc(ballot);
    __syncthreads();
    uint32_t place = found + __popc(ballot & ((1u << lane) - 1));
    for (unsigned w = 0; w < kSortWarps; ++w) {
      if (w < warp) place += warp_counts[w];
      found += warp_counts[w];
    }
    if (is_equal && place < left) out[place] = Entry(smallest, i);
    __syncthreads();
  }
}

// Sorts the chosen of one array and writes their places.
__global__ void __launch_bounds__(kSortThreads)
    SortChosen(const float* scores, unsigned count, unsigned k, unsigned padded,
               const Choice* choices, uint64_t* entries, uint32_t* best, float* best_scores) {
  __shared__ uint64_t sorted[kMaxTopK];
  const Choice choice = choices[blockIdx.x];
  uint64_t* const chosen = entries + size_t{blockIdx.x} * k;
  if (choice.equal != choice.left) {
    CollectTies(scores + size_t{blockIdx.x} * count, count, choice.prefix, choice.left,
                chosen + (k - choice.left));
    __syncthreads();
  }
  for (unsigned i = threadIdx.x; i < padded; i += kSortThreads) {
    sorted[i] = i < k ? chosen[i] : ~uint64_t{0};
  }
  // Batcher's bitonic sort.
  for (unsigned run = 2; run <= padded; run *= 2) {
    for (unsigned apart = run / 2; apart > 0; apart /= 2) {
      __syncthreads();
      for (unsigned pair = threadIdx.x; pair < padded / 2; pair += kSortThreads) {
        const unsigned low = 2 * pair - (pair & (apart - 1));
        const unsigned high = low + apart;
        const uint64_t a = sorted[low];
        const uint64_t b = sorted[high];
        const bool ascends = (low & run) == 0;
        if ((a > b) == ascends) {
          sorted[low] = b;
          sorted[high] = a;
        }
      }
    }
  }
  __syncthreads();
  for (unsigned i = threadIdx.x; i < k; i += kSortThreads) {
    const auto place = static_cast<uint32_t>(sorted[i]);
    best[size_t{blockIdx.x} * k + i] = place;
    best_scores[size_t{blockIdx.x} * k + i] = scores[size_t{blockIdx.x} * count + place];
  }
}

size_t EntriesBytes(unsigned arrays, unsigned k) { return size_t{arrays} * k * sizeof(uint64_t); }
size_t CountsBytes(unsigned arrays) { return size_t{arrays} * kBins * sizeof(uint32_t); }

}  // namespace

size_t CudaTopKScratch(unsigned arrays, unsigned k) {
  return EntriesBytes(arrays, k) + CountsBytes(arrays) + size_t{arrays} * sizeof(Choice);
}

cudaError_t LaunchTopK(const float* scores, unsigned arrays, unsigned count, unsigned k,
                       uint32_t* best, float* best_scores, void* scratch, cudaStream_t stream) {
  if (arrays == 0) return cudaSuccess;
  auto* const entries = static_cast<uint64_t*>(scratch);
  auto* const counts = reinterpret_cast<uint32_t*>(entries + size_t{arrays} * k);
  auto* const choices = reinterpret_cast<Choice*>(counts + size_t{arrays} * kBins);
  const cudaError_t cleared =
      cudaMemsetAsync(counts, 0, CountsBytes(arrays) + size_t{arrays} * sizeof(Choice), stream);
  if (cleared != cudaSuccess) return cleared;
  unsigned blocks = (count + kBlockScores - 1) / kBlockScores;
  blocks = blocks < kMaxBlocks ? blocks : kMaxBlocks;
  const dim3 grid(blocks, arrays);
  CountDigits<0><<<grid, kThreads, 0, stream>>>(scores, count, k, choices, counts);
  CountDigits<1><<<grid, kThreads, 0, stream>>>(scores, count, k, choices, counts);
  CountDigits<2><<<grid, kThreads, 0, stream>>>(scores, count, k, choices, counts);
  CollectChosen<<<grid, kThreads, 0, stream>>>(scores, count, k, choices, entries);
  unsigned padded = 1;
  while (padded < k) padded *= 2;
  SortChosen<<<arrays, kSortThreads, 0, stream>>>(scores, count, k, padded, choices, entries, best,
                                                  best_scores);
  return cudaGetLastError();
}

}  // namespace terrace
