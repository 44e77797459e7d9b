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
using Floats = hn::Vec<FloatTag>;

constexpr size_t kRowTile = 4;  // query rows that share one load of a vector

Floats LoadFloats(const hwy::float16_t* at) {
  return hn::PromoteTo(FloatTag(), hn::LoadU(hn::Rebind<hwy::float16_t, FloatTag>(), at));
}
Floats LoadFloats(const int8_t* at) {
  const hn::Rebind<int32_t, FloatTag> integers;
  return hn::ConvertTo(FloatTag(),
                       hn::PromoteTo(integers, hn::LoadU(hn::Rebind<int8_t, FloatTag>(), at)));
}

// Of one group; lanes are vectors.
template <size_t kRows, typename T>
void GroupTile(const float* HWY_RESTRICT queries, size_t dimensions, const T* HWY_RESTRICT group,
               const T* next, const float* scales, float* HWY_RESTRICT best) {
  constexpr size_t kDimensionsPerLine = 64 / (kVectorGroup * sizeof(T));
  const FloatTag floats;
  const size_t lanes = hn::Lanes(floats);
  for (size_t lane = 0; lane < kVectorGroup; lane += lanes) {
    // Two sums a row hide the latency of the multiply-add.
    Floats even[kRows];
    Floats odd[kRows];
    for (size_t r = 0; r < kRows; ++r) even[r] = odd[r] = hn::Zero(floats);
    for (size_t i = 0; i < dimensions; i += 2) {
      // Summaries of blocks lie apart, where the processor does not see them coming.
      if (i % kDimensionsPerLine == 0) hwy::Prefetch(next + i * kVectorGroup);
      const T* const at = group + i * kVectorGroup + lane;
      const Floats first = LoadFloats(at);
      const Floats second = LoadFloats(at + kVectorGroup);
      for (size_t r = 0; r < kRows; ++r) {
        const float* const query = queries + r * dimensions + i;
        even[r] = hn::MulAdd(first, hn::Set(floats, query[0]), even[r]);
        odd[r] = hn::MulAdd(second, hn::Set(floats, query[1]), odd[r]);
      }
    }
    const Floats scale =
        scales == nullptr ? hn::Set(floats, 1.0f) : hn::LoadU(floats, scales + lane);
    for (size_t r = 0; r < kRows; ++r) {
      const Floats most = hn::MaxOfLanes(floats, hn::Mul(hn::Add(even[r], odd[r]), scale));
      best[r] = std::max(best[r], hn::GetLane(most));
    }
  }
}

// Of one vector by itself.
template <typename T>
void AddVector(const SummaryQueries& queries, const T* HWY_RESTRICT vector, float scale,
               float* HWY_RESTRICT best) {
  const FloatTag floats;
  for (size_t row = 0; row < queries.rows; ++row) {
    const float* const query = queries.queries + row * queries.dimensions;
    Floats sum = hn::Zero(floats);
    for (size_t i = 0; i < queries.dimensions; i += hn::Lanes(floats)) {
      sum = hn::MulAdd(LoadFloats(vector + i), hn::LoadU(floats, query + i), sum);
    }
    best[row] = std::max(best[row], scale * hn::GetLane(hn::SumOfLanes(floats, sum)));
  }
}

template <typename T>
void BestProducts(const SummaryQueries& queries, const T* vectors, const float* scales,
                  size_t count, const T* next, float* best) {
  const size_t dimensions = queries.dimensions;
  std::fill(best, best + queries.rows, -std::numeric_limits<float>::infinity());
  for (; count >= kVectorGroup; count -= kVectorGroup) {
    size_t row = 0;
    for (; row + kRowTile <= queries.rows; row += kRowTile) {
      GroupTile<kRowTile>(queries.queries + row * dimensions, dimensions, vectors, next, scales,
                          best + row);
    }
    for (; row < queries.rows; ++row) {
      GroupTile<1>(queries.queries + row * dimensions, dimensions, vectors, next, scales,
                   best + row);
    }
    vectors += kVectorGroup * dimensions;
    next += kVectorGroup * dimensions;
    if (scales != nullptr) scales += kVectorGroup;
  }
  for (; count > 0; --count) {
    AddVector(queries, vectors, scales == nullptr ? 1.0f : *scales++, best);
    vectors += dimensions;
  }
}

void BestHalfProducts(const SummaryQueries& queries, const uint16_t* vectors, size_t count,
                      const uint16_t* next, float* best) {
  BestProducts(queries, reinterpret_cast<const hwy::float16_t*>(vectors), nullptr, count,
               reinterpret_cast<const hwy::float16_t*>(next), best);
}

void BestByteProducts(const SummaryQueries& queries, const int8_t* vectors, const float* scales,
                      size_t count, const int8_t* next, float* best) {
  BestProducts(queries, vectors, scales, count, next, best);
}

}  // namespace HWY_NAMESPACE
}  // namespace terrace
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace terrace {

HWY_EXPORT(BestHalfProducts);
HWY_EXPORT(BestByteProducts);

void BestHalfProducts(const SummaryQueries& queries, const uint16_t* vectors, size_t count,
                      const uint16_t* next, float* best) {
  HWY_DYNAMIC_DISPATCH(BestHalfProducts)(queries, vectors, count, next, best);
}

void BestByteProducts(const SummaryQueries& queries, const int8_t* vectors, const float* scales,
                      size_t count, const int8_t* next, float* best) {
  HWY_DYNAMIC_DISPATCH(BestByteProducts)(queries, vectors, scales, count, next, best);
}

}  // namespace terrace
#endif  // HWY_ONCE
