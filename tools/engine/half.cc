#include "tools/engine/half.h"

#include <bit>
#include <cmath>
#include <cstring>

namespace terrace {
namespace {

static_assert(std::endian::native == std::endian::little, "elements are copied as they lie");

constexpr uint32_t kFloatInfinity = 0x7f800000;

float FloatFromHalf(uint16_t half) {
  const uint32_t sign = static_cast<uint32_t>(half & 0x8000) << 16;
  const uint32_t exponent = (half >> 10) & 0x1f;
  const uint32_t mantissa = half & 0x3ff;
  if (exponent == 0) {
    const float magnitude = static_cast<float>(mantissa) * 0x1p-24f;
    return std::bit_cast<float>(std::bit_cast<uint32_t>(magnitude) | sign);
  }
  if (exponent == 0x1f) return std::bit_cast<float>(sign | kFloatInfinity | (mantissa << 13));
  return std::bit_cast<float>(sign | ((exponent + 112) << 23) | (mantissa << 13));
}

uint16_t HalfFromFloat(float value) {
  const uint32_t bits = std::bit_cast<uint32_t>(value);
  const auto sign = static_cast<uint16_t>((bits >> 16) & 0x8000);
  const uint32_t magnitude = bits & 0x7fffffff;
  if (magnitude > kFloatInfinity) return sign | 0x7e00;
  if (magnitude >= 0x477ff000) return sign | 0x7c00;  // 65520 and above
  if (magnitude < 0x38800000) {
    // Below 2^-14 the spacing is 2^-24: the sum has that as the unit of its last place, so the
    // processor rounds.
    const float sum = std::bit_cast<float>(magnitude) + 0.5f;
    return sign | static_cast<uint16_t>(std::bit_cast<uint32_t>(sum) - 0x3f000000);
  }
  // Half a unit less one, and one more when the kept part is odd: ties go to even.
  const uint32_t rounded = magnitude + 0xfff + ((magnitude >> 13) & 1);
  return sign | static_cast<uint16_t>((rounded >> 13) - (112u << 10));
}

uint16_t Bfloat16FromFloat(float value) {
  const uint32_t bits = std::bit_cast<uint32_t>(value);
  if (std::isnan(value)) return static_cast<uint16_t>((bits >> 16) | 0x40);
  return static_cast<uint16_t>((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

uint16_t LoadTwoBytes(const void* from, size_t index) {
  uint16_t bits;
  std::memcpy(&bits, static_cast<const char*>(from) + index * sizeof(bits), sizeof(bits));
  return bits;
}

void StoreTwoBytes(void* to, size_t index, uint16_t bits) {
  std::memcpy(static_cast<char*>(to) + index * sizeof(bits), &bits, sizeof(bits));
}

}  // namespace

void DecodeFloats(const void* from, KvDtype dtype, size_t count, float* to) {
  switch (dtype) {
    case KvDtype::kFloat32:
      if (count > 0) std::memcpy(to, from, count * sizeof(float));
      return;
    case KvDtype::kFloat16:
      for (size_t i = 0; i < count; ++i) to[i] = FloatFromHalf(LoadTwoBytes(from, i));
      return;
    case KvDtype::kBfloat16:
      for (size_t i = 0; i < count; ++i) {
        to[i] = std::bit_cast<float>(static_cast<uint32_t>(LoadTwoBytes(from, i)) << 16);
      }
      return;
  }
}

void EncodeFloats(const float* from, size_t count, KvDtype dtype, void* to) {
  switch (dtype) {
    case KvDtype::kFloat32:
      if (count > 0) std::memcpy(to, from, count * sizeof(float));
      return;
    case KvDtype::kFloat16:
      for (size_t i = 0; i < count; ++i) StoreTwoBytes(to, i, HalfFromFloat(from[i]));
      return;
    case KvDtype::kBfloat16:
      for (size_t i = 0; i < count; ++i) StoreTwoBytes(to, i, Bfloat16FromFloat(from[i]));
      return;
  }
}

}  // namespace terrace
