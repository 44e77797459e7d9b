#include <cfloat>
#include <cstdint>

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "runtime/cuda_attention_kernels.h"

namespace terrace {
namespace {

// Attention for what tensor cores do not take: fp32, large head_dim, rows at odd addresses. All
// arithmetic is fp32. A block works on a tile of 32 tokens at a time, in three steps: scores, a
// warp for each token; the softmax, a warp for each row; sums of values, a thread for each column.
constexpr uint32_t kWarps = 4;
constexpr uint32_t kThreads = 32 * kWarps;
constexpr uint32_t kTileTokens = 32;
constexpr uint32_t kMaxHeadDim = 512;
constexpr uint32_t kColumns = kMaxHeadDim / kThreads;  // of a thread
constexpr uint32_t kElements = kMaxHeadDim / 32;       // of a lane
constexpr uint32_t kWarpRows = kPieceRows / kWarps;    // of a warp
constexpr uint32_t kAllLanes = 0xffffffff;

__device__ float ToFloat(float value) { return value; }
__device__ float ToFloat(__half value) { return __half2float(value); }
__device__ float ToFloat(__nv_bfloat16 value) { return __bfloat162float(value); }

__device__ float WarpSum(float value) {
#pragma unroll
  for (uint32_t lanes = 16; lanes > 0; lanes /= 2) {
    value += __shfl_xor_sync(kAllLanes, value, lanes);
  }
  return value;
}
__device__ float WarpMax(float value) {
#pragma unroll
  for (uint32_t lanes = 16; lanes > 0; lanes /= 2) {
    value = fmaxf(value, __shfl_xor_sync(kAllLanes, value, lanes));
  }
  return value;
}

// What a block has in shared memory, behind which queries lie: [piece.rows, head_dim], scaled.
struct Shared {
  float weights[kPieceRows][kTileTokens];  // scores at first
  float factors[kPieceRows];               // of earlier sums
};

// Consecutive tokens of a part.
struct Tile {
  const DevicePart* part;
  uint32_t token;  // the first
  uint32_t count;  // up to kTileTokens
};

template <typename Element>
__device__ void ScoreTile(const Tile& tile, const DevicePiece& piece, uint32_t head_dim,
                          const float* queries, Shared& shared) {
  const uint32_t lane = threadIdx.x % 32;
  for (uint32_t token = threadIdx.x / 32; token < tile.count; token += kWarps) {
    const auto* key = reinterpret_cast<const Element*>(
        static_cast<const unsigned char*>(tile.part->keys) +
        (static_cast<uint64_t>(tile.token) + token) * tile.part->key_stride);
    float elements[kElements];
#pragma unroll
    for (uint32_t i = 0; i < kElements; ++i) {
      elements[i] = lane + 32 * i < head_dim ? ToFloat(key[lane + 32 * i]) : 0;
    }
    for (uint32_t row = 0; row < piece.rows; ++row) {
      float score = 0;
#pragma unroll
      for (uint32_t i = 0; i < kElements; ++i) {
        if (lane + 32 * i < head_dim) {
          score = fmaf(queries[row * head_dim + lane + 32 * i], elements[i], score);
        }
      }
      score = WarpSum(score);
      // Beyond the range of fp32 a score is at its end: infinities would make NaN of each other.
      if (lane == 0) shared.weights[row][token] = fminf(fmaxf(score, -FLT_MAX), FLT_MAX);
    }
  }
}

// Turns scores into weights. `max` and `sum` are those of the warp's rows: row i of them is row
// warp + kWarps * i of the piece.
__device__ void WeighTile(const Tile& tile, const DevicePiece& piece, const uint32_t* all_limits,
                          Shared& shared, float (&max)[kWarpRows], float (&sum)[kWarpRows]) {
  const uint32_t lane = threadIdx.x % 32;
#pragma unroll
  for (uint32_t i = 0; i < kWarpRows; ++i) {
    const uint32_t row = threadIdx.x / 32 + kWarps * i;
    if (row >= piece.rows) continue;
    uint32_t limit = tile.token + tile.count;
    if (tile.part->limits != kNoLimits) {
      limit =
          min(limit, all_limits[static_cast<uint64_t>(tile.part->limits) + piece.row_of_job + row]);
    }
    const float score = tile.token + lane < limit ? shared.weights[row][lane] : -INFINITY;
    const float largest = fmaxf(max[i], WarpMax(score));
    // Where a row has seen nothing, minus infinity stays what it is.
    const float base = largest == -INFINITY ? 0 : largest;
    const float factor = exp2f(max[i] - base);
    const float weight = exp2f(score - base);
    shared.weights[row][lane] = weight;
    if (lane == 0) shared.factors[row] = factor;
    sum[i] = sum[i] * factor + WarpSum(weight);
    max[i] = largest;
  }
}

template <typename Element>
__device__ void AddValues(const Tile& tile, const DevicePiece& piece, uint32_t head_dim,
                          const Shared& shared, float (&out)[kPieceRows][kColumns]) {
#pragma unroll
  for (uint32_t row = 0; row < kPieceRows; ++row) {
    if (row >= piece.rows) continue;
#pragma unroll
    for (uint32_t c = 0; c < kColumns; ++c) out[row][c] *= shared.factors[row];
  }
  const unsigned char* values =
      static_cast<const unsigned char*>(tile.part->values) + tile.token * tile.part->value_stride;
#pragma unroll 4
  for (uint32_t token = 0; token < tile.count; ++token) {
    const auto* value = reinterpret_cast<const Element*>(values + token * tile.part->value_stride);
    float elements[kColumns];
#pragma unroll
    for (uint32_t c = 0; c < kColumns; ++c) {
      const uint32_t column = threadIdx.x + kThreads * c;
      elements[c] = column < head_dim ? ToFloat(value[column]) : 0;
    }
#pragma unroll
    for (uint32_t row = 0; row < kPieceRows; ++row) {
      if (row >= piece.rows) continue;
      const float weight = shared.weights[row][token];
#pragma unroll
      for (uint32_t c = 0; c < kColumns; ++c) out[row][c] = fmaf(weight, elements[c], out[row][c]);
    }
  }
}

template <typename Element>
__global__ void __launch_bounds__(kThreads) AttendPlainly(const AttentionLaunch launch) {
  __shared__ Shared shared;
  extern __shared__ float queries[];
  const DevicePiece piece = launch.pieces[blockIdx.x];
  const uint32_t head_dim = launch.head_dim;
  const float* from = launch.queries + static_cast<uint64_t>(piece.first_row) * head_dim;
  for (uint32_t i = threadIdx.x; i < piece.rows * head_dim; i += kThreads) {
    queries[i] = from[i] * launch.scale;
  }
  float max[kWarpRows];
  float sum[kWarpRows] = {};
#pragma unroll
  for (uint32_t i = 0; i < kWarpRows; ++i) max[i] = -INFINITY;
  float out[kPieceRows][kColumns] = {};
  for (uint32_t index = piece.first_part; index <= piece.last_part; ++index) {
    const DevicePart& part = launch.parts[index];
    const uint32_t end = index == piece.last_part ? piece.end_token : part.tokens;
    uint32_t token = index == piece.first_part ? piece.first_token : 0;
    for (; token < end; token += kTileTokens) {
      const Tile tile = {&part, token, min(kTileTokens, end - token)};
      // Before scores take the place of the weights of the tile before, and once for the queries.
      __syncthreads();
      ScoreTile<Element>(tile, piece, head_dim, queries, shared);
      __syncthreads();
      WeighTile(tile, piece, launch.limits, shared, max, sum);
      __syncthreads();
      AddValues<Element>(tile, piece, head_dim, shared, out);
    }
  }
  const uint64_t to = piece.partial_row;
#pragma unroll
  for (uint32_t row = 0; row < kPieceRows; ++row) {
#pragma unroll
    for (uint32_t c = 0; c < kColumns; ++c) {
      const uint32_t column = threadIdx.x + kThreads * c;
      if (row >= piece.rows || column >= head_dim) continue;
      launch.partial_out[(to + row) * head_dim + column] = out[row][c];
    }
  }
#pragma unroll
  for (uint32_t i = 0; i < kWarpRows; ++i) {
    const uint32_t row = threadIdx.x / 32 + kWarps * i;
    if (row < piece.rows && threadIdx.x % 32 == 0) {
      launch.partial_stats[to + row] = make_float2(max[i], sum[i]);
    }
  }
}

uint32_t QueryBytes(uint32_t head_dim) { return kPieceRows * head_dim * sizeof(float); }

template <typename Element>
cudaError_t Launch(const AttentionLaunch& launch, cudaStream_t stream) {
  AttendPlainly<Element>
      <<<launch.piece_count, kThreads, QueryBytes(launch.head_dim), stream>>>(launch);
  return cudaGetLastError();
}

}  // namespace

cudaError_t PreparePlainAttention(uint32_t head_dim, int* pieces_at_once) {
  return cudaOccupancyMaxActiveBlocksPerMultiprocessor(pieces_at_once, AttendPlainly<float>,
                                                       kThreads, QueryBytes(head_dim));
}

cudaError_t LaunchPlainAttention(AttentionKernel kernel, const AttentionLaunch& launch,
                                 cudaStream_t stream) {
  switch (kernel) {
    case AttentionKernel::kPlainFloat16:
      return Launch<__half>(launch, stream);
    case AttentionKernel::kPlainBfloat16:
      return Launch<__nv_bfloat16>(launch, stream);
    default:
      return Launch<float>(launch, stream);
  }
}

}  // namespace terrace
