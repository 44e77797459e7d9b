#include "index/kv_convert.h"

#include <cstdint>
#include <cstring>
#include <limits>

// Highway compiles this file once for each instruction set, then again for what follows HWY_ONCE.
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "index/kv_convert.cc"
#include "hwy/foreach_target.h"
#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace terrace {
namespace HWY_NAMESPACE {
namespace {

namespace hn = hwy::HWY_NAMESPACE;
using hwy::bfloat16_t;
using hwy::float16_t;

using Floats = hn::ScalableTag<float>;
using FloatVector = hn::Vec<Floats>;
constexpr Floats kFloats;

template <typename T>
using Narrow = hn::Rebind<T, Floats>;

FloatVector FloatOfBits(hn::Vec<hn::RebindToUnsigned<Floats>> bits) {
  return hn::BitCast(kFloats, bits);
}

// ---- Elements to fp32, exactly.

FloatVector Load(const float* from) { return hn::LoadU(kFloats, from); }

FloatVector Load(const bfloat16_t* from) {
  return hn::PromoteTo(kFloats, hn::LoadU(Narrow<bfloat16_t>(), from));
}

// What a target lacks in hardware, Highway 1.0.3 emulates for finite numbers only, and by cutting
// the mantissa off where it should round. These targets get their own conversions.
#if HWY_TARGET == HWY_SCALAR || HWY_TARGET == HWY_EMU128 || HWY_TARGET == HWY_SSSE3 || \
    HWY_TARGET == HWY_SSE4

FloatVector Load(const float16_t* from) {
  const hn::RebindToUnsigned<Floats> bits_tag;
  const Narrow<uint16_t> half_tag;
  const auto half =
      hn::PromoteTo(bits_tag, hn::LoadU(half_tag, reinterpret_cast<const uint16_t*>(from)));
  const auto sign = hn::ShiftLeft<16>(hn::And(half, hn::Set(bits_tag, 0x8000)));
  const auto magnitude = hn::ShiftLeft<13>(hn::And(half, hn::Set(bits_tag, 0x7fff)));
  // The multiplication moves the exponent's bias from 15 to 127, also that of subnormals.
  const auto finite =
      hn::BitCast(bits_tag, hn::Mul(FloatOfBits(magnitude), hn::Set(kFloats, 0x1p112f)));
  const auto not_finite = hn::Or(magnitude, hn::Set(bits_tag, 0x7f800000));
  const auto is_finite = hn::Lt(magnitude, hn::Set(bits_tag, 0x7c00 << 13));
  return FloatOfBits(hn::Or(sign, hn::IfThenElse(is_finite, finite, not_finite)));
}

void Store(FloatVector value, float16_t* to) {
  const hn::RebindToUnsigned<Floats> bits_tag;
  const hn::RebindToSigned<Floats> signed_tag;
  const auto bits = hn::BitCast(bits_tag, value);
  const auto sign = hn::And(bits, hn::Set(bits_tag, 0x80000000));
  const auto magnitude = hn::Xor(bits, sign);
  const auto odd = hn::And(hn::ShiftRight<13>(magnitude), hn::Set(bits_tag, 1));
  const auto rounded = hn::Add(magnitude, hn::Add(odd, hn::Set(bits_tag, 0xfff)));
  const auto normal = hn::ShiftRight<13>(hn::Sub(rounded, hn::Set(bits_tag, (127 - 15) << 23)));
  // The last bit of a float at 0.5 is worth what the last bit of an fp16 subnormal is, so that the
  // addition rounds.
  const auto half = hn::Set(kFloats, 0.5f);
  const auto subnormal = hn::Sub(hn::BitCast(bits_tag, hn::Add(FloatOfBits(magnitude), half)),
                                 hn::BitCast(bits_tag, half));
  const auto is_subnormal = hn::Lt(magnitude, hn::Set(bits_tag, (127 - 14) << 23));
  const auto result =
      hn::Or(hn::ShiftRight<16>(sign), hn::IfThenElse(is_subnormal, subnormal, normal));
  const Narrow<uint16_t> half_tag;
  hn::StoreU(hn::DemoteTo(half_tag, hn::BitCast(signed_tag, result)), half_tag,
             reinterpret_cast<uint16_t*>(to));
}

#else

FloatVector Load(const float16_t* from) {
  return hn::PromoteTo(kFloats, hn::LoadU(Narrow<float16_t>(), from));
}

void Store(FloatVector value, float16_t* to) {
  const Narrow<float16_t> tag;
  hn::StoreU(hn::DemoteTo(tag, value), tag, to);
}

#endif

// ---- Finite fp32 to elements, to nearest even.

void Store(FloatVector value, float* to) { hn::StoreU(value, kFloats, to); }

// DemoteTo bfloat16_t in Highway 1.0.3 cuts the mantissa off.
void Store(FloatVector value, bfloat16_t* to) {
  const hn::RebindToUnsigned<Floats> bits_tag;
  const hn::RebindToSigned<Floats> signed_tag;
  const auto bits = hn::BitCast(bits_tag, value);
  const auto odd = hn::And(hn::ShiftRight<16>(bits), hn::Set(bits_tag, 1));
  const auto rounded = hn::Add(bits, hn::Add(odd, hn::Set(bits_tag, 0x7fff)));
  const Narrow<uint16_t> half_tag;
  const auto result = hn::DemoteTo(half_tag, hn::BitCast(signed_tag, hn::ShiftRight<16>(rounded)));
  hn::StoreU(result, half_tag, reinterpret_cast<uint16_t*>(to));
}

// The smallest magnitude that rounds to infinity.
float Limit(const float*) { return std::numeric_limits<float>::infinity(); }
float Limit(const float16_t*) { return 65520; }
float Limit(const bfloat16_t*) { return 0x1.ffp127f; }

// Converts one vector. Returns the lane of the first element that is not finite, or -1.
template <typename From, typename To>
intptr_t EncodeVector(const From* from, To* to) {
  const FloatVector value = Load(from);
  // NaN compares false.
  const auto finite = hn::Lt(hn::Abs(value), hn::Set(kFloats, Limit(to)));
  if (HWY_UNLIKELY(!hn::AllTrue(kFloats, finite))) {
    return hn::FindFirstTrue(kFloats, hn::Not(finite));
  }
  Store(value, to);
  return -1;
}

// Returns the index of the first element that is not finite, or `count`.
template <typename From, typename To>
size_t Encode(const From* from, size_t count, To* to) {
  const size_t lanes = hn::Lanes(kFloats);
  size_t i = 0;
  for (; i + lanes <= count; i += lanes) {
    const intptr_t lane = EncodeVector(from + i, to + i);
    if (HWY_UNLIKELY(lane >= 0)) return i + static_cast<size_t>(lane);
  }
  if (i == count) return count;
  HWY_ALIGN From from_end[hn::MaxLanes(Floats())] = {};
  HWY_ALIGN To to_end[hn::MaxLanes(Floats())];
  std::memcpy(from_end, from + i, (count - i) * sizeof(From));
  const intptr_t lane = EncodeVector(from_end, to_end);
  if (lane >= 0) return i + static_cast<size_t>(lane);
  std::memcpy(to + i, to_end, (count - i) * sizeof(To));
  return count;
}

// Copies elements of the same dtype. `exponent` has the bits that only NaN and infinity have all.
template <typename Bits>
size_t Copy(const Bits* from, Bits exponent, size_t count, Bits* to) {
  const hn::ScalableTag<Bits> tag;
  const size_t lanes = hn::Lanes(tag);
  const auto exponents = hn::Set(tag, exponent);
  size_t i = 0;
  for (; i + lanes <= count; i += lanes) {
    const auto bits = hn::LoadU(tag, from + i);
    const auto not_finite = hn::Eq(hn::And(bits, exponents), exponents);
    if (HWY_UNLIKELY(!hn::AllFalse(tag, not_finite))) break;
    hn::StoreU(bits, tag, to + i);
  }
  for (; i < count && (from[i] & exponent) != exponent; ++i) to[i] = from[i];
  return i;
}

template <typename From>
size_t EncodeFrom(const From* from, KvDtype to_dtype, size_t count, void* to) {
  switch (to_dtype) {
    case KvDtype::kFloat32:
      return Encode(from, count, static_cast<float*>(to));
    case KvDtype::kFloat16:
      return Encode(from, count, static_cast<float16_t*>(to));
    case KvDtype::kBfloat16:
      return Encode(from, count, static_cast<bfloat16_t*>(to));
  }
  return 0;
}

size_t CopyKv(const void* from, KvDtype dtype, size_t count, void* to) {
  if (dtype == KvDtype::kFloat32) {
    return Copy(static_cast<const uint32_t*>(from), uint32_t{0x7f800000}, count,
                static_cast<uint32_t*>(to));
  }
  const uint16_t exponent = dtype == KvDtype::kFloat16 ? 0x7c00 : 0x7f80;
  return Copy(static_cast<const uint16_t*>(from), exponent, count, static_cast<uint16_t*>(to));
}

size_t EncodeAny(const void* from, KvDtype from_dtype, KvDtype to_dtype, size_t count, void* to) {
  if (from_dtype == to_dtype) return CopyKv(from, from_dtype, count, to);
  switch (from_dtype) {
    case KvDtype::kFloat32:
      return EncodeFrom(static_cast<const float*>(from), to_dtype, count, to);
    case KvDtype::kFloat16:
      return EncodeFrom(static_cast<const float16_t*>(from), to_dtype, count, to);
    case KvDtype::kBfloat16:
      return EncodeFrom(static_cast<const bfloat16_t*>(from), to_dtype, count, to);
  }
  return 0;
}

template <typename From>
void Decode(const From* from, size_t count, float* to) {
  const size_t lanes = hn::Lanes(kFloats);
  size_t i = 0;
  for (; i + lanes <= count; i += lanes) Store(Load(from + i), to + i);
  if (i == count) return;
  HWY_ALIGN From from_end[hn::MaxLanes(Floats())] = {};
  HWY_ALIGN float to_end[hn::MaxLanes(Floats())];
  std::memcpy(from_end, from + i, (count - i) * sizeof(From));
  Store(Load(from_end), to_end);
  std::memcpy(to + i, to_end, (count - i) * sizeof(float));
}

void DecodeAny(const void* from, KvDtype from_dtype, size_t count, float* to) {
  switch (from_dtype) {
    case KvDtype::kFloat32:
      if (count > 0) std::memcpy(to, from, count * sizeof(float));
      return;
    case KvDtype::kFloat16:
      return Decode(static_cast<const float16_t*>(from), count, to);
    case KvDtype::kBfloat16:
      return Decode(static_cast<const bfloat16_t*>(from), count, to);
  }
}

}  // namespace
}  // namespace HWY_NAMESPACE
}  // namespace terrace
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace terrace {
namespace {

HWY_EXPORT(EncodeAny);
HWY_EXPORT(DecodeAny);

}  // namespace

std::optional<size_t> EncodeKv(const void* from, KvDtype from_dtype, KvDtype to_dtype, size_t count,
                               void* to) {
  const size_t finite = HWY_DYNAMIC_DISPATCH(EncodeAny)(from, from_dtype, to_dtype, count, to);
  if (finite == count) return std::nullopt;
  return finite;
}

void DecodeKv(const void* from, KvDtype from_dtype, size_t count, float* to) {
  HWY_DYNAMIC_DISPATCH(DecodeAny)(from, from_dtype, count, to);
}

}  // namespace terrace
#endif  // HWY_ONCE
