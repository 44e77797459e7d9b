#include "index/summary_scores.h"

#include <algorithm>
#include <limits>

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "index/summary_scores.cc"
#include "hwy/cache_control.h"
#include "hwy/foreach_target.h"  // IWYU pragma: keep
#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace terrace {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

// Eight lanes at most: half a register of fp16 becomes a whole one of fp32.
using FloatTag = hn::CappedTag<float, kVectorGroup>;
using HalfTag = hn::Rebind<hwy::float16_t, FloatTag>;
using Floats = hn::Vec<FloatTag>;

constexpr size_t kRowTile = 4;  // query rows that share one load of a vector
constexpr size_t kDimensionsPerLine = 64 / (kVectorGroup * sizeof(uint16_t));

// Of one group; lanes are vectors.
template <size_t kRows>
void GroupTile(const float* HWY_RESTRICT queries, size_t dimensions,
               const hwy::float16_t* HWY_RESTRICT group, const hwy::float16_t* next,
               float* HWY_RESTRICT best) {
  const FloatTag floats;
  const HalfTag halves;
  const size_t lanes = hn::Lanes(floats);
  for (size_t lane = 0; lane < kVectorGroup; lane += lanes) {
    // Two sums a row hide the latency of the multiply-add.
    Floats even[kRows];
    Floats odd[kRows];
    for (size_t r = 0; r < kRows; ++r) even[r] = odd[r] = hn::Zero(floats);
    for (size_t i = 0; i < dimensions; i += 2) {
      const hwy::float16_t* const at = group + i * kVectorGroup + lane;
      // Summaries of blocks lie apart, where the processor does not see them coming.
      if (i % kDimensionsPerLine == 0) hwy::Prefetch(next + i * kVectorGroup);
      const Floats first = hn::PromoteTo(floats, hn::LoadU(halves, at));
      const Floats second = hn::PromoteTo(floats, hn::LoadU(halves, at + kVectorGroup));
      for (size_t r = 0; r < kRows; ++r) {
        const float* const query = queries + r * dimensions + i;
        even[r] = hn::MulAdd(first, hn::Set(floats, query[0]), even[r]);
        odd[r] = hn::MulAdd(second, hn::Set(floats, query[1]), odd[r]);
      }
    }
    for (size_t r = 0; r < kRows; ++r) {
      const Floats most = hn::MaxOfLanes(floats, hn::Add(even[r], odd[r]));
      best[r] = std::max(best[r], hn::GetLane(most));
    }
  }
}

// Of one vector by itself.
void AddVector(const float* HWY_RESTRICT queries, size_t rows, size_t dimensions,
               const hwy::float16_t* HWY_RESTRICT vector, float* HWY_RESTRICT best) {
  const FloatTag floats;
  const HalfTag halves;
  for (size_t row = 0; row < rows; ++row) {
    Floats sum = hn::Zero(floats);
    for (size_t i = 0; i < dimensions; i += hn::Lanes(floats)) {
      sum = hn::MulAdd(hn::PromoteTo(floats, hn::LoadU(halves, vector + i)),
                       hn::LoadU(floats, queries + row * dimensions + i), sum);
    }
    best[row] = std::max(best[row], hn::GetLane(hn::SumOfLanes(floats, sum)));
  }
}

void BestInnerProducts(const float* queries, size_t rows, size_t dimensions,
                       const uint16_t* vectors, size_t count, const uint16_t* next, float* best) {
  const auto* at = reinterpret_cast<const hwy::float16_t*>(vectors);
  const auto* ahead = reinterpret_cast<const hwy::float16_t*>(next);
  std::fill(best, best + rows, -std::numeric_limits<float>::infinity());
  for (; count >= kVectorGroup; count -= kVectorGroup) {
    size_t row = 0;
    for (; row + kRowTile <= rows; row += kRowTile) {
      GroupTile<kRowTile>(queries + row * dimensions, dimensions, at, ahead, best + row);
    }
    for (; row < rows; ++row) {
      GroupTile<1>(queries + row * dimensions, dimensions, at, ahead, best + row);
    }
    at += kVectorGroup * dimensions;
    ahead += kVectorGroup * dimensions;
  }
  for (; count > 0; --count) {
    AddVector(queries, rows, dimensions, at, best);
    at += dimensions;
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace terrace
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace terrace {

HWY_EXPORT(BestInnerProducts);

void BestInnerProducts(const float* queries, size_t rows, size_t dimensions,
                       const uint16_t* vectors, size_t count, const uint16_t* next, float* best) {
  HWY_DYNAMIC_DISPATCH(BestInnerProducts)(queries, rows, dimensions, vectors, count, next, best);
}

}  // namespace terrace
#endif  // HWY_ONCE
