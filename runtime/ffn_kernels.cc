#include "runtime/ffn_kernels.h"

#include <algorithm>
#include <cstddef>

#include "absl/types/span.h"
#include "io/check.h"

// Arrays of vectors need vectors of a size that the compiler knows.
#define HWY_DISABLED_TARGETS (HWY_SVE | HWY_SVE2 | HWY_SVE_256 | HWY_SVE2_128 | HWY_RVV)

// Highway compiles this file once for each instruction set, then again for what follows HWY_ONCE.
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "runtime/ffn_kernels.cc"
#include "hwy/foreach_target.h"
#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace terrace {
namespace HWY_NAMESPACE {
namespace {

namespace hn = hwy::HWY_NAMESPACE;
using hwy::bfloat16_t;
using hwy::float16_t;

// Eight lanes where the target has as many: memory is the limit long before sixteen would help.
using Floats = hn::CappedTag<float, 8>;
using FloatVector = hn::Vec<Floats>;
constexpr Floats kFloats;

// Chains of sums, enough to hide the latency of an addition.
constexpr size_t kSums = 4;

// Rows that are added in one pass over the columns.
constexpr size_t kRowsAtOnce = 8;

FloatVector LoadElements(const float* from) { return hn::LoadU(kFloats, from); }
template <typename T>
FloatVector LoadElements(const T* from) {
  return hn::PromoteTo(kFloats, hn::LoadU(hn::Rebind<T, Floats>(), from));
}

// The first `count` elements, then zeros. Reads no others.
template <typename T>
FloatVector LoadFirst(const T* from, size_t count) {
  T elements[hn::MaxLanes(Floats())] = {};
  std::copy_n(from, count, elements);
  return LoadElements(elements);
}

// ---- One row times several tokens.

template <size_t kTokens, typename T>
HWY_INLINE void Dot(const T* row, const float* x, size_t x_stride, size_t width, float* sums) {
  const size_t lanes = hn::Lanes(kFloats);
  FloatVector partial[kTokens][kSums];
  for (size_t t = 0; t < kTokens; ++t) {
    for (size_t s = 0; s < kSums; ++s) partial[t][s] = hn::Zero(kFloats);
  }
  size_t i = 0;
  for (; i + kSums * lanes <= width; i += kSums * lanes) {
    for (size_t s = 0; s < kSums; ++s) {
      const FloatVector weights = LoadElements(row + i + s * lanes);
      for (size_t t = 0; t < kTokens; ++t) {
        const FloatVector values = hn::LoadU(kFloats, x + t * x_stride + i + s * lanes);
        partial[t][s] = hn::MulAdd(weights, values, partial[t][s]);
      }
    }
  }
  for (; i < width; i += lanes) {
    const size_t count = std::min(lanes, width - i);
    const FloatVector weights = LoadFirst(row + i, count);
    for (size_t t = 0; t < kTokens; ++t) {
      const FloatVector values = LoadFirst(x + t * x_stride + i, count);
      partial[t][0] = hn::MulAdd(weights, values, partial[t][0]);
    }
  }
  for (size_t t = 0; t < kTokens; ++t) {
    const FloatVector low = hn::Add(partial[t][0], partial[t][1]);
    const FloatVector high = hn::Add(partial[t][2], partial[t][3]);
    sums[t] = hn::GetLane(hn::SumOfLanes(kFloats, hn::Add(low, high)));
  }
}

template <typename T>
void DotAll(const void* row, const float* x, size_t x_stride, size_t width,
            absl::Span<float> sums) {
  const T* const weights = static_cast<const T*>(row);
  size_t t = 0;
  for (; t + 2 <= sums.size(); t += 2) {
    Dot<2>(weights, x + t * x_stride, x_stride, width, sums.data() + t);
  }
  if (t < sums.size()) Dot<1>(weights, x + t * x_stride, x_stride, width, sums.data() + t);
}

// ---- Several rows, scaled, into one.

template <typename T>
HWY_INLINE void AddBlock(const void* const* rows, const float* scales, size_t count, size_t width,
                         float* out) {
  const size_t lanes = hn::Lanes(kFloats);
  const T* weights[kRowsAtOnce];
  FloatVector factors[kRowsAtOnce];
  for (size_t row = 0; row < count; ++row) {
    weights[row] = static_cast<const T*>(rows[row]);
    factors[row] = hn::Set(kFloats, scales[row]);
  }
  size_t i = 0;
  for (; i + lanes <= width; i += lanes) {
    FloatVector sum = hn::LoadU(kFloats, out + i);
    for (size_t row = 0; row < count; ++row) {
      sum = hn::MulAdd(LoadElements(weights[row] + i), factors[row], sum);
    }
    hn::StoreU(sum, kFloats, out + i);
  }
  if (i < width) {
    FloatVector sum = LoadFirst(out + i, width - i);
    for (size_t row = 0; row < count; ++row) {
      sum = hn::MulAdd(LoadFirst(weights[row] + i, width - i), factors[row], sum);
    }
    float sums[hn::MaxLanes(Floats())];
    hn::StoreU(sum, kFloats, sums);
    std::copy_n(sums, width - i, out + i);
  }
}

template <typename T>
void AddAll(absl::Span<const void* const> rows, absl::Span<const float> scales, size_t width,
            float* out) {
  size_t row = 0;
  // A count that the compiler knows keeps pointers and factors in registers.
  for (; row + kRowsAtOnce <= rows.size(); row += kRowsAtOnce) {
    AddBlock<T>(rows.data() + row, scales.data() + row, kRowsAtOnce, width, out);
  }
  if (row < rows.size()) {
    AddBlock<T>(rows.data() + row, scales.data() + row, rows.size() - row, width, out);
  }
}

// ---- Any dtype.

void DotOf(KvDtype dtype, const void* row, const float* x, size_t x_stride, size_t width,
           absl::Span<float> sums) {
  switch (dtype) {
    case KvDtype::kFloat32:
      return DotAll<float>(row, x, x_stride, width, sums);
    case KvDtype::kFloat16:
      return DotAll<float16_t>(row, x, x_stride, width, sums);
    case KvDtype::kBfloat16:
      return DotAll<bfloat16_t>(row, x, x_stride, width, sums);
  }
}

void AddOf(KvDtype dtype, absl::Span<const void* const> rows, absl::Span<const float> scales,
           size_t width, float* out) {
  switch (dtype) {
    case KvDtype::kFloat32:
      return AddAll<float>(rows, scales, width, out);
    case KvDtype::kFloat16:
      return AddAll<float16_t>(rows, scales, width, out);
    case KvDtype::kBfloat16:
      return AddAll<bfloat16_t>(rows, scales, width, out);
  }
}

}  // namespace
}  // namespace HWY_NAMESPACE
}  // namespace terrace
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace terrace {
namespace {

HWY_EXPORT(DotOf);
HWY_EXPORT(AddOf);

}  // namespace

void DotTokens(KvDtype dtype, const void* row, const float* x, size_t x_stride, size_t width,
               absl::Span<float> sums) {
  HWY_DYNAMIC_DISPATCH(DotOf)(dtype, row, x, x_stride, width, sums);
}

void AddScaledRows(KvDtype dtype, absl::Span<const void* const> rows,
                   absl::Span<const float> scales, size_t width, float* out) {
  TERRACE_CHECK_EQ(rows.size(), scales.size());
  HWY_DYNAMIC_DISPATCH(AddOf)(dtype, rows, scales, width, out);
}

}  // namespace terrace
#endif  // HWY_ONCE
