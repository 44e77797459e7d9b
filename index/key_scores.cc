#include "index/key_scores.h"

#include <algorithm>

// Arrays of vectors need vectors of a size that the compiler knows.
#define HWY_DISABLED_TARGETS (HWY_SVE | HWY_SVE2 | HWY_SVE_256 | HWY_SVE2_128 | HWY_RVV)

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "index/key_scores.cc"
#include "hwy/cache_control.h"
#include "hwy/foreach_target.h"  // IWYU pragma: keep
#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace terrace {
namespace HWY_NAMESPACE {
namespace {
namespace hn = hwy::HWY_NAMESPACE;

// Eight lanes at most, of which head_dim is a multiple.
using FloatTag = hn::CappedTag<float, 8>;
using Floats = hn::Vec<FloatTag>;

constexpr size_t kRowTile = 4;  // query rows that share one load of a key
constexpr size_t kLineBytes = 64;
constexpr size_t kKeysAhead = 6;  // how far ahead of the scores keys are brought in

Floats LoadFloats(const float* at) { return hn::LoadU(FloatTag(), at); }
template <typename Half>
Floats LoadFloats(const Half* at) {
  return hn::PromoteTo(FloatTag(), hn::LoadU(hn::Rebind<Half, FloatTag>(), at));
}

template <size_t kRows, typename T>
void ScoreRows(const float* HWY_RESTRICT queries, size_t head_dim, const T* HWY_RESTRICT key,
               float* HWY_RESTRICT scores) {
  const FloatTag floats;
  Floats sums[kRows];
  for (size_t r = 0; r < kRows; ++r) sums[r] = hn::Zero(floats);
  for (size_t i = 0; i < head_dim; i += hn::Lanes(floats)) {
    const Floats elements = LoadFloats(key + i);
    for (size_t r = 0; r < kRows; ++r) {
      sums[r] = hn::MulAdd(elements, hn::LoadU(floats, queries + r * head_dim + i), sums[r]);
    }
  }
  for (size_t r = 0; r < kRows; ++r) {
    scores[r] = hn::GetLane(hn::SumOfLanes(floats, sums[r]));
  }
}

template <typename T>
void ScoreOne(const float* queries, size_t rows, size_t head_dim, const T* key, float* scores) {
  size_t row = 0;
  for (; row + kRowTile <= rows; row += kRowTile) {
    ScoreRows<kRowTile>(queries + row * head_dim, head_dim, key, scores + row);
  }
  for (; row < rows; ++row) {
    ScoreRows<1>(queries + row * head_dim, head_dim, key, scores + row);
  }
}

template <typename T>
void RunOf(const float* queries, size_t rows, size_t head_dim, const void* keys, size_t count,
           float* scores) {
  const T* const at = static_cast<const T*>(keys);
  for (size_t i = 0; i < count; ++i) {
    ScoreOne(queries, rows, head_dim, at + i * head_dim, scores + i * rows);
  }
}

void PrefetchKey(const std::byte* key, size_t bytes) {
  for (size_t i = 0; i < bytes; i += kLineBytes) {
    hwy::Prefetch(reinterpret_cast<const uint8_t*>(key) + i);
  }
}

template <typename T>
void KeysOf(const float* queries, size_t rows, const KeyPanels& keys, const uint32_t* ids,
            size_t count, float* scores) {
  for (size_t i = 0; i < std::min(kKeysAhead, count); ++i) {
    PrefetchKey(keys.key(ids[i]), keys.key_bytes());
  }
  for (size_t i = 0; i < count; ++i) {
    if (i + kKeysAhead < count) PrefetchKey(keys.key(ids[i + kKeysAhead]), keys.key_bytes());
    ScoreOne(queries, rows, keys.head_dim(), reinterpret_cast<const T*>(keys.key(ids[i])),
             scores + i * rows);
  }
}

template <typename T>
float PairOf(const void* a, const void* b, size_t head_dim) {
  const FloatTag floats;
  Floats sum = hn::Zero(floats);
  for (size_t i = 0; i < head_dim; i += hn::Lanes(floats)) {
    sum = hn::MulAdd(LoadFloats(static_cast<const T*>(a) + i),
                     LoadFloats(static_cast<const T*>(b) + i), sum);
  }
  return hn::GetLane(hn::SumOfLanes(floats, sum));
}

void Run(const float* queries, size_t rows, size_t head_dim, const void* keys, KvDtype dtype,
         size_t count, float* scores) {
  switch (dtype) {
    case KvDtype::kFloat32:
      return RunOf<float>(queries, rows, head_dim, keys, count, scores);
    case KvDtype::kFloat16:
      return RunOf<hwy::float16_t>(queries, rows, head_dim, keys, count, scores);
    case KvDtype::kBfloat16:
      return RunOf<hwy::bfloat16_t>(queries, rows, head_dim, keys, count, scores);
  }
}

void Keys(const float* queries, size_t rows, const KeyPanels& keys, const uint32_t* ids,
          size_t count, float* scores) {
  switch (keys.dtype()) {
    case KvDtype::kFloat32:
      return KeysOf<float>(queries, rows, keys, ids, count, scores);
    case KvDtype::kFloat16:
      return KeysOf<hwy::float16_t>(queries, rows, keys, ids, count, scores);
    case KvDtype::kBfloat16:
      return KeysOf<hwy::bfloat16_t>(queries, rows, keys, ids, count, scores);
  }
}

float Pair(const void* a, const void* b, KvDtype dtype, size_t head_dim) {
  switch (dtype) {
    case KvDtype::kFloat32:
      return PairOf<float>(a, b, head_dim);
    case KvDtype::kFloat16:
      return PairOf<hwy::float16_t>(a, b, head_dim);
    case KvDtype::kBfloat16:
      return PairOf<hwy::bfloat16_t>(a, b, head_dim);
  }
  return 0;
}

}  // namespace
}  // namespace HWY_NAMESPACE
}  // namespace terrace
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace terrace {
namespace {

HWY_EXPORT(Run);
HWY_EXPORT(Keys);
HWY_EXPORT(Pair);

}  // namespace

void ScoreRun(absl::Span<const float> queries, size_t head_dim, const void* keys, KvDtype dtype,
              size_t count, float* scores) {
  HWY_DYNAMIC_DISPATCH(Run)
  (queries.data(), queries.size() / head_dim, head_dim, keys, dtype, count, scores);
}

void ScoreKeys(absl::Span<const float> queries, const KeyPanels& keys,
               absl::Span<const uint32_t> ids, float* scores) {
  HWY_DYNAMIC_DISPATCH(Keys)
  (queries.data(), queries.size() / keys.head_dim(), keys, ids.data(), ids.size(), scores);
}

float ScorePair(const void* a, const void* b, KvDtype dtype, size_t head_dim) {
  return HWY_DYNAMIC_DISPATCH(Pair)(a, b, dtype, head_dim);
}

}  // namespace terrace
#endif  // HWY_ONCE
