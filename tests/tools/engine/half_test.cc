#include "tools/engine/half.h"

#include <bit>
#include <cmath>
#include <limits>

#include "gtest/gtest.h"

namespace terrace {
namespace {

float Decode(uint16_t bits, KvDtype dtype) {
  float value = 0;
  DecodeFloats(&bits, dtype, 1, &value);
  return value;
}

uint16_t Encode(float value, KvDtype dtype) {
  uint16_t bits = 0;
  EncodeFloats(&value, 1, dtype, &bits);
  return bits;
}

class HalfTest : public ::testing::TestWithParam<KvDtype> {};

TEST_P(HalfTest, EveryValueSurvivesDecodingAndEncoding) {
  for (uint32_t bits = 0; bits < 0x10000; ++bits) {
    const float value = Decode(static_cast<uint16_t>(bits), GetParam());
    if (std::isnan(value)) {
      EXPECT_TRUE(std::isnan(Decode(Encode(value, GetParam()), GetParam())));
    } else {
      EXPECT_EQ(Encode(value, GetParam()), bits);
    }
  }
}

TEST_P(HalfTest, RoundsToTheNearestAndTiesToEven) {
  const uint16_t infinity = Encode(std::numeric_limits<float>::infinity(), GetParam());
  for (uint32_t bits = 0; bits + 1 < infinity; ++bits) {
    const float below = Decode(static_cast<uint16_t>(bits), GetParam());
    const float above = Decode(static_cast<uint16_t>(bits + 1), GetParam());
    const auto middle = static_cast<float>((static_cast<double>(below) + above) / 2);
    ASSERT_EQ(Encode(middle, GetParam()), bits % 2 == 0 ? bits : bits + 1) << middle;
    if (middle == below) continue;  // too fine for fp32 itself
    ASSERT_EQ(Encode(std::nextafter(middle, below), GetParam()), bits);
    ASSERT_EQ(Encode(std::nextafter(middle, above), GetParam()), bits + 1);
    ASSERT_EQ(Encode(-std::nextafter(middle, above), GetParam()), (bits + 1) | 0x8000);
  }
}

INSTANTIATE_TEST_SUITE_P(Dtypes, HalfTest, ::testing::Values(KvDtype::kFloat16, KvDtype::kBfloat16),
                         [](const auto& info) { return std::string(KvDtypeName(info.param)); });

TEST(HalfValuesTest, AreThoseOfTheStandard) {
  EXPECT_EQ(Decode(0x3c00, KvDtype::kFloat16), 1.0f);
  EXPECT_EQ(Decode(0xc000, KvDtype::kFloat16), -2.0f);
  EXPECT_EQ(Decode(0x7bff, KvDtype::kFloat16), 65504.0f);
  EXPECT_EQ(Decode(0x0001, KvDtype::kFloat16), 0x1p-24f);
  EXPECT_EQ(Decode(0x03ff, KvDtype::kFloat16), 1023 * 0x1p-24f);
  EXPECT_EQ(Decode(0x7c00, KvDtype::kFloat16), std::numeric_limits<float>::infinity());
  EXPECT_EQ(Encode(65519.0f, KvDtype::kFloat16), 0x7bff);
  EXPECT_EQ(Encode(65520.0f, KvDtype::kFloat16), 0x7c00);
  EXPECT_EQ(Encode(1e-10f, KvDtype::kFloat16), 0);
  EXPECT_EQ(Decode(0x3f80, KvDtype::kBfloat16), 1.0f);
  EXPECT_EQ(Encode(std::numeric_limits<float>::max(), KvDtype::kBfloat16), 0x7f80);
}

}  // namespace
}  // namespace terrace
