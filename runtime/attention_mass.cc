#include <algorithm>
#include <cstddef>
#include <limits>

#include "absl/types/span.h"
#include "runtime/attention_kernels.h"

// Arrays of vectors need vectors of a size that the compiler knows.
#define HWY_DISABLED_TARGETS (HWY_SVE | HWY_SVE2 | HWY_SVE_256 | HWY_SVE2_128 | HWY_RVV)

// Highway compiles this file once for each instruction set, then again for what follows HWY_ONCE.
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "runtime/attention_mass.cc"
#include "hwy/foreach_target.h"
#include "hwy/highway.h"
// After foreach_target.h, which includes it for each target.
#include "hwy/contrib/math/math-inl.h"

HWY_BEFORE_NAMESPACE();
namespace terrace {
namespace HWY_NAMESPACE {
namespace {

#include "runtime/attention_scores.inc"

// weights[i] += exp(score - lse of its row).
void AddMass(size_t tokens, const float* lse, const float* scores, float* mass) {
  for (size_t row = 0; row < kBlock; row += hn::Lanes(kFloats)) {
    const auto shift = hn::LoadDup128(kFloats, lse + row);
    for (size_t i = row; i < tokens * kBlock; i += Step()) {
      const auto weight = hn::Exp(kFloats, hn::Sub(hn::Load(kFloats, scores + i), shift));
      hn::Store(hn::Add(hn::Load(kFloats, mass + i), weight), kFloats, mass + i);
    }
  }
}

// Adds the mass of a tile from all blocks of rows.
template <typename T>
void AddTileMass(const AttentionRows& rows, const KvRun& tile, const KvRun& ahead, size_t first,
                 const Visibility& visible, absl::Span<const float> lse, float* mass) {
  HWY_ALIGN TileScores scores;
  HWY_ALIGN TileScores masses = {};
  for (size_t block = 0; block < CountBlocks(rows); ++block) {
    const BlockView view = ViewOf(rows, block, visible, first, tile.tokens);
    if (view.tokens == 0) continue;
    const KvRun seen = tile.Slice(0, view.tokens);
    // The first block's work asks for the tile ahead.
    const LinesAhead keys_ahead =
        block == 0 ? LinesAhead::Keys(ahead, rows.head_dim) : LinesAhead();
    ScoreBlock<T>(rows, block, seen, view, keys_ahead, scores);
    // Minus infinity belongs to a row without tokens; padding is another.
    HWY_ALIGN float shift[kBlock];
    for (size_t i = 0; i < kBlock; ++i) {
      const size_t row = block * kBlock + i;
      const bool empty = row >= rows.rows || lse[row] == kMinusInfinity;
      shift[i] = empty ? -kMinusInfinity : lse[row];
    }
    AddMass(seen.tokens, shift, scores, masses);
  }
  for (size_t token = 0; token < tile.tokens; ++token) {
    for (size_t row = 0; row < kBlock; ++row) mass[token] += masses[token * kBlock + row];
  }
}

template <typename T>
void AddMassOfTiles(const AttentionRows& rows, const KvRun& run, const Visibility& visible,
                    absl::Span<const float> lse, float* mass, float* scratch) {
  const bool decode = sizeof(T) < sizeof(float) && CountBlocks(rows) > kBlocksWithoutDecoding;
  const size_t seen = SeenTokens(rows, run, visible);
  for (size_t first = 0; first < seen; first += kTileTokens) {
    const KvRun tile = run.Slice(first, std::min(kTileTokens, seen - first));
    const size_t end = first + tile.tokens;
    const KvRun ahead = run.Slice(end, std::min(kTileTokens, seen - end));
    if (decode) {
      const KvRun decoded = DecodedTile<T>(tile, rows.head_dim, /*with_values=*/false, scratch);
      AddTileMass<float>(rows, decoded, ahead, first, visible, lse, mass + first);
    } else {
      AddTileMass<T>(rows, tile, ahead, first, visible, lse, mass + first);
    }
  }
}

void Mass(const AttentionRows& rows, const KvRun& run, const Visibility& visible,
          absl::Span<const float> lse, float* mass, float* scratch) {
  switch (run.dtype) {
    case KvDtype::kFloat32:
      return AddMassOfTiles<float>(rows, run, visible, lse, mass, scratch);
    case KvDtype::kFloat16:
      return AddMassOfTiles<float16_t>(rows, run, visible, lse, mass, scratch);
    case KvDtype::kBfloat16:
      return AddMassOfTiles<bfloat16_t>(rows, run, visible, lse, mass, scratch);
  }
}

}  // namespace
}  // namespace HWY_NAMESPACE
}  // namespace terrace
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace terrace {
namespace {

HWY_EXPORT(Mass);

}  // namespace

void AddRunColumnMass(const AttentionRows& rows, const KvRun& run, const Visibility& visible,
                      absl::Span<const float> lse, absl::Span<float> mass, float* scratch) {
  HWY_DYNAMIC_DISPATCH(Mass)(rows, run, visible, lse, mass.data(), scratch);
}

}  // namespace terrace
#endif  // HWY_ONCE
