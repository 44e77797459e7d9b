#include <cfloat>
#include <cstdint>

#include "runtime/cuda_attention_kernels.h"
#include "runtime/cuda_tensor_kernels.h"
#include "runtime/cuda_tile_kernels.h"

namespace terrace {
namespace {

// Attention on tensor cores, for runs of fp16 or bf16. Bound by memory for the few rows of a decode
// step, so what matters is that loads are always under way. Each warp of a block works by itself:
// it takes every kWarps-th tile of the piece, copies tiles asynchronously into a ring of its own in
// shared memory, and keeps a softmax of its own, which the block merges at the end.
//
// A tile is 16 tokens: the depth of one m16n8k16 product of weights and values. Fragments of these
// products lie in the registers of a warp as the PTX manual has them: lane 4 g + t holds rows g and
// g + 8, columns 2 t and 2 t + 1 of each block of eight.
constexpr uint32_t kWarps = kTileWarps;
constexpr uint32_t kThreads = 32 * kWarps;
constexpr uint32_t kAllLanes = 0xffffffff;

// Over the four lanes that share rows.
__device__ float QuadMax(float value) {
  value = fmaxf(value, __shfl_xor_sync(kAllLanes, value, 1));
  return fmaxf(value, __shfl_xor_sync(kAllLanes, value, 2));
}
__device__ float QuadSum(float value) {
  value += __shfl_xor_sync(kAllLanes, value, 1);
  return value + __shfl_xor_sync(kAllLanes, value, 2);
}

// The queries of a piece as fragments, in two halves that together have 22 bits for fp16 keys, 16
// bits for bf16 ones. The lower halves lie in shared memory, because registers do not suffice.
template <typename Element, uint32_t kDim>
struct Queries {
  uint32_t high[kDim / 16][4];
  float scale[2];    // of the scores of rows g and g + 8
  const uint4* low;  // [kDim / 16, 32 lanes], shared by the warps of the block

  // Each warp writes a share of the lower halves to `shared`, so a barrier comes before their use.
  __device__ void Load(const AttentionLaunch& launch, const DevicePiece& piece, uint4* shared) {
    const uint32_t lane = threadIdx.x % 32;
    low = shared;
    const uint32_t g = lane / 4;
    const uint32_t t = lane % 4;
    float factor[2];
    for (uint32_t half = 0; half < 2; ++half) {
      float largest = 0;
#pragma unroll
      for (uint32_t column = 2 * t; column < kDim; column += 8) {
        const float2 pair = PairAt(launch, piece, g + 8 * half, column);
        largest = fmaxf(largest, fmaxf(fabsf(pair.x), fabsf(pair.y)));
      }
      // Powers of two, so nothing is rounded. What is as small as -100 counts as nothing.
      const int exponent =
          max(static_cast<int>(__float_as_uint(QuadMax(largest)) >> 23) - 127, -100);
      factor[half] = scalbnf(1.0f, Element::kQueryExponent - exponent);
      scale[half] = launch.scale * scalbnf(1.0f, exponent - Element::kQueryExponent);
    }
#pragma unroll
    for (uint32_t k = 0; k < kDim / 16; ++k) {
      uint32_t rest[4];
#pragma unroll
      for (uint32_t i = 0; i < 4; ++i) {
        const uint32_t half = i % 2;
        float2 pair = PairAt(launch, piece, g + 8 * half, 16 * k + 8 * (i / 2) + 2 * t);
        pair.x *= factor[half];
        pair.y *= factor[half];
        high[k][i] = Element::Pack(pair.x, pair.y);
        const float2 rounded = Element::Unpack(high[k][i]);
        rest[i] = Element::Pack(pair.x - rounded.x, pair.y - rounded.y);
      }
      if (k % kWarps == threadIdx.x / 32) {
        shared[k * 32 + lane] = make_uint4(rest[0], rest[1], rest[2], rest[3]);
      }
    }
  }

 private:
  static __device__ float2 PairAt(const AttentionLaunch& launch, const DevicePiece& piece,
                                  uint32_t row, uint32_t column) {
    if (row >= piece.rows || column >= launch.head_dim) return make_float2(0, 0);
    const size_t at = static_cast<size_t>(piece.first_row + row) * launch.head_dim + column;
    return *reinterpret_cast<const float2*>(launch.queries + at);
  }
};

// The softmax of a warp: of rows g and g + 8 of its lanes.
template <uint32_t kDim>
struct Softmax {
  float max[2] = {-INFINITY, -INFINITY};
  float sum[2] = {0, 0};        // of the lane's own columns only
  float out[kDim / 8][4] = {};  // fragments of [16, kDim]
};

// Scores of the 16 tokens of a tile: fragments of [16 rows, 8 tokens], twice.
template <typename Element, uint32_t kDim>
__device__ void ScoreTile(const Queries<Element, kDim>& queries, uint32_t keys, uint32_t lane,
                          float (&scores)[2][4]) {
  float rest[2][4] = {};
  // Blocks in the order: tokens 0 to 7 at the first and the last 8 of 16 columns, tokens 8 to 15.
  const uint32_t token = lane % 8 + lane / 16 * 8;
  const uint32_t from = keys + token * Ring<kDim>::kPitch + lane / 8 % 2 * kChunkBytes;
#pragma unroll
  for (uint32_t k = 0; k < kDim / 16; ++k) {
    uint32_t blocks[4];
    LoadBlocks(from + k * 32, blocks);
    Element::Multiply(queries.high[k], blocks[0], blocks[1], scores[0]);
    Element::Multiply(queries.high[k], blocks[2], blocks[3], scores[1]);
    const uint4 packed = queries.low[k * 32 + lane];
    const uint32_t low[4] = {packed.x, packed.y, packed.z, packed.w};
    Element::Multiply(low, blocks[0], blocks[1], rest[0]);
    Element::Multiply(low, blocks[2], blocks[3], rest[1]);
  }
#pragma unroll
  for (uint32_t i = 0; i < 4; ++i) {
    scores[0][i] += rest[0][i];
    scores[1][i] += rest[1][i];
  }
}

// Turns scores into weights and brings the softmax up to date. limits: of rows g and g + 8;
// `token`: of the lane's first column.
template <uint32_t kDim>
__device__ void WeighTile(const float (&scale)[2], const uint32_t (&limits)[2], uint32_t token,
                          float (&scores)[2][4], Softmax<kDim>& softmax) {
  float factor[2];
#pragma unroll
  for (uint32_t half = 0; half < 2; ++half) {
    float largest = softmax.max[half];
#pragma unroll
    for (uint32_t i = 0; i < 4; ++i) {
      float& score = scores[i / 2][2 * half + i % 2];
      // Beyond the range of fp32 a score is at its end: infinities would make NaN of each other.
      const float finite = fminf(fmaxf(score * scale[half], -FLT_MAX), FLT_MAX);
      score = token + i / 2 * 8 + i % 2 < limits[half] ? finite : -INFINITY;
      largest = fmaxf(largest, score);
    }
    largest = QuadMax(largest);
    // Where a row has seen nothing, minus infinity stays what it is.
    const float base = largest == -INFINITY ? 0 : largest;
    factor[half] = exp2f(softmax.max[half] - base);
    softmax.max[half] = largest;
    float sum = 0;
#pragma unroll
    for (uint32_t i = 0; i < 4; ++i) {
      float& score = scores[i / 2][2 * half + i % 2];
      score = exp2f(score - base);
      sum += score;
    }
    softmax.sum[half] = softmax.sum[half] * factor[half] + sum;
  }
  if (__any_sync(kAllLanes, factor[0] != 1 || factor[1] != 1)) {
#pragma unroll
    for (uint32_t n = 0; n < kDim / 8; ++n) {
      softmax.out[n][0] *= factor[0];
      softmax.out[n][1] *= factor[0];
      softmax.out[n][2] *= factor[1];
      softmax.out[n][3] *= factor[1];
    }
  }
}

// Adds the values of a tile with these weights.
template <typename Element, uint32_t kDim>
__device__ void AddValues(const float (&weights)[2][4], uint32_t values, uint32_t lane,
                          Softmax<kDim>& softmax) {
  // The sums of one product are the factors of the next, lane by lane.
  const uint32_t factors[4] = {
      Element::Pack(weights[0][0], weights[0][1]), Element::Pack(weights[0][2], weights[0][3]),
      Element::Pack(weights[1][0], weights[1][1]), Element::Pack(weights[1][2], weights[1][3])};
  // Blocks in the order: tokens 0 to 7 and 8 to 15 of eight columns, then of the next eight.
  const uint32_t from = values + lane % 16 * Ring<kDim>::kPitch + lane / 16 * kChunkBytes;
#pragma unroll
  for (uint32_t n = 0; n < kDim / 8; n += 2) {
    uint32_t blocks[4];
    LoadTransposedBlocks(from + n * kChunkBytes, blocks);
    Element::Multiply(factors, blocks[0], blocks[1], softmax.out[n]);
    Element::Multiply(factors, blocks[2], blocks[3], softmax.out[n + 1]);
  }
}

// Merges the softmax of all warps and writes the result of the piece. The ring is no longer in use.
template <uint32_t kDim>
__device__ void WritePiece(const AttentionLaunch& launch, const DevicePiece& piece,
                           Softmax<kDim>& softmax, unsigned char* shared) {
  // Eight floats more than a row, so that the eight rows that a warp writes lie in different banks.
  constexpr uint32_t kPitch = kDim + 8;
  constexpr uint32_t kWarpRows = kWarps * kPieceRows;
  static_assert(kWarpRows * (2 + kPitch) * sizeof(float) <= Ring<kDim>::kBytes);
  float* const maxima = reinterpret_cast<float*>(shared);  // [kWarps, kPieceRows]
  float* const sums = maxima + kWarpRows;                  // [kWarps, kPieceRows]
  float* const outs = sums + kWarpRows;                    // [kWarps, kPieceRows, kPitch]
  const uint32_t lane = threadIdx.x % 32;
  const uint32_t warp = threadIdx.x / 32;
  const uint32_t t = lane % 4;
#pragma unroll
  for (uint32_t half = 0; half < 2; ++half) {
    const uint32_t row = warp * kPieceRows + lane / 4 + 8 * half;
    const float sum = QuadSum(softmax.sum[half]);
    if (t == 0) {
      maxima[row] = softmax.max[half];
      sums[row] = sum;
    }
#pragma unroll
    for (uint32_t n = 0; n < kDim / 8; ++n) {
      *reinterpret_cast<float2*>(outs + row * kPitch + 8 * n + 2 * t) =
          make_float2(softmax.out[n][2 * half], softmax.out[n][2 * half + 1]);
    }
  }
  __syncthreads();
  for (uint32_t row = warp; row < piece.rows; row += kWarps) {
    float max = -INFINITY;
#pragma unroll
    for (uint32_t w = 0; w < kWarps; ++w) max = fmaxf(max, maxima[w * kPieceRows + row]);
    float factors[kWarps];
    float sum = 0;
#pragma unroll
    for (uint32_t w = 0; w < kWarps; ++w) {
      factors[w] = exp2f(maxima[w * kPieceRows + row] - (max == -INFINITY ? 0 : max));
      sum += factors[w] * sums[w * kPieceRows + row];
    }
    const size_t to = piece.partial_row + row;
    if (lane == 0) launch.partial_stats[to] = make_float2(max, sum);
    for (uint32_t column = 4 * lane; column < launch.head_dim; column += 128) {
      float4 total = make_float4(0, 0, 0, 0);
#pragma unroll
      for (uint32_t w = 0; w < kWarps; ++w) {
        const float4 out =
            *reinterpret_cast<const float4*>(outs + (w * kPieceRows + row) * kPitch + column);
        total.x += factors[w] * out.x;
        total.y += factors[w] * out.y;
        total.z += factors[w] * out.z;
        total.w += factors[w] * out.w;
      }
      *reinterpret_cast<float4*>(launch.partial_out + to * launch.head_dim + column) = total;
    }
  }
}

template <typename Element, uint32_t kDim>
__global__ void __launch_bounds__(kThreads, Ring<kDim>::kBlocks)
    AttendOnTensorCores(const AttentionLaunch launch) {
  constexpr uint32_t kStages = Ring<kDim>::kStages;
  extern __shared__ __align__(16) unsigned char shared[];
  const uint32_t lane = threadIdx.x % 32;
  const uint32_t warp = threadIdx.x / 32;
  const DevicePiece piece = launch.pieces[blockIdx.x];
  const uint32_t ring =
      static_cast<uint32_t>(__cvta_generic_to_shared(shared)) + warp * Ring<kDim>::kWarpBytes;

  TileCursor at(piece, launch.parts, warp);
  TileCursor ahead = at;
  const auto fetch = [&](uint32_t stage) {
    if (!ahead.done(piece)) {
      FetchTile<kDim>(launch, ahead, lane, ring + stage * Ring<kDim>::kStageBytes);
      ahead.Advance(piece, launch.parts);
    }
    CommitCopies();  // without copies too: what is waited for is counted in groups
  };
  for (uint32_t stage = 0; stage + 1 < kStages; ++stage) fetch(stage);
  Queries<Element, kDim> queries;
  queries.Load(launch, piece, reinterpret_cast<uint4*>(shared + Ring<kDim>::kBytes));
  __syncthreads();
  Softmax<kDim> softmax;

  for (uint32_t stage = 0; !at.done(piece); stage = stage + 1 < kStages ? stage + 1 : 0) {
    WaitForCopies<kStages - 2>();
    // All lanes have copied this stage, and are through with the one before, which is next.
    __syncwarp();
    fetch(stage > 0 ? stage - 1 : kStages - 1);
    const uint32_t keys = ring + stage * Ring<kDim>::kStageBytes;
    float scores[2][4] = {};
    ScoreTile(queries, keys, lane, scores);
    uint32_t limits[2] = {at.end(), at.end()};
    const uint32_t first_limit = launch.parts[at.part()].limits;
    if (first_limit != kNoLimits) {
#pragma unroll
      for (uint32_t half = 0; half < 2; ++half) {
        const uint32_t row = lane / 4 + 8 * half;
        if (row >= piece.rows) continue;
        const uint64_t index = static_cast<uint64_t>(first_limit) + piece.row_of_job + row;
        limits[half] = min(limits[half], launch.limits[index]);
      }
    }
    WeighTile<kDim>(queries.scale, limits, at.token() + lane % 4 * 2, scores, softmax);
    AddValues<Element, kDim>(scores, keys + Ring<kDim>::kTileBytes, lane, softmax);
    at.Advance(piece, launch.parts);
  }
  WaitForCopies<0>();
  __syncthreads();
  WritePiece<kDim>(launch, piece, softmax, shared);
}

template <typename Element, uint32_t kDim>
cudaError_t Prepare(int* pieces_at_once) {
  const auto kernel = AttendOnTensorCores<Element, kDim>;
  const cudaError_t error = cudaFuncSetAttribute(
      kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, Ring<kDim>::kSharedBytes);
  if (error != cudaSuccess) return error;
  return cudaOccupancyMaxActiveBlocksPerMultiprocessor(pieces_at_once, kernel, kThreads,
                                                       Ring<kDim>::kSharedBytes);
}

template <typename Element>
cudaError_t Launch(const AttentionLaunch& launch, cudaStream_t stream) {
  if (launch.head_dim <= 64) {
    AttendOnTensorCores<Element, 64>
        <<<launch.piece_count, kThreads, Ring<64>::kSharedBytes, stream>>>(launch);
  } else {
    AttendOnTensorCores<Element, 128>
        <<<launch.piece_count, kThreads, Ring<128>::kSharedBytes, stream>>>(launch);
  }
  return cudaGetLastError();
}

}  // namespace

cudaError_t PrepareTensorAttention(uint32_t head_dim, int* pieces_at_once) {
  int at_once = 0;
  cudaError_t error =
      head_dim <= 64 ? Prepare<Float16, 64>(&at_once) : Prepare<Float16, 128>(&at_once);
  if (error != cudaSuccess) return error;
  error = head_dim <= 64 ? Prepare<Bfloat16, 64>(pieces_at_once)
                         : Prepare<Bfloat16, 128>(pieces_at_once);
  if (at_once < *pieces_at_once) *pieces_at_once = at_once;
  return error;
}

cudaError_t LaunchTensorAttention(bool bfloat16, const AttentionLaunch& launch,
                                  cudaStream_t stream) {
  return bfloat16 ? Launch<Bfloat16>(launch, stream) : Launch<Float16>(launch, stream);
}

}  // namespace terrace
