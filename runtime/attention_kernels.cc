#include <algorithm>
#include <cstddef>
#include <limits>

#include "absl/types/span.h"
#include "runtime/attention_kernels.h"

// Arrays of vectors need vectors of a size that the compiler knows.
#define HWY_DISABLED_TARGETS (HWY_SVE | HWY_SVE2 | HWY_SVE_256 | HWY_SVE2_128 | HWY_RVV)

// Highway compiles this file once for each instruction set, then again for what follows HWY_ONCE.
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "runtime/attention_kernels.cc"
#include "hwy/foreach_target.h"
#include "hwy/highway.h"
// After foreach_target.h, which includes it for each target.
#include "hwy/contrib/math/math-inl.h"

HWY_BEFORE_NAMESPACE();
namespace terrace {
namespace HWY_NAMESPACE {
namespace {

#include "runtime/attention_scores.inc"

// ---- Values times weights.

// kVectors vectors of `out` of the first kRows rows become out * scale + sum of weight * value.
template <size_t kRows, size_t kVectors, typename T>
HWY_INLINE void AddColumns(const KvRun& tile, size_t column, const float* weights,
                           const float* scale, size_t head_dim, LinesAhead& ahead, float* out) {
  constexpr size_t kStepBytes = kVectors * hn::MaxLanes(Floats()) * sizeof(T);
  const size_t lanes = hn::Lanes(kFloats);
  FloatVector sums[kRows][kVectors];
  for (size_t row = 0; row < kRows; ++row) {
    for (size_t v = 0; v < kVectors; ++v) sums[row][v] = hn::Zero(kFloats);
  }
  for (size_t token = 0; token < tile.tokens; ++token) {
    ahead.Advance<kStepBytes>(token);
    const T* values = Row<T>(tile.values, token, tile.value_stride) + column;
    FloatVector elements[kVectors];
    for (size_t v = 0; v < kVectors; ++v) elements[v] = LoadElements(values + v * lanes);
    for (size_t row = 0; row < kRows; ++row) {
      const auto weight = hn::Set(kFloats, weights[token * kBlock + row]);
      for (size_t v = 0; v < kVectors; ++v) {
        sums[row][v] = hn::MulAdd(elements[v], weight, sums[row][v]);
      }
    }
  }
  for (size_t row = 0; row < kRows; ++row) {
    const auto factor = hn::Set(kFloats, scale[row]);
    for (size_t v = 0; v < kVectors; ++v) {
      float* to = out + row * head_dim + column + v * lanes;
      hn::Store(hn::MulAdd(hn::Load(kFloats, to), factor, sums[row][v]), kFloats, to);
    }
  }
}

template <size_t kRows, typename T>
HWY_NOINLINE void AddValues(const KvRun& tile, const float* weights, const float* scale,
                            size_t head_dim, LinesAhead ahead, float* out) {
  constexpr size_t kVectors = kRows == 1 ? 4 : 2;
  const size_t step = kVectors * hn::Lanes(kFloats);
  size_t column = 0;
  for (; column + step <= head_dim; column += step) {
    AddColumns<kRows, kVectors, T>(tile, column, weights, scale, head_dim, ahead, out);
  }
  for (; column < head_dim; column += hn::Lanes(kFloats)) {
    AddColumns<kRows, 1, T>(tile, column, weights, scale, head_dim, ahead, out);
  }
}

// ---- The softmax of a tile.

// to[row] = max(to[row], the lanes of that row).
void MaxByRow(FloatVector lanes, float* to) {
  HWY_ALIGN float parts[hn::MaxLanes(Floats())];
  hn::Store(lanes, kFloats, parts);
  const RowTag rows;
  for (size_t i = 0; i < hn::Lanes(kFloats); i += hn::Lanes(rows)) {
    hn::StoreU(hn::Max(hn::LoadU(rows, to), hn::Load(rows, parts + i)), rows, to);
  }
}

// to[row] += the lanes of that row.
void AddByRow(FloatVector lanes, float* to) {
  HWY_ALIGN float parts[hn::MaxLanes(Floats())];
  hn::Store(lanes, kFloats, parts);
  const RowTag rows;
  for (size_t i = 0; i < hn::Lanes(kFloats); i += hn::Lanes(rows)) {
    hn::StoreU(hn::Add(hn::LoadU(rows, to), hn::Load(rows, parts + i)), rows, to);
  }
}

// Turns scores into weights, exp(score - max), and brings the maxima and sums of a block, [kBlock],
// up to date. `scale`, [kBlock], is what older sums of weighted values have to be multiplied by.
void WeighTile(size_t tokens, float* max, float* sum, float* scale, float* scores) {
  const RowTag rows;
  const size_t end = tokens * kBlock;
  for (size_t row = 0; row < kBlock; row += hn::Lanes(kFloats)) {
    const auto old_max = hn::LoadU(rows, max + row);
    auto largest = hn::LoadDup128(kFloats, max + row);
    for (size_t i = row; i < end; i += Step()) {
      largest = hn::Max(largest, hn::Load(kFloats, scores + i));
    }
    MaxByRow(largest, max + row);
    // Where a row has seen nothing, minus infinity shall stay what it is.
    const float lowest = std::numeric_limits<float>::lowest();
    const auto shift = hn::Max(hn::LoadDup128(kFloats, max + row), hn::Set(kFloats, lowest));
    auto total = hn::Zero(kFloats);
    for (size_t i = row; i < end; i += Step()) {
      const auto weight = hn::Exp(kFloats, hn::Sub(hn::Load(kFloats, scores + i), shift));
      hn::Store(weight, kFloats, scores + i);
      total = hn::Add(total, weight);
    }
    const auto row_shift = hn::Max(hn::LoadU(rows, max + row), hn::Set(rows, lowest));
    const auto factor = hn::Exp(rows, hn::Sub(old_max, row_shift));
    hn::StoreU(factor, rows, scale + row);
    hn::StoreU(hn::Mul(hn::LoadU(rows, sum + row), factor), rows, sum + row);
    AddByRow(total, sum + row);
  }
}

// ---- Runs.

// Adds a tile, whose elements are T, to all blocks of rows. `ahead` is the tile after it.
template <typename T>
void AttendTile(const AttentionRows& rows, const KvRun& tile, const KvRun& ahead, size_t first,
                const Visibility& visible, const SoftmaxState& state) {
  HWY_ALIGN TileScores scores;
  HWY_ALIGN float scale[kBlock];
  for (size_t block = 0; block < CountBlocks(rows); ++block) {
    const BlockView view = ViewOf(rows, block, visible, first, tile.tokens);
    if (view.tokens == 0) continue;
    const KvRun seen = tile.Slice(0, view.tokens);
    // The first block's work asks for the tile ahead.
    const LinesAhead keys_ahead =
        block == 0 ? LinesAhead::Keys(ahead, rows.head_dim) : LinesAhead();
    const LinesAhead values_ahead =
        block == 0 ? LinesAhead::Values(ahead, rows.head_dim) : LinesAhead();
    ScoreBlock<T>(rows, block, seen, view, keys_ahead, scores);
    const size_t row = block * kBlock;
    WeighTile(seen.tokens, state.max + row, state.sum + row, scale, scores);
    float* out = state.out + row * rows.head_dim;
    const size_t left = rows.rows - row;
    if (left == 1) {
      AddValues<1, T>(seen, scores, scale, rows.head_dim, values_ahead, out);
    } else if (left == 2) {
      AddValues<2, T>(seen, scores, scale, rows.head_dim, values_ahead, out);
    } else {
      AddValues<kBlock, T>(seen, scores, scale, rows.head_dim, values_ahead, out);
    }
  }
}

template <typename T>
void AttendTiles(const AttentionRows& rows, const KvRun& run, const Visibility& visible,
                 const KvRun& next, const SoftmaxState& state, float* scratch) {
  const bool decode = sizeof(T) < sizeof(float) && CountBlocks(rows) > kBlocksWithoutDecoding;
  const size_t seen = SeenTokens(rows, run, visible);
  for (size_t first = 0; first < seen; first += kTileTokens) {
    const KvRun tile = run.Slice(first, std::min(kTileTokens, seen - first));
    const size_t end = first + tile.tokens;
    const KvRun ahead = end < seen ? run.Slice(end, std::min(kTileTokens, seen - end))
                                   : next.Slice(0, std::min(kTileTokens, next.tokens));
    if (decode) {
      const KvRun decoded = DecodedTile<T>(tile, rows.head_dim, /*with_values=*/true, scratch);
      AttendTile<float>(rows, decoded, ahead, first, visible, state);
    } else {
      AttendTile<T>(rows, tile, ahead, first, visible, state);
    }
  }
}

void Attend(const AttentionRows& rows, const KvRun& run, const Visibility& visible,
            const KvRun& next, const SoftmaxState& state, float* scratch) {
  switch (run.dtype) {
    case KvDtype::kFloat32:
      return AttendTiles<float>(rows, run, visible, next, state, scratch);
    case KvDtype::kFloat16:
      return AttendTiles<float16_t>(rows, run, visible, next, state, scratch);
    case KvDtype::kBfloat16:
      return AttendTiles<bfloat16_t>(rows, run, visible, next, state, scratch);
  }
}

}  // namespace
}  // namespace HWY_NAMESPACE
}  // namespace terrace
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace terrace {
namespace {

HWY_EXPORT(Attend);

}  // namespace

void AttendRun(const AttentionRows& rows, const KvRun& run, const Visibility& visible,
               const KvRun& next, const SoftmaxState& state, float* scratch) {
  HWY_DYNAMIC_DISPATCH(Attend)(rows, run, visible, next, state, scratch);
}

}  // namespace terrace
#endif  // HWY_ONCE
