#include "index/cluster_kernels.h"

#include <algorithm>
#include <cmath>
#include <limits>

// Arrays of vectors need vectors of a size that the compiler knows.
#define HWY_DISABLED_TARGETS (HWY_SVE | HWY_SVE2 | HWY_SVE_256 | HWY_SVE2_128 | HWY_RVV)

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "index/cluster_kernels.cc"
#include "hwy/foreach_target.h"  // IWYU pragma: keep
#include "hwy/highway.h"
// After highway.h, on which it depends.
#include "hwy/contrib/math/math-inl.h"

HWY_BEFORE_NAMESPACE();
namespace terrace {
namespace HWY_NAMESPACE {
namespace {
namespace hn = hwy::HWY_NAMESPACE;

// 16 lanes at most, of which the dimensions are a multiple.
using FloatTag = hn::CappedTag<float, 16>;
using IntTag = hn::RebindToSigned<FloatTag>;
using HalfTag = hn::Rebind<int16_t, FloatTag>;
using WordTag = hn::CappedTag<uint16_t, 16>;
using ShortTag = hn::RebindToSigned<WordTag>;
using ByteTag = hn::Rebind<int8_t, FloatTag>;

// So many sums in fp32 before they are added up in fp64, which keeps the small ones.
constexpr size_t kSumTile = 1024;

float Raise(const float* HWY_RESTRICT spreads, size_t count, const LogitRaise& raise,
            float* HWY_RESTRICT logits, float* HWY_RESTRICT raised) {
  const FloatTag floats;
  const auto shifts = hn::Set(floats, raise.shift);
  const auto gains = hn::Set(floats, raise.gain);
  const auto log_keys = hn::Set(floats, raise.log_keys);
  auto most = hn::Set(floats, -std::numeric_limits<float>::infinity());
  size_t c = 0;
  for (; c + hn::Lanes(floats) <= count; c += hn::Lanes(floats)) {
    const auto half_variance = hn::Mul(gains, hn::LoadU(floats, spreads + c));
    const auto root = hn::Sqrt(hn::Mul(half_variance, log_keys));
    const auto frozen = hn::Sub(hn::Add(root, root), log_keys);
    const auto by = hn::IfThenElse(hn::Lt(half_variance, log_keys), half_variance, frozen);
    const auto logit = hn::Add(hn::LoadU(floats, logits + c), shifts);
    const auto sum = hn::Add(logit, by);
    hn::StoreU(logit, floats, logits + c);
    hn::StoreU(sum, floats, raised + c);
    most = hn::Max(most, sum);
  }
  float largest = hn::GetLane(hn::MaxOfLanes(floats, most));
  for (; c < count; ++c) {
    const float half_variance = raise.gain * spreads[c];
    const float by = half_variance < raise.log_keys
                         ? half_variance
                         : 2 * std::sqrt(half_variance * raise.log_keys) - raise.log_keys;
    logits[c] += raise.shift;
    raised[c] = logits[c] + by;
    largest = std::max(largest, raised[c]);
  }
  return largest;
}

double Weigh(const float* HWY_RESTRICT logits, size_t count, float shift,
             float* HWY_RESTRICT weights) {
  const FloatTag floats;
  const auto shifts = hn::Set(floats, shift);
  double total = 0;
  size_t c = 0;
  while (c + hn::Lanes(floats) <= count) {
    const size_t end = std::min(count, c + kSumTile);
    auto sum = hn::Zero(floats);
    for (; c + hn::Lanes(floats) <= end; c += hn::Lanes(floats)) {
      const auto weight = hn::Exp(floats, hn::Sub(hn::LoadU(floats, logits + c), shifts));
      hn::StoreU(weight, floats, weights + c);
      sum = hn::Add(sum, weight);
    }
    total += double{hn::GetLane(hn::SumOfLanes(floats, sum))};
  }
  for (; c < count; ++c) {
    weights[c] = std::exp(logits[c] - shift);
    total += double{weights[c]};
  }
  return total;
}

float Largest(const float* HWY_RESTRICT logits, size_t count) {
  const FloatTag floats;
  auto most = hn::Set(floats, -std::numeric_limits<float>::infinity());
  size_t i = 0;
  for (; i + hn::Lanes(floats) <= count; i += hn::Lanes(floats)) {
    most = hn::Max(most, hn::LoadU(floats, logits + i));
  }
  float largest = hn::GetLane(hn::MaxOfLanes(floats, most));
  for (; i < count; ++i) largest = std::max(largest, logits[i]);
  return largest;
}

double Scale(float* HWY_RESTRICT masses, size_t count, float factor) {
  const FloatTag floats;
  const auto factors = hn::Set(floats, factor);
  double total = 0;
  size_t c = 0;
  while (c + hn::Lanes(floats) <= count) {
    const size_t end = std::min(count, c + kSumTile);
    auto sum = hn::Zero(floats);
    for (; c + hn::Lanes(floats) <= end; c += hn::Lanes(floats)) {
      const auto mass = hn::Mul(hn::LoadU(floats, masses + c), factors);
      hn::StoreU(mass, floats, masses + c);
      sum = hn::Add(sum, mass);
    }
    total += double{hn::GetLane(hn::SumOfLanes(floats, sum))};
  }
  for (; c < count; ++c) {
    masses[c] *= factor;
    total += double{masses[c]};
  }
  return total;
}

void SumEach(const float* HWY_RESTRICT masses, size_t groups, size_t size,
             float* HWY_RESTRICT sums) {
  const FloatTag floats;
  for (size_t group = 0; group < groups; ++group) {
    const float* const at = masses + group * size;
    auto sum = hn::Zero(floats);
    size_t i = 0;
    for (; i + hn::Lanes(floats) <= size; i += hn::Lanes(floats)) {
      sum = hn::Add(sum, hn::LoadU(floats, at + i));
    }
    float total = hn::GetLane(hn::SumOfLanes(floats, sum));
    for (; i < size; ++i) total += at[i];
    sums[group] = total;
  }
}

void SumWeighted(const float* masses, size_t stride, size_t rows, const float* HWY_RESTRICT weights,
                 size_t count, float* HWY_RESTRICT sums) {
  const FloatTag floats;
  for (size_t row = 0; row < rows; ++row) {
    const float* const at = masses + row * stride;
    auto sum = hn::Zero(floats);
    size_t i = 0;
    for (; i + hn::Lanes(floats) <= count; i += hn::Lanes(floats)) {
      sum = hn::MulAdd(hn::LoadU(floats, weights + i), hn::LoadU(floats, at + i), sum);
    }
    float total = hn::GetLane(hn::SumOfLanes(floats, sum));
    for (; i < count; ++i) total += weights[i] * at[i];
    sums[row] = total;
  }
}

void AddFloats(const float* HWY_RESTRICT from, size_t count, float factor,
               float* HWY_RESTRICT sums) {
  const FloatTag floats;
  const auto factors = hn::Set(floats, factor);
  size_t i = 0;
  for (; i + hn::Lanes(floats) <= count; i += hn::Lanes(floats)) {
    hn::StoreU(hn::MulAdd(factors, hn::LoadU(floats, from + i), hn::LoadU(floats, sums + i)),
               floats, sums + i);
  }
  for (; i < count; ++i) sums[i] += factor * from[i];
}

size_t Numbers(const float* HWY_RESTRICT masses, size_t count, float least,
               uint32_t* HWY_RESTRICT numbers) {
  const FloatTag floats;
  const hn::RebindToUnsigned<FloatTag> ints;
  const auto limit = hn::Set(floats, least);
  size_t found = 0;
  size_t i = 0;
  for (; i + hn::Lanes(floats) <= count; i += hn::Lanes(floats)) {
    const auto taken = hn::RebindMask(ints, hn::Ge(hn::LoadU(floats, masses + i), limit));
    // Stored as a whole: some processors take long to store a part of a vector. There is room.
    hn::StoreU(hn::Compress(hn::Iota(ints, static_cast<uint32_t>(i)), taken), ints,
               numbers + found);
    found += hn::CountTrue(ints, taken);
  }
  for (; i < count; ++i) {
    if (masses[i] >= least) numbers[found++] = static_cast<uint32_t>(i);
  }
  return found;
}

constexpr size_t kPlaces = 16;  // of a group

// The sums of the products of the bytes of each lane: those of `codes` have no sign.
#if HWY_ARCH_X86 && HWY_TARGET <= HWY_SSSE3
template <size_t kLanes>
hn::Vec128<int16_t, kLanes> MulBytePairs(hn::Vec128<int16_t, kLanes> codes,
                                         hn::Vec128<int16_t, kLanes> steps) {
  return hn::Vec128<int16_t, kLanes>{_mm_maddubs_epi16(codes.raw, steps.raw)};
}
#if HWY_TARGET <= HWY_AVX2
hn::Vec256<int16_t> MulBytePairs(hn::Vec256<int16_t> codes, hn::Vec256<int16_t> steps) {
  return hn::Vec256<int16_t>{_mm256_maddubs_epi16(codes.raw, steps.raw)};
}
#endif
#else
hn::Vec<ShortTag> MulBytePairs(hn::Vec<ShortTag> codes, hn::Vec<ShortTag> steps) {
  const ShortTag shorts;
  const auto low =
      hn::Mul(hn::And(codes, hn::Set(shorts, 0xff)), hn::ShiftRight<8>(hn::ShiftLeft<8>(steps)));
  return hn::Add(low, hn::Mul(hn::ShiftRight<8>(codes), hn::ShiftRight<8>(steps)));
}
#endif

// Of one group and kRows rows.
template <int kBits, size_t kRows>
void ScoreGroup(const CodeProducts& products, size_t first_row, const uint16_t* HWY_RESTRICT codes,
                size_t stride, float* HWY_RESTRICT logits) {
  const WordTag words;
  const ShortTag shorts;
  const FloatTag floats;
  constexpr size_t kPairs = 8 / kBits;
  const size_t row_steps = products.words * kPairs;
  const int16_t* const steps = products.steps + first_row * row_steps;
  const auto mask = hn::Set(words, ((1 << kBits) - 1) * 0x101);
  HWY_ALIGN int16_t all[kRows * kPlaces];
  for (size_t lane = 0; lane < kPlaces; lane += hn::Lanes(words)) {
    hn::Vec<ShortTag> sums[kRows];
    for (size_t r = 0; r < kRows; ++r) sums[r] = hn::Zero(shorts);
    for (size_t word = 0; word < products.words; ++word) {
      auto rest = hn::LoadU(words, codes + word * kPlaces + lane);
      for (size_t i = 0; i < kPairs; ++i) {
        const auto pair = hn::BitCast(shorts, hn::And(rest, mask));
        for (size_t r = 0; r < kRows; ++r) {
          const auto step = hn::Set(shorts, steps[r * row_steps + word * kPairs + i]);
          sums[r] = hn::Add(sums[r], MulBytePairs(pair, step));
        }
        rest = hn::ShiftRight<kBits>(rest);
      }
    }
    for (size_t r = 0; r < kRows; ++r) hn::StoreU(sums[r], shorts, all + r * kPlaces + lane);
  }
  for (size_t r = 0; r < kRows; ++r) {
    const auto base = hn::Set(floats, products.bases[first_row + r]);
    const auto factor = hn::Set(floats, products.factors[first_row + r]);
    for (size_t lane = 0; lane < kPlaces; lane += hn::Lanes(floats)) {
      const auto sum = hn::ConvertTo(
          floats, hn::PromoteTo(IntTag(), hn::LoadU(HalfTag(), all + r * kPlaces + lane)));
      hn::StoreU(hn::MulAdd(factor, sum, base), floats, logits + (first_row + r) * stride + lane);
    }
  }
}

template <int kBits>
void ScoreGroups(const CodeProducts& products, const uint16_t* codes, size_t groups, size_t stride,
                 float* logits) {
  for (size_t group = 0; group < groups; ++group) {
    const uint16_t* const at = codes + group * products.words * kPlaces;
    float* const to = logits + group * kPlaces;
    size_t row = 0;
    for (; row + 4 <= products.rows; row += 4) ScoreGroup<kBits, 4>(products, row, at, stride, to);
    for (; row < products.rows; ++row) ScoreGroup<kBits, 1>(products, row, at, stride, to);
  }
}

void ScoreAllCodes(const CodeProducts& products, const uint16_t* codes, size_t groups,
                   size_t stride, float* logits) {
  if (products.bits == 4) {
    ScoreGroups<4>(products, codes, groups, stride, logits);
  } else {
    ScoreGroups<2>(products, codes, groups, stride, logits);
  }
}

// Of kRows rows, `stride` apart in `factors` and `dimensions` in `sums`.
template <size_t kRows>
void AddRows(const int8_t* const* vectors, size_t count, const float* HWY_RESTRICT factors,
             size_t stride, size_t dimensions, float* HWY_RESTRICT sums) {
  const FloatTag floats;
  for (size_t d = 0; d < dimensions; d += hn::Lanes(floats)) {
    hn::Vec<FloatTag> sum[kRows];
    for (size_t r = 0; r < kRows; ++r) sum[r] = hn::LoadU(floats, sums + r * dimensions + d);
    for (size_t i = 0; i < count; ++i) {
      const auto elements =
          hn::ConvertTo(floats, hn::PromoteTo(IntTag(), hn::LoadU(ByteTag(), vectors[i] + d)));
      for (size_t r = 0; r < kRows; ++r) {
        sum[r] = hn::MulAdd(hn::Set(floats, factors[i * stride + r]), elements, sum[r]);
      }
    }
    for (size_t r = 0; r < kRows; ++r) hn::StoreU(sum[r], floats, sums + r * dimensions + d);
  }
}

void Add(const int8_t* const* vectors, size_t count, const float* factors, size_t rows,
         size_t dimensions, float* sums) {
  size_t row = 0;
  for (; row + 4 <= rows; row += 4) {
    AddRows<4>(vectors, count, factors + row, rows, dimensions, sums + row * dimensions);
  }
  for (; row < rows; ++row) {
    AddRows<1>(vectors, count, factors + row, rows, dimensions, sums + row * dimensions);
  }
}

}  // namespace
}  // namespace HWY_NAMESPACE
}  // namespace terrace
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace terrace {
namespace {

HWY_EXPORT(Raise);
HWY_EXPORT(Weigh);
HWY_EXPORT(Largest);
HWY_EXPORT(Scale);
HWY_EXPORT(SumEach);
HWY_EXPORT(SumWeighted);
HWY_EXPORT(AddFloats);
HWY_EXPORT(Numbers);
HWY_EXPORT(ScoreAllCodes);
HWY_EXPORT(Add);

}  // namespace

float RaiseLogits(const float* spreads, size_t count, const LogitRaise& raise, float* logits,
                  float* raised) {
  return HWY_DYNAMIC_DISPATCH(Raise)(spreads, count, raise, logits, raised);
}

double WeighLogits(const float* logits, size_t count, float shift, float* weights) {
  return HWY_DYNAMIC_DISPATCH(Weigh)(logits, count, shift, weights);
}

float LargestLogit(const float* logits, size_t count) {
  return HWY_DYNAMIC_DISPATCH(Largest)(logits, count);
}

double ScaleMasses(float* masses, size_t count, float factor) {
  return HWY_DYNAMIC_DISPATCH(Scale)(masses, count, factor);
}

void SumGroups(const float* masses, size_t groups, size_t size, float* sums) {
  HWY_DYNAMIC_DISPATCH(SumEach)(masses, groups, size, sums);
}

void WeightedSums(const float* masses, size_t stride, size_t rows, const float* weights,
                  size_t count, float* sums) {
  HWY_DYNAMIC_DISPATCH(SumWeighted)(masses, stride, rows, weights, count, sums);
}

void AddShares(const float* masses, size_t count, float factor, float* shares) {
  HWY_DYNAMIC_DISPATCH(AddFloats)(masses, count, factor, shares);
}

size_t NumbersFrom(const float* masses, size_t count, float least, uint32_t* numbers) {
  return HWY_DYNAMIC_DISPATCH(Numbers)(masses, count, least, numbers);
}

void ScoreCodes(const CodeProducts& products, const uint16_t* codes, size_t groups, size_t stride,
                float* logits) {
  HWY_DYNAMIC_DISPATCH(ScoreAllCodes)(products, codes, groups, stride, logits);
}

void AddScaled(const int8_t* const* vectors, size_t count, const float* factors, size_t rows,
               size_t dimensions, float* sums) {
  HWY_DYNAMIC_DISPATCH(Add)(vectors, count, factors, rows, dimensions, sums);
}

}  // namespace terrace
#endif  // HWY_ONCE
