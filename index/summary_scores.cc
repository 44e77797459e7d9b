#include "index/summary_scores.h"

#include <algorithm>
#include <limits>

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "index/summary_scores.cc"
#include "hwy/foreach_target.h"  // IWYU pragma: keep
#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace terrace {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

// Eight lanes at most: half a register of fp16 becomes a whole one of fp32.
using FloatTag = hn::CappedTag<float, 8>;
using HalfTag = hn::Rebind<hwy::float16_t, FloatTag>;
using Floats = hn::Vec<FloatTag>;

constexpr size_t kRowTile = 4;  // query rows that share one load of a vector

template <size_t kRows>
void InnerProductTile(const float* HWY_RESTRICT queries, size_t head_dim,
                      const hwy::float16_t* HWY_RESTRICT vectors, size_t count,
                      float* HWY_RESTRICT best) {
  const FloatTag floats;
  const HalfTag halves;
  const size_t lanes = hn::Lanes(floats);
  for (size_t v = 0; v < count; ++v, vectors += head_dim) {
    Floats even[kRows];
    Floats odd[kRows];
    for (size_t r = 0; r < kRows; ++r) even[r] = odd[r] = hn::Zero(floats);
    // Two sums a row hide the latency of the multiply-add; head_dim is a multiple of 8, and of two
    // registers in all but the smallest heads.
    size_t i = 0;
    for (; i + 2 * lanes <= head_dim; i += 2 * lanes) {
      const Floats first = hn::PromoteTo(floats, hn::LoadU(halves, vectors + i));
      const Floats second = hn::PromoteTo(floats, hn::LoadU(halves, vectors + i + lanes));
      for (size_t r = 0; r < kRows; ++r) {
        const float* query = queries + r * head_dim + i;
        even[r] = hn::MulAdd(first, hn::LoadU(floats, query), even[r]);
        odd[r] = hn::MulAdd(second, hn::LoadU(floats, query + lanes), odd[r]);
      }
    }
    for (; i < head_dim; i += lanes) {
      const Floats rest = hn::PromoteTo(floats, hn::LoadU(halves, vectors + i));
      for (size_t r = 0; r < kRows; ++r) {
        even[r] = hn::MulAdd(rest, hn::LoadU(floats, queries + r * head_dim + i), even[r]);
      }
    }
    for (size_t r = 0; r < kRows; ++r) {
      const float sum = hn::GetLane(hn::SumOfLanes(floats, hn::Add(even[r], odd[r])));
      best[r] = std::max(best[r], sum);
    }
  }
}

template <size_t kRows>
void BoxBoundTile(const float* HWY_RESTRICT queries, size_t head_dim,
                  const hwy::float16_t* HWY_RESTRICT boxes, size_t count,
                  float* HWY_RESTRICT best) {
  const FloatTag floats;
  const HalfTag halves;
  const size_t lanes = hn::Lanes(floats);
  for (size_t b = 0; b < count; ++b, boxes += 2 * head_dim) {
    Floats sums[kRows];
    for (size_t r = 0; r < kRows; ++r) sums[r] = hn::Zero(floats);
    for (size_t i = 0; i < head_dim; i += lanes) {
      const Floats smallest = hn::PromoteTo(floats, hn::LoadU(halves, boxes + i));
      const Floats largest = hn::PromoteTo(floats, hn::LoadU(halves, boxes + head_dim + i));
      for (size_t r = 0; r < kRows; ++r) {
        const Floats query = hn::LoadU(floats, queries + r * head_dim + i);
        sums[r] = hn::Add(sums[r], hn::Max(hn::Mul(query, smallest), hn::Mul(query, largest)));
      }
    }
    for (size_t r = 0; r < kRows; ++r) {
      best[r] = std::max(best[r], hn::GetLane(hn::SumOfLanes(floats, sums[r])));
    }
  }
}

// Calls Tile::Run<rows>(first row) for all rows, as many at a time as a tile has.
template <typename Tile>
void ForRowTiles(size_t rows, Tile tile) {
  size_t row = 0;
  for (; row + kRowTile <= rows; row += kRowTile) tile.template operator()<kRowTile>(row);
  switch (rows - row) {
    case 3:
      return tile.template operator()<3>(row);
    case 2:
      return tile.template operator()<2>(row);
    case 1:
      return tile.template operator()<1>(row);
    default:
      return;
  }
}

void BestInnerProducts(const float* queries, size_t rows, size_t head_dim, const uint16_t* vectors,
                       size_t count, float* best) {
  const auto* halves = reinterpret_cast<const hwy::float16_t*>(vectors);
  std::fill(best, best + rows, -std::numeric_limits<float>::infinity());
  ForRowTiles(rows, [&]<size_t kRows>(size_t row) {
    InnerProductTile<kRows>(queries + row * head_dim, head_dim, halves, count, best + row);
  });
}

void BestBoxBounds(const float* queries, size_t rows, size_t head_dim, const uint16_t* boxes,
                   size_t count, float* best) {
  const auto* halves = reinterpret_cast<const hwy::float16_t*>(boxes);
  std::fill(best, best + rows, -std::numeric_limits<float>::infinity());
  ForRowTiles(rows, [&]<size_t kRows>(size_t row) {
    BoxBoundTile<kRows>(queries + row * head_dim, head_dim, halves, count, best + row);
  });
}

}  // namespace HWY_NAMESPACE
}  // namespace terrace
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace terrace {

HWY_EXPORT(BestInnerProducts);
HWY_EXPORT(BestBoxBounds);

void BestInnerProducts(const float* queries, size_t rows, size_t head_dim, const uint16_t* vectors,
                       size_t count, float* best) {
  HWY_DYNAMIC_DISPATCH(BestInnerProducts)(queries, rows, head_dim, vectors, count, best);
}

void BestBoxBounds(const float* queries, size_t rows, size_t head_dim, const uint16_t* boxes,
                   size_t count, float* best) {
  HWY_DYNAMIC_DISPATCH(BestBoxBounds)(queries, rows, head_dim, boxes, count, best);
}

}  // namespace terrace
#endif  // HWY_ONCE
