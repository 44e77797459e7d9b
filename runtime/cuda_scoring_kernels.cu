#include <math_constants.h>

#include "runtime/cuda_scoring_kernels.h"

namespace terrace {
namespace {

constexpr unsigned kThreads = 256;
constexpr unsigned kWarpVectors = 32;  // two tiles of the tensor cores, so that loads overlap
constexpr unsigned kStepBytes = 64;    // of a vector, by the 16-byte loads of four lanes
constexpr unsigned kSteps = 2;         // loaded before the first is used
static_assert(kThreads / 32 * kWarpVectors == kScoreTile);

// Rows of scores lie this far apart in shared memory, so that the lanes of a warp, which write four
// pairs of rows, meet no bank twice.
constexpr unsigned kRowStride = kScoreTile + 4;

// sums += a . b over 32 elements: `a` is 16 vectors, signed, and `b` is 8 rows of queries, whose
// bytes are signed or not. Sums are exact.
__device__ void MultiplySigned(int (&sums)[4], uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3,
                               uint32_t b0, uint32_t b1) {
  asm("mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 "
      "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+r"(sums[0]), "+r"(sums[1]), "+r"(sums[2]), "+r"(sums[3])
      : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}

__device__ void MultiplyUnsigned(int (&sums)[4], uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3,
                                 uint32_t b0, uint32_t b1) {
  asm("mma.sync.aligned.m16n8k32.row.col.s32.s8.u8.s32 "
      "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+r"(sums[0]), "+r"(sums[1]), "+r"(sums[2]), "+r"(sums[3])
      : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}

// Where the scores of a tile go: those of a block are the best of its vectors.
struct BestOfSummary {
  unsigned per_summary;
  float* scores;

  // In the order of SummaryQueries::Score, so that they are equal bit for bit.
  __device__ float Scaled(int product, float scale, float) const {
    return __fmul_rn(__int2float_rn(product), scale);
  }
  // Of row `row` and the first of whose scaled vectors are in `tile`.
  __device__ void Write(const CudaVectorScores& of, const float* row_scales, const float* tile,
                        unsigned first, unsigned count, unsigned first_row, unsigned rows) const {
    const unsigned summaries = count / per_summary;
    const unsigned head = blockIdx.y;
    for (unsigned i = threadIdx.x; i < rows * summaries; i += kThreads) {
      const unsigned row = i / summaries;
      const unsigned summary = i - row * summaries;
      const float* const at = tile + row * kRowStride + summary * per_summary;
      float best = -CUDART_INF_F;
      for (unsigned v = 0; v < per_summary; ++v) best = fmaxf(best, at[v]);
      scores[(size_t{head} * of.rows + first_row + row) * (of.count / per_summary) +
             first / per_summary + summary] = __fmul_rn(best, row_scales[row]);
    }
  }
};

// Those of a cluster are raised.
struct RaisedLogit {
  CudaLogitRaises raises;
  float* logits;

  // In the order of SummaryQueries::ScoreEach and RaiseLogits.
  __device__ float Scaled(int product, float scale, float row_scale) const {
    return __fmul_rn(__fmul_rn(__int2float_rn(product), row_scale), scale);
  }
  __device__ void Write(const CudaVectorScores& of, const float*, const float* tile, unsigned first,
                        unsigned count, unsigned first_row, unsigned rows) const {
    const unsigned head = blockIdx.y;
    for (unsigned i = threadIdx.x; i < rows * count; i += kThreads) {
      const unsigned row = i / count;
      const unsigned c = i - row * count;
      const size_t by_row =
          (size_t{head} * raises.segments + raises.segment_of[first + c]) * of.rows + first_row +
          row;
      const float half_variance =
          __fmul_rn(raises.gains[by_row], raises.spreads[head * of.head_vectors + first + c]);
      const float root = __fsqrt_rn(__fmul_rn(half_variance, raises.log_keys));
      const float by = half_variance < raises.log_keys
                           ? half_variance
                           : __fsub_rn(__fadd_rn(root, root), raises.log_keys);
      const float logit = __fadd_rn(tile[row * kRowStride + c], raises.shifts[by_row]);
      logits[(size_t{head} * of.rows + first_row + row) * of.count + first + c] =
          __fadd_rn(logit, by);
    }
  }
};

// One tile of one head against kGroups groups of rows. Vectors are read once, each 16 bytes by one
// lane: which elements of a vector a lane holds does not matter to the tensor cores as long as it
// holds the same ones of the queries.
template <unsigned kGroups, class Output>
__global__ void __launch_bounds__(kThreads, kGroups == 1 ? 3 : 2)
    ScoreTile(const CudaVectorScores of, const Output output, unsigned tile_vectors) {
  __shared__ float tile[kGroups * kScoreRowGroup * kRowStride];
  __shared__ float row_scales[kGroups * kScoreRowGroup];
  const unsigned head = blockIdx.y;
  const unsigned first = blockIdx.x * tile_vectors;
  const unsigned count = min(tile_vectors, of.count - first);
  const unsigned groups = (of.rows + kScoreRowGroup - 1) / kScoreRowGroup;
  const unsigned first_group = blockIdx.z * kGroups;
  const unsigned lane = threadIdx.x % 32;
  const unsigned in_group = lane / 4;  // the row of queries and vectors that a lane loads
  const unsigned part = lane % 4;      // the 16 bytes of a step
  const unsigned local = threadIdx.x / 32 * kWarpVectors;
  const unsigned dimensions = of.dimensions;

  if (threadIdx.x < kGroups * kScoreRowGroup) {
    const unsigned group = first_group + threadIdx.x / kScoreRowGroup;
    row_scales[threadIdx.x] =
        group < groups
            ? of.row_scales[(size_t{head} * groups + first_group) * kScoreRowGroup + threadIdx.x]
            : 0.0f;
  }

  int high[kGroups][2][4] = {};
  int low[kGroups][2][4] = {};
  float scales[2][2] = {};
  if (local < count) {
    const size_t first_vector = head * of.head_vectors + first;
    const int8_t* const vectors = of.vectors + first_vector * dimensions;
    for (unsigned m = 0; m < 2; ++m) {
      for (unsigned half = 0; half < 2; ++half) {
        const unsigned v = local + m * 16 + half * 8 + in_group;
        if (v < count) scales[m][half] = of.scales[first_vector + v];
      }
    }
    for (unsigned begin = 0; begin < dimensions; begin += kSteps * kStepBytes) {
      uint4 loaded[kSteps][2][2];
#pragma unroll
      for (unsigned step = 0; step < kSteps; ++step) {
        const unsigned at = begin + step * kStepBytes + part * 16;
#pragma unroll
        for (unsigned m = 0; m < 2; ++m) {
#pragma unroll
          for (unsigned half = 0; half < 2; ++half) {
            const unsigned v = local + m * 16 + half * 8 + in_group;
            loaded[step][m][half] =
                at < dimensions && v < count
                    ? __ldg(reinterpret_cast<const uint4*>(vectors + size_t{v} * dimensions + at))
                    : make_uint4(0, 0, 0, 0);
          }
        }
      }
#pragma unroll
      for (unsigned step = 0; step < kSteps; ++step) {
        if (begin + step * kStepBytes >= dimensions) break;
        const unsigned at = begin + step * kStepBytes + part * 16;
#pragma unroll
        for (unsigned g = 0; g < kGroups; ++g) {
          uint4 top = make_uint4(0, 0, 0, 0);
          uint4 bottom = top;
          if (at < dimensions && first_group + g < groups) {
            const uint8_t* const query =
                of.queries +
                ((size_t{head} * groups + first_group + g) * 2 * kScoreRowGroup + in_group) *
                    dimensions +
                at;
            top = __ldg(reinterpret_cast<const uint4*>(query));
            bottom =
                __ldg(reinterpret_cast<const uint4*>(query + size_t{kScoreRowGroup} * dimensions));
          }
#pragma unroll
          for (unsigned m = 0; m < 2; ++m) {
            const uint4 a = loaded[step][m][0];
            const uint4 b = loaded[step][m][1];
            MultiplySigned(high[g][m], a.x, b.x, a.y, b.y, top.x, top.y);
            MultiplySigned(high[g][m], a.z, b.z, a.w, b.w, top.z, top.w);
            MultiplyUnsigned(low[g][m], a.x, b.x, a.y, b.y, bottom.x, bottom.y);
            MultiplyUnsigned(low[g][m], a.z, b.z, a.w, b.w, bottom.z, bottom.w);
          }
        }
      }
    }
  }
  __syncthreads();  // row_scales
  // A lane has the sums of vectors in_group and in_group + 8 of a tile with rows 2 * part and
  // 2 * part + 1. Those of 16-bit elements fit 32 bits, whatever the parts do on the way.
#pragma unroll
  for (unsigned g = 0; g < kGroups; ++g) {
#pragma unroll
    for (unsigned m = 0; m < 2; ++m) {
#pragma unroll
      for (unsigned i = 0; i < 4; ++i) {
        const unsigned row = g * kScoreRowGroup + part * 2 + i % 2;
        const unsigned v = local + m * 16 + i / 2 * 8 + in_group;
        const auto product = static_cast<int>((static_cast<unsigned>(high[g][m][i]) << 8) +
                                              static_cast<unsigned>(low[g][m][i]));
        tile[row * kRowStride + v] = output.Scaled(product, scales[m][i / 2], row_scales[row]);
      }
    }
  }
  __syncthreads();
  const unsigned first_row = first_group * kScoreRowGroup;
  output.Write(of, row_scales, tile, first, count, first_row,
               min(kGroups * kScoreRowGroup, of.rows - first_row));
}

template <class Output>
cudaError_t Launch(const CudaVectorScores& of, const Output& output, unsigned tile_vectors,
                   cudaStream_t stream) {
  if (of.heads == 0 || of.rows == 0 || of.count == 0) return cudaSuccess;
  const unsigned tiles = (of.count + tile_vectors - 1) / tile_vectors;
  const unsigned groups = (of.rows + kScoreRowGroup - 1) / kScoreRowGroup;
  if (groups == 1) {
    ScoreTile<1><<<dim3(tiles, of.heads, 1), kThreads, 0, stream>>>(of, output, tile_vectors);
  } else {
    ScoreTile<2><<<dim3(tiles, of.heads, (groups + 1) / 2), kThreads, 0, stream>>>(of, output,
                                                                                   tile_vectors);
  }
  return cudaGetLastError();
}

}  // namespace

cudaError_t LaunchSummaryScores(const CudaVectorScores& of, unsigned per_summary, float* scores,
                                cudaStream_t stream) {
  // Whole summaries, so that a thread block has all that it takes the best of.
  return Launch(of, BestOfSummary{per_summary, scores}, kScoreTile / per_summary * per_summary,
                stream);
}

cudaError_t LaunchClusterLogits(const CudaVectorScores& of, const CudaLogitRaises& raises,
                                float* logits, cudaStream_t stream) {
  return Launch(of, RaisedLogit{raises, logits}, kScoreTile, stream);
}

}  // namespace terrace
