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

// Sums add up element i in lane i % lanes. Sixteen lanes need a head_dim that is a multiple of 16.
using NarrowTag = hn::CappedTag<float, 8>;
using WideTag = hn::CappedTag<float, 16>;

// Four sums grow side by side and are added up across lanes together: those of a key with four
// rows, or of four keys with a row that is left over.
constexpr size_t kSums = 4;
constexpr size_t kBatch = 8;  // keys that are scored while as many are brought into the cache
constexpr size_t kLineBytes = 64;
// Queries up to this size are copied to where no vector of them crosses a cache line, if enough
// keys follow to pay for it. Four rows then take two thirds of the time.
constexpr size_t kAlignedFloats = 4096;
constexpr size_t kKeysWorthAligning = 16;

template <class Tag>
hn::Vec<Tag> LoadFloats(Tag tag, const float* at) {
  return hn::LoadU(tag, at);
}
template <class Tag, typename Half>
hn::Vec<Tag> LoadFloats(Tag tag, const Half* at) {
  return hn::PromoteTo(tag, hn::LoadU(hn::Rebind<Half, Tag>(), at));
}

#if HWY_TARGET == HWY_SCALAR

template <class Tag>
void StoreSums(Tag, const hn::Vec<Tag> (&sums)[kSums], float* HWY_RESTRICT to) {
  for (size_t i = 0; i < kSums; ++i) to[i] = hn::GetLane(sums[i]);
}

#else

// The sum of the halves until four lanes are left.
template <class Tag>
auto FoldToFour([[maybe_unused]] Tag tag, hn::Vec<Tag> lanes) {
  if constexpr (hn::MaxLanes(Tag()) > kSums) {
    const hn::Half<Tag> half;
    return FoldToFour(half, hn::Add(hn::LowerHalf(half, lanes), hn::UpperHalf(half, lanes)));
  } else {
    return lanes;
  }
}

// to[i] is the sum over the lanes of sums[i].
template <class Tag>
void StoreSums(Tag tag, const hn::Vec<Tag> (&sums)[kSums], float* HWY_RESTRICT to) {
  const hn::RepartitionToWide<hn::RebindToUnsigned<Tag> > pairs;
  const auto fold = [&](auto a, auto b) HWY_ATTR {
    return hn::BitCast(pairs,
                       hn::Add(hn::InterleaveLower(tag, a, b), hn::InterleaveUpper(tag, a, b)));
  };
  const auto first = fold(sums[0], sums[1]);
  const auto second = fold(sums[2], sums[3]);
  const auto all = hn::Add(hn::BitCast(tag, hn::InterleaveLower(pairs, first, second)),
                           hn::BitCast(tag, hn::InterleaveUpper(pairs, first, second)));
  hn::StoreU(FoldToFour(tag, all), hn::CappedTag<float, kSums>(), to);
}

#endif

// scores[row] of one key and four rows.
template <class Tag, typename T>
void ScoreFourRows(const float* HWY_RESTRICT queries, size_t head_dim, const T* HWY_RESTRICT key,
                   float* HWY_RESTRICT scores) {
  const Tag tag;
  hn::Vec<Tag> sums[kSums];
  for (size_t r = 0; r < kSums; ++r) sums[r] = hn::Zero(tag);
  for (size_t i = 0; i < head_dim; i += hn::Lanes(tag)) {
    const auto elements = LoadFloats(tag, key + i);
    for (size_t r = 0; r < kSums; ++r) {
      sums[r] = hn::MulAdd(elements, hn::LoadU(tag, queries + r * head_dim + i), sums[r]);
    }
  }
  StoreSums(tag, sums, scores);
}

// scores[key * stride] of one row and kKeys keys, four at most.
template <class Tag, size_t kKeys, typename T>
void ScoreOneRow(const float* HWY_RESTRICT query, size_t head_dim, const T* const* keys,
                 size_t stride, float* HWY_RESTRICT scores) {
  const Tag tag;
  hn::Vec<Tag> sums[kSums];
  for (size_t k = 0; k < kSums; ++k) sums[k] = hn::Zero(tag);
  for (size_t i = 0; i < head_dim; i += hn::Lanes(tag)) {
    const auto elements = hn::LoadU(tag, query + i);
    for (size_t k = 0; k < kKeys; ++k) {
      sums[k] = hn::MulAdd(LoadFloats(tag, keys[k] + i), elements, sums[k]);
    }
  }
  float of_keys[kSums];
  StoreSums(tag, sums, of_keys);
  for (size_t k = 0; k < kKeys; ++k) scores[k * stride] = of_keys[k];
}

template <class Tag, typename T>
void ScoreBatch(const float* queries, size_t rows, size_t head_dim, const T* const* keys,
                size_t count, float* scores) {
  size_t row = 0;
  for (; row + kSums <= rows; row += kSums) {
    for (size_t key = 0; key < count; ++key) {
      ScoreFourRows<Tag>(queries + row * head_dim, head_dim, keys[key], scores + key * rows + row);
    }
  }
  for (; row < rows; ++row) {
    const float* const query = queries + row * head_dim;
    size_t key = 0;
    for (; key + kSums <= count; key += kSums) {
      ScoreOneRow<Tag, kSums>(query, head_dim, keys + key, rows, scores + key * rows + row);
    }
    for (; key < count; ++key) {
      ScoreOneRow<Tag, 1>(query, head_dim, keys + key, rows, scores + key * rows + row);
    }
  }
}

template <class Tag, typename T>
void RunOf(const float* queries, size_t rows, size_t head_dim, const void* keys, size_t count,
           float* scores) {
  const T* at = static_cast<const T*>(keys);
  const T* batch[kBatch];
  for (size_t i = 0; i < count; i += kBatch) {
    const size_t size = std::min(kBatch, count - i);
    for (size_t k = 0; k < size; ++k, at += head_dim) batch[k] = at;
    ScoreBatch<Tag>(queries, rows, head_dim, batch, size, scores + i * rows);
  }
}

// Where up to kBatch keys lie, which are brought into the cache.
template <typename T>
void Locate(const KeyPanels& keys, const uint32_t* ids, size_t count, const T** batch) {
  const size_t bytes = keys.key_bytes();
  for (size_t k = 0; k < std::min(kBatch, count); ++k) {
    const std::byte* const key = keys.key(ids[k]);
    for (size_t i = 0; i < bytes; i += kLineBytes) {
      hwy::Prefetch(reinterpret_cast<const uint8_t*>(key) + i);
    }
    batch[k] = reinterpret_cast<const T*>(key);
  }
}

template <class Tag, typename T>
void KeysOf(const float* queries, size_t rows, const KeyPanels& keys, const uint32_t* ids,
            size_t count, float* scores) {
  const T* batches[2][kBatch];
  Locate(keys, ids, count, batches[0]);
  for (size_t i = 0; i < count; i += kBatch) {
    const size_t batch = i / kBatch % 2;
    const size_t next = i + kBatch;
    if (next < count) Locate(keys, ids + next, count - next, batches[1 - batch]);
    ScoreBatch<Tag>(queries, rows, keys.head_dim(), batches[batch], std::min(kBatch, count - i),
                    scores + i * rows);
  }
}

template <typename T>
float PairOf(const void* a, const void* b, size_t head_dim) {
  const NarrowTag floats;
  auto sum = hn::Zero(floats);
  for (size_t i = 0; i < head_dim; i += hn::Lanes(floats)) {
    sum = hn::MulAdd(LoadFloats(floats, static_cast<const T*>(a) + i),
                     LoadFloats(floats, static_cast<const T*>(b) + i), sum);
  }
  return hn::GetLane(hn::SumOfLanes(floats, sum));
}

template <class Tag>
void RunWith(const float* queries, size_t rows, size_t head_dim, const void* keys, KvDtype dtype,
             size_t count, float* scores) {
  switch (dtype) {
    case KvDtype::kFloat32:
      return RunOf<Tag, float>(queries, rows, head_dim, keys, count, scores);
    case KvDtype::kFloat16:
      return RunOf<Tag, hwy::float16_t>(queries, rows, head_dim, keys, count, scores);
    case KvDtype::kBfloat16:
      return RunOf<Tag, hwy::bfloat16_t>(queries, rows, head_dim, keys, count, scores);
  }
}

template <class Tag>
void KeysWith(const float* queries, size_t rows, const KeyPanels& keys, const uint32_t* ids,
              size_t count, float* scores) {
  switch (keys.dtype()) {
    case KvDtype::kFloat32:
      return KeysOf<Tag, float>(queries, rows, keys, ids, count, scores);
    case KvDtype::kFloat16:
      return KeysOf<Tag, hwy::float16_t>(queries, rows, keys, ids, count, scores);
    case KvDtype::kBfloat16:
      return KeysOf<Tag, hwy::bfloat16_t>(queries, rows, keys, ids, count, scores);
  }
}

// The queries, [elements], or a copy of them in `copy`.
const float* Align(const float* queries, size_t elements, size_t count, float* HWY_RESTRICT copy) {
  if (count < kKeysWorthAligning || elements > kAlignedFloats ||
      reinterpret_cast<uintptr_t>(queries) % kLineBytes == 0) {
    return queries;
  }
  std::copy_n(queries, elements, copy);
  return copy;
}

void Run(const float* queries, size_t rows, size_t head_dim, const void* keys, KvDtype dtype,
         size_t count, float* scores) {
  alignas(kLineBytes) float copy[kAlignedFloats];
  queries = Align(queries, rows * head_dim, count, copy);
  if (head_dim % hn::Lanes(WideTag()) == 0) {
    return RunWith<WideTag>(queries, rows, head_dim, keys, dtype, count, scores);
  }
  RunWith<NarrowTag>(queries, rows, head_dim, keys, dtype, count, scores);
}

void Keys(const float* queries, size_t rows, const KeyPanels& keys, const uint32_t* ids,
          size_t count, float* scores) {
  alignas(kLineBytes) float copy[kAlignedFloats];
  queries = Align(queries, rows * keys.head_dim(), count, copy);
  if (keys.head_dim() % hn::Lanes(WideTag()) == 0) {
    return KeysWith<WideTag>(queries, rows, keys, ids, count, scores);
  }
  KeysWith<NarrowTag>(queries, rows, keys, ids, count, scores);
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
