#include "index/summary_scores.h"

#include <algorithm>
#include <cmath>
#include <limits>

// Arrays of vectors need vectors of a size that the compiler knows.
#define HWY_DISABLED_TARGETS (HWY_SVE | HWY_SVE2 | HWY_SVE_256 | HWY_SVE2_128 | HWY_RVV)

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "index/summary_scores.cc"
#include "hwy/cache_control.h"
#include "hwy/foreach_target.h"  // IWYU pragma: keep
#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace terrace {
namespace HWY_NAMESPACE {
namespace {
namespace hn = hwy::HWY_NAMESPACE;

#if HWY_TARGET == HWY_SCALAR

int32_t Product(const int16_t* HWY_RESTRICT query, size_t dimensions,
                const int8_t* HWY_RESTRICT vector) {
  int32_t sum = 0;
  for (size_t i = 0; i < dimensions; ++i) sum += int32_t{query[i]} * vector[i];
  return sum;
}

#else

// 16 lanes at most, which is what dimensions are padded to.
using ShortTag = hn::CappedTag<int16_t, 16>;
using IntTag = hn::RepartitionToWide<ShortTag>;
using ByteTag = hn::Rebind<int8_t, ShortTag>;
using FourInts = hn::CappedTag<int32_t, 4>;
using FourFloats = hn::CappedTag<float, 4>;
using Ints = hn::Vec<IntTag>;

constexpr size_t kRowTile = 4;  // query rows that share one load of a vector
constexpr size_t kLineBytes = 64;

// The sum of the halves of eight lanes; four lanes as they are.
template <class Tag>
hn::Vec<FourInts> FoldToFour(Tag /*tag*/, hn::Vec<Tag> lanes) {
  if constexpr (hn::MaxLanes(Tag()) > kRowTile) {
    const hn::Half<Tag> half;
    return hn::Add(hn::LowerHalf(half, lanes), hn::UpperHalf(half, lanes));
  } else {
    return lanes;
  }
}

// Lane i is the sum over the lanes of sums[i].
hn::Vec<FourInts> SumEach(const Ints (&sums)[kRowTile]) {
  const IntTag ints;
  const hn::RepartitionToWide<IntTag> pairs;
  const auto fold = [&](Ints a, Ints b) HWY_ATTR {
    return hn::BitCast(pairs,
                       hn::Add(hn::InterleaveLower(ints, a, b), hn::InterleaveUpper(ints, a, b)));
  };
  const auto first = fold(sums[0], sums[1]);
  const auto second = fold(sums[2], sums[3]);
  return FoldToFour(ints, hn::Add(hn::BitCast(ints, hn::InterleaveLower(pairs, first, second)),
                                  hn::BitCast(ints, hn::InterleaveUpper(pairs, first, second))));
}

// Lane r is the inner product of row r and a vector, in integers.
hn::Vec<FourInts> SumsOfTile(const int16_t* HWY_RESTRICT queries, size_t dimensions,
                             const int8_t* HWY_RESTRICT vector) {
  const ShortTag shorts;
  const IntTag ints;
  Ints sums[kRowTile];
  Ints rest[kRowTile];  // some targets split a sum in two
  for (size_t r = 0; r < kRowTile; ++r) sums[r] = rest[r] = hn::Zero(ints);
  for (size_t i = 0; i < dimensions; i += hn::Lanes(shorts)) {
    const auto elements = hn::PromoteTo(shorts, hn::LoadU(ByteTag(), vector + i));
    for (size_t r = 0; r < kRowTile; ++r) {
      const auto query = hn::LoadU(shorts, queries + r * dimensions + i);
      sums[r] = hn::ReorderWidenMulAccumulate(ints, elements, query, sums[r], rest[r]);
    }
  }
  for (size_t r = 0; r < kRowTile; ++r) sums[r] = hn::Add(sums[r], rest[r]);
  return SumEach(sums);
}

// Of kRowTile rows; `next` is where the vectors of the next summary begin, or null.
void ScoreTile(const int16_t* HWY_RESTRICT queries, const float* row_scales, size_t dimensions,
               const int8_t* HWY_RESTRICT vectors, const float* scales, size_t count,
               const int8_t* next, float* HWY_RESTRICT best) {
  const FourFloats floats;
  auto most = hn::Set(floats, -std::numeric_limits<float>::infinity());
  for (size_t vector = 0; vector < count; ++vector) {
    const int8_t* const at = vectors + vector * dimensions;
    // Summaries of blocks lie apart, where the processor does not see them coming.
    if (next != nullptr) {
      for (size_t i = 0; i < dimensions; i += kLineBytes) {
        hwy::Prefetch(next + vector * dimensions + i);
      }
    }
    const auto sums = SumsOfTile(queries, dimensions, at);
    most = hn::Max(most, hn::Mul(hn::ConvertTo(floats, sums), hn::Set(floats, scales[vector])));
  }
  hn::StoreU(hn::Mul(most, hn::LoadU(floats, row_scales)), floats, best);
}

// Writes the scores of kRowTile rows, `stride` apart.
void ScoreTileEach(const int16_t* HWY_RESTRICT queries, const float* row_scales, size_t dimensions,
                   const int8_t* HWY_RESTRICT vectors, const float* HWY_RESTRICT scales,
                   size_t count, size_t stride, float* HWY_RESTRICT scores) {
  const FourFloats floats;
  const auto by_row = hn::LoadU(floats, row_scales);
  HWY_ALIGN float block[4 * kRowTile];  // [4 vectors, kRowTile]
  for (size_t vector = 0; vector < count; vector += 4) {
    const size_t some = std::min<size_t>(4, count - vector);
    for (size_t i = 0; i < some; ++i) {
      const auto sums = SumsOfTile(queries, dimensions, vectors + (vector + i) * dimensions);
      hn::Store(hn::Mul(hn::Mul(hn::ConvertTo(floats, sums), by_row),
                        hn::Set(floats, scales[vector + i])),
                floats, block + i * kRowTile);
    }
    for (size_t r = 0; r < kRowTile; ++r) {
      for (size_t i = 0; i < some; ++i) {
        scores[r * stride + vector + i] = block[i * kRowTile + r];
      }
    }
  }
}

int32_t Product(const int16_t* HWY_RESTRICT query, size_t dimensions,
                const int8_t* HWY_RESTRICT vector) {
  const ShortTag shorts;
  const IntTag ints;
  Ints sum = hn::Zero(ints);
  Ints rest = hn::Zero(ints);
  for (size_t i = 0; i < dimensions; i += hn::Lanes(shorts)) {
    const auto elements = hn::PromoteTo(shorts, hn::LoadU(ByteTag(), vector + i));
    sum = hn::ReorderWidenMulAccumulate(ints, elements, hn::LoadU(shorts, query + i), sum, rest);
  }
  return hn::GetLane(hn::SumOfLanes(ints, hn::Add(sum, rest)));
}

#endif  // HWY_TARGET == HWY_SCALAR

// Of one row.
float ScoreRow(const int16_t* query, size_t dimensions, const int8_t* vectors, const float* scales,
               size_t count) {
  float most = -std::numeric_limits<float>::infinity();
  for (size_t vector = 0; vector < count; ++vector) {
    const int32_t product = Product(query, dimensions, vectors + vector * dimensions);
    most = std::max(most, static_cast<float>(product) * scales[vector]);
  }
  return most;
}

void ScoreVectors(const int16_t* queries, const float* row_scales, size_t rows, size_t dimensions,
                  const int8_t* vectors, const float* scales, size_t count, size_t stride,
                  float* scores) {
  size_t row = 0;
#if HWY_TARGET != HWY_SCALAR
  for (; row + kRowTile <= rows; row += kRowTile) {
    ScoreTileEach(queries + row * dimensions, row_scales + row, dimensions, vectors, scales, count,
                  stride, scores + row * stride);
  }
#endif
  for (; row < rows; ++row) {
    for (size_t vector = 0; vector < count; ++vector) {
      const int32_t product =
          Product(queries + row * dimensions, dimensions, vectors + vector * dimensions);
      scores[row * stride + vector] =
          static_cast<float>(product) * row_scales[row] * scales[vector];
    }
  }
}

void ScoreSummary(const int16_t* queries, const float* row_scales, size_t rows, size_t dimensions,
                  const int8_t* vectors, const float* scales, size_t count, const int8_t* next,
                  float* best) {
  size_t row = 0;
#if HWY_TARGET == HWY_SCALAR
  (void)next;
#else
  for (; row + kRowTile <= rows; row += kRowTile) {
    ScoreTile(queries + row * dimensions, row_scales + row, dimensions, vectors, scales, count,
              row == 0 ? next : nullptr, best + row);
  }
#endif
  for (; row < rows; ++row) {
    best[row] =
        row_scales[row] * ScoreRow(queries + row * dimensions, dimensions, vectors, scales, count);
  }
}

}  // namespace
}  // namespace HWY_NAMESPACE
}  // namespace terrace
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace terrace {
namespace {

HWY_EXPORT(ScoreSummary);
HWY_EXPORT(ScoreVectors);

constexpr float kByteSteps = std::numeric_limits<int8_t>::max();

float LargestMagnitude(absl::Span<const float> elements) {
  float largest = 0;
  for (const float element : elements) largest = std::max(largest, std::abs(element));
  return largest;
}

// The largest 16-bit element of which no sum over all dimensions overflows 32 bits.
float ShortSteps(size_t dimensions) {
  const size_t room = size_t{std::numeric_limits<int32_t>::max()} /
                      (static_cast<size_t>(kByteSteps) * std::max<size_t>(dimensions, 1));
  return static_cast<float>(std::min<size_t>(room, std::numeric_limits<int16_t>::max()));
}

}  // namespace

void SummaryLayout::Store(size_t vector, absl::Span<const float> elements, size_t up, size_t down,
                          std::byte* summary) const {
  const float scale = LargestMagnitude(elements) / kByteSteps;
  reinterpret_cast<float*>(summary + scales_at())[vector] = scale;
  auto* const out = reinterpret_cast<int8_t*>(summary) + vector * padded_dimensions();
  std::fill_n(out, padded_dimensions(), int8_t{0});
  if (scale == 0) return;
  for (size_t i = 0; i < elements.size(); ++i) {
    const float steps = elements[i] / scale;
    const float rounded = i < up          ? std::ceil(steps)
                          : i < up + down ? std::floor(steps)
                                          : std::nearbyint(steps);
    out[i] = static_cast<int8_t>(std::clamp(rounded, -kByteSteps, kByteSteps));
  }
}

SummaryQueries::SummaryQueries(const SummaryLayout& layout, absl::Span<const float> queries)
    : layout_(layout),
      queries_(queries.size() / layout.dimensions * layout.padded_dimensions(), int16_t{0}),
      scales_(queries.size() / layout.dimensions) {
  const float steps = ShortSteps(layout.padded_dimensions());
  for (size_t row = 0; row < rows(); ++row) {
    const absl::Span<const float> query =
        queries.subspan(row * layout.dimensions, layout.dimensions);
    const float scale = LargestMagnitude(query) / steps;
    scales_[row] = scale;
    if (scale == 0) continue;
    int16_t* const out = queries_.data() + row * layout.padded_dimensions();
    for (size_t i = 0; i < query.size(); ++i) {
      out[i] = static_cast<int16_t>(std::clamp(std::nearbyint(query[i] / scale), -steps, steps));
    }
  }
}

void SummaryQueries::Score(const std::byte* summary, const std::byte* next, float* best) const {
  HWY_DYNAMIC_DISPATCH(ScoreSummary)
  (queries_.data(), scales_.data(), rows(), layout_.padded_dimensions(), layout_.vectors(summary),
   layout_.scales(summary), layout_.count, layout_.vectors(next), best);
}

void SummaryQueries::ScoreEach(const SummaryLayout& layout, const std::byte* summary, size_t stride,
                               float* scores) const {
  HWY_DYNAMIC_DISPATCH(ScoreVectors)
  (queries_.data(), scales_.data(), rows(), layout.padded_dimensions(), layout.vectors(summary),
   layout.scales(summary), layout.count, stride, scores);
}

}  // namespace terrace
#endif  // HWY_ONCE
