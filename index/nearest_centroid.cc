#include "index/nearest_centroid.h"

#include <algorithm>
#include <limits>
#include <vector>

// Arrays of vectors need vectors of a size that the compiler knows.
#define HWY_DISABLED_TARGETS (HWY_SVE | HWY_SVE2 | HWY_SVE_256 | HWY_SVE2_128 | HWY_RVV)

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "index/nearest_centroid.cc"
#include "hwy/foreach_target.h"  // IWYU pragma: keep
#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace terrace {
namespace HWY_NAMESPACE {
namespace {
namespace hn = hwy::HWY_NAMESPACE;

using FloatTag = hn::CappedTag<float, 16>;
using IntTag = hn::RebindToSigned<FloatTag>;
using Floats = hn::Vec<FloatTag>;

constexpr size_t kLanes = hn::MaxLanes(FloatTag());
// What the registers hold: sums of so many points with two vectors of centroids each, for which an
// element of a point is read once.
constexpr size_t kPointTile = 6;
constexpr size_t kCentroidTile = 2 * kLanes;

// The best centroid that each lane has seen for a point.
struct Best {
  Floats score;
  hn::Vec<IntTag> centroid;
};

void Keep(Floats scores, size_t first_centroid, Best& best) {
  const IntTag ints;
  const auto better = hn::Gt(scores, best.score);
  best.score = hn::IfThenElse(better, scores, best.score);
  best.centroid =
      hn::IfThenElse(hn::RebindMask(ints, better),
                     hn::Iota(ints, static_cast<int32_t>(first_centroid)), best.centroid);
}

uint32_t Label(const Best& best) {
  HWY_ALIGN float scores[kLanes];
  HWY_ALIGN int32_t centroids[kLanes];
  hn::Store(best.score, FloatTag(), scores);
  hn::Store(best.centroid, IntTag(), centroids);
  size_t lane = 0;
  for (size_t i = 1; i < kLanes; ++i) {
    const bool first_of_equals = scores[i] == scores[lane] && centroids[i] < centroids[lane];
    if (scores[i] > scores[lane] || first_of_equals) lane = i;
  }
  return static_cast<uint32_t>(centroids[lane]);
}

// Centroids in tiles of kCentroidTile, element by element.
struct Packed {
  Packed(const float* centroids, const float* centroid_biases, size_t count, size_t dims)
      : tiles((count + kCentroidTile - 1) / kCentroidTile),
        dimensions(dims),
        elements(tiles * kCentroidTile * dims),
        // The places beyond the last centroid never win, not even against sums that overflowed.
        biases(tiles * kCentroidTile, -std::numeric_limits<float>::infinity()) {
    std::copy_n(centroid_biases, count, biases.data());
    for (size_t c = 0; c < count; ++c) {
      float* const out =
          elements.data() + c / kCentroidTile * dims * kCentroidTile + c % kCentroidTile;
      for (size_t d = 0; d < dims; ++d) out[d * kCentroidTile] = centroids[c * dims + d];
    }
  }

  const size_t tiles;
  const size_t dimensions;
  std::vector<float> elements;  // [tiles, dimensions, kCentroidTile]
  std::vector<float> biases;    // [tiles, kCentroidTile]
};

// The sums of kPoints points with one tile of centroids.
template <size_t kPoints>
void SumTile(const float* HWY_RESTRICT points, const Packed& packed, size_t tile,
             Floats (&low)[kPoints], Floats (&high)[kPoints]) {
  const FloatTag floats;
  const size_t dimensions = packed.dimensions;
  const float* const at = packed.elements.data() + tile * dimensions * kCentroidTile;
  const float* const biases = packed.biases.data() + tile * kCentroidTile;
  for (size_t p = 0; p < kPoints; ++p) {
    low[p] = hn::LoadU(floats, biases);
    high[p] = hn::LoadU(floats, biases + kLanes);
  }
  for (size_t d = 0; d < dimensions; ++d) {
    const auto first = hn::LoadU(floats, at + d * kCentroidTile);
    const auto second = hn::LoadU(floats, at + d * kCentroidTile + kLanes);
    for (size_t p = 0; p < kPoints; ++p) {
      const auto element = hn::Set(floats, points[p * dimensions + d]);
      low[p] = hn::MulAdd(element, first, low[p]);
      high[p] = hn::MulAdd(element, second, high[p]);
    }
  }
}

template <size_t kPoints>
void LabelPoints(const float* HWY_RESTRICT points, const Packed& packed,
                 uint32_t* HWY_RESTRICT labels) {
  Best best[kPoints];
  for (size_t p = 0; p < kPoints; ++p) {
    best[p] = {hn::Set(FloatTag(), -std::numeric_limits<float>::infinity()), hn::Zero(IntTag())};
  }
  for (size_t tile = 0; tile < packed.tiles; ++tile) {
    Floats low[kPoints];
    Floats high[kPoints];
    SumTile<kPoints>(points, packed, tile, low, high);
    for (size_t p = 0; p < kPoints; ++p) {
      Keep(low[p], tile * kCentroidTile, best[p]);
      Keep(high[p], tile * kCentroidTile + kLanes, best[p]);
    }
  }
  for (size_t p = 0; p < kPoints; ++p) labels[p] = Label(best[p]);
}

void FindNearest(const float* points, size_t count, const float* centroids, const float* biases,
                 size_t centroid_count, size_t dimensions, uint32_t* labels) {
  const Packed packed(centroids, biases, centroid_count, dimensions);
  size_t p = 0;
  for (; p + kPointTile <= count; p += kPointTile) {
    LabelPoints<kPointTile>(points + p * dimensions, packed, labels + p);
  }
  for (; p < count; ++p) LabelPoints<1>(points + p * dimensions, packed, labels + p);
}

// Writes the sums of kPoints points, each with all centroids.
template <size_t kPoints>
void ScorePoints(const float* HWY_RESTRICT points, const Packed& packed, size_t centroid_count,
                 float* HWY_RESTRICT scores) {
  const FloatTag floats;
  for (size_t tile = 0; tile < packed.tiles; ++tile) {
    Floats low[kPoints];
    Floats high[kPoints];
    SumTile<kPoints>(points, packed, tile, low, high);
    const size_t first = tile * kCentroidTile;
    const size_t some = std::min(kCentroidTile, centroid_count - first);
    for (size_t p = 0; p < kPoints; ++p) {
      HWY_ALIGN float sums[kCentroidTile];
      hn::Store(low[p], floats, sums);
      hn::Store(high[p], floats, sums + kLanes);
      std::copy_n(sums, some, scores + p * centroid_count + first);
    }
  }
}

void ScoreAll(const float* points, size_t count, const float* centroids, const float* biases,
              size_t centroid_count, size_t dimensions, float* scores) {
  const Packed packed(centroids, biases, centroid_count, dimensions);
  size_t p = 0;
  for (; p + kPointTile <= count; p += kPointTile) {
    ScorePoints<kPointTile>(points + p * dimensions, packed, centroid_count,
                            scores + p * centroid_count);
  }
  for (; p < count; ++p) {
    ScorePoints<1>(points + p * dimensions, packed, centroid_count, scores + p * centroid_count);
  }
}

}  // namespace
}  // namespace HWY_NAMESPACE
}  // namespace terrace
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace terrace {
namespace {

HWY_EXPORT(FindNearest);
HWY_EXPORT(ScoreAll);

}  // namespace

void FindNearestCentroids(const float* points, size_t count, const float* centroids,
                          const float* biases, size_t centroid_count, size_t dimensions,
                          uint32_t* labels) {
  HWY_DYNAMIC_DISPATCH(FindNearest)
  (points, count, centroids, biases, centroid_count, dimensions, labels);
}

void ScoreCentroids(const float* points, size_t count, const float* centroids, const float* biases,
                    size_t centroid_count, size_t dimensions, float* scores) {
  HWY_DYNAMIC_DISPATCH(ScoreAll)
  (points, count, centroids, biases, centroid_count, dimensions, scores);
}

}  // namespace terrace
#endif  // HWY_ONCE
