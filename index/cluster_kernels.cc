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
using ByteTag = hn::Rebind<int8_t, FloatTag>;

// So many sums in fp32 before they are added up in fp64, which keeps the small ones.
constexpr size_t kSumTile = 1024;

float Raise(const float* HWY_RESTRICT spreads, size_t count, const LogitRaise& raise,
            float* HWY_RESTRICT logits) {
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
    const auto raised = hn::Add(hn::Add(hn::LoadU(floats, logits + c), shifts), by);
    hn::StoreU(raised, floats, logits + c);
    most = hn::Max(most, raised);
  }
  float largest = hn::GetLane(hn::MaxOfLanes(floats, most));
  for (; c < count; ++c) {
    const float half_variance = raise.gain * spreads[c];
    const float by = half_variance < raise.log_keys
                         ? half_variance
                         : 2 * std::sqrt(half_variance * raise.log_keys) - raise.log_keys;
    logits[c] = logits[c] + raise.shift + by;
    largest = std::max(largest, logits[c]);
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

void Add(const int8_t* HWY_RESTRICT vector, const float* HWY_RESTRICT factors, size_t rows,
         size_t dimensions, float* HWY_RESTRICT sums) {
  const FloatTag floats;
  for (size_t d = 0; d < dimensions; d += hn::Lanes(floats)) {
    const auto elements =
        hn::ConvertTo(floats, hn::PromoteTo(IntTag(), hn::LoadU(ByteTag(), vector + d)));
    for (size_t row = 0; row < rows; ++row) {
      float* const sum = sums + row * dimensions + d;
      hn::StoreU(hn::MulAdd(hn::Set(floats, factors[row]), elements, hn::LoadU(floats, sum)),
                 floats, sum);
    }
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
HWY_EXPORT(Add);

}  // namespace

float RaiseLogits(const float* spreads, size_t count, const LogitRaise& raise, float* logits) {
  return HWY_DYNAMIC_DISPATCH(Raise)(spreads, count, raise, logits);
}

double WeighLogits(const float* logits, size_t count, float shift, float* weights) {
  return HWY_DYNAMIC_DISPATCH(Weigh)(logits, count, shift, weights);
}

void AddScaled(const int8_t* vector, const float* factors, size_t rows, size_t dimensions,
               float* sums) {
  HWY_DYNAMIC_DISPATCH(Add)(vector, factors, rows, dimensions, sums);
}

}  // namespace terrace
#endif  // HWY_ONCE
