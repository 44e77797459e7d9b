#ifndef TERRACE_RUNTIME_CUDA_TILE_KERNELS_H_
#define TERRACE_RUNTIME_CUDA_TILE_KERNELS_H_

#include <cuda_runtime_api.h>

#include <cstdint>

#include "runtime/attention_pieces.h"
#include "runtime/cuda_attention_kernels.h"
#include "runtime/cuda_tensor_kernels.h"

namespace terrace {

// How the keys and values of a piece get to the warps of a block: in tiles of 16 tokens, each
// warp's own, through a ring in shared memory. Private, for .cu files.

inline constexpr uint32_t kTileWarps = 4;
inline constexpr uint32_t kTileTokens = 16;

// Rings and blocks that fit a multiprocessor, for head_dim up to kDim: together 100 KiB and more of
// loads under way on sm_90, and one block on the 99 KiB of sm_86 and sm_89.
template <uint32_t kDim>
struct Ring {
  static constexpr uint32_t kStages = kDim > 64 ? 2 : 3;
  static constexpr uint32_t kBlocks = kDim > 64 ? 3 : 4;
  // A chunk more than a row, so that the eight rows that ldmatrix reads lie in different banks.
  static constexpr uint32_t kPitch = kDim * 2 + kChunkBytes;
  static constexpr uint32_t kTileBytes = kTileTokens * kPitch;
  static constexpr uint32_t kStageBytes = 2 * kTileBytes;  // keys, then values
  static constexpr uint32_t kWarpBytes = kStages * kStageBytes;
  static constexpr uint32_t kBytes = kTileWarps * kWarpBytes;
  static constexpr uint32_t kQueryBytes = kDim / 16 * 32 * sizeof(uint4);
  static constexpr uint32_t kSharedBytes = kBytes + kQueryBytes;  // of a block
};

// The tiles of a piece that one warp takes, in order. A tile does not go beyond its part.
class TileCursor {
 public:
  __device__ TileCursor(const DevicePiece& piece, const DevicePart* parts, uint32_t warp)
      : part_(piece.first_part), tile_(warp) {
    Enter(piece, parts);
    Settle(piece, parts);
  }

  __device__ bool done(const DevicePiece& piece) const { return part_ > piece.last_part; }
  __device__ uint32_t part() const { return part_; }
  __device__ uint32_t token() const { return begin_ + tile_ * kTileTokens; }  // the tile's first
  __device__ uint32_t end() const { return end_; }  // of the piece's tokens of the part

  __device__ void Advance(const DevicePiece& piece, const DevicePart* parts) {
    tile_ += kTileWarps;
    Settle(piece, parts);
  }

 private:
  __device__ void Enter(const DevicePiece& piece, const DevicePart* parts) {
    begin_ = part_ == piece.first_part ? piece.first_token : 0;
    end_ = part_ == piece.last_part ? piece.end_token : parts[part_].tokens;
  }
  // Passes parts whose tiles are all before this one.
  __device__ void Settle(const DevicePiece& piece, const DevicePart* parts) {
    while (true) {
      const uint32_t tiles = (end_ - begin_ + kTileTokens - 1) / kTileTokens;
      if (tile_ < tiles) return;
      tile_ -= tiles;
      if (++part_ > piece.last_part) return;
      Enter(piece, parts);
    }
  }

  uint32_t part_;
  uint32_t tile_;   // counted from begin_
  uint32_t begin_;  // the piece's tokens of the part
  uint32_t end_;
};

// Starts to copy the tile of the cursor, whose tokens beyond the end and columns beyond head_dim
// become zeros, to a stage of the warp's ring.
template <uint32_t kDim>
__device__ void FetchTile(const AttentionLaunch& launch, const TileCursor& cursor, uint32_t lane,
                          uint32_t stage) {
  constexpr uint32_t kRowChunks = kDim * 2 / kChunkBytes;
  constexpr uint32_t kRowsAtOnce = 32 / kRowChunks;
  const DevicePart& part = launch.parts[cursor.part()];
  const uint32_t chunk = lane % kRowChunks;
  const uint32_t first = lane / kRowChunks;
  const bool no_column = chunk * 8 >= launch.head_dim;
  // Addresses stay within the run, also where zeros are written instead.
  const uint64_t column = no_column ? 0 : chunk * kChunkBytes;
  const uint32_t last = cursor.end() - 1;
  uint32_t token = cursor.token() + first;
  const uint64_t from = min(token, last);
  const unsigned char* key =
      static_cast<const unsigned char*>(part.keys) + from * part.key_stride + column;
  const unsigned char* value =
      static_cast<const unsigned char*>(part.values) + from * part.value_stride + column;
  uint32_t to = stage + first * Ring<kDim>::kPitch + chunk * kChunkBytes;
#pragma unroll
  for (uint32_t row = 0; row < kTileTokens; row += kRowsAtOnce) {
    const bool zeros = no_column || token > last;
    CopyChunk(to, key, zeros);
    CopyChunk(to + Ring<kDim>::kTileBytes, value, zeros);
    to += kRowsAtOnce * Ring<kDim>::kPitch;
    token += kRowsAtOnce;
    if (token <= last) {
      key += kRowsAtOnce * part.key_stride;
      value += kRowsAtOnce * part.value_stride;
    }
  }
}

}  // namespace terrace

#endif  // TERRACE_RUNTIME_CUDA_TILE_KERNELS_H_
