#include "index/kv_convert.h"

#include <bit>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <optional>
#include <random>
#include <string>
#include <vector>

#include "gtest/gtest.h"
#include "hwy/targets.h"

namespace terrace {
namespace {

// What 16 bits stand for, worked out from the definition of the format.
double Value(uint16_t bits, KvDtype dtype) {
  const int mantissa_bits = dtype == KvDtype::kFloat16 ? 10 : 7;
  const int exponent_bits = 15 - mantissa_bits;
  const int all_ones = (1 << exponent_bits) - 1;
  const int bias = all_ones / 2;
  const int exponent = (bits >> mantissa_bits) & all_ones;
  const int mantissa = bits & ((1 << mantissa_bits) - 1);
  const double sign = (bits & 0x8000) != 0 ? -1 : 1;
  if (exponent == all_ones) {
    return mantissa == 0 ? sign * std::numeric_limits<double>::infinity() : std::nan("");
  }
  if (exponent == 0) return sign * std::ldexp(mantissa, 1 - bias - mantissa_bits);
  return sign * std::ldexp((1 << mantissa_bits) + mantissa, exponent - bias - mantissa_bits);
}

constexpr KvDtype kHalves[] = {KvDtype::kFloat16, KvDtype::kBfloat16};
constexpr KvDtype kDtypes[] = {KvDtype::kFloat32, KvDtype::kFloat16, KvDtype::kBfloat16};

std::vector<uint16_t> AllBits() {
  std::vector<uint16_t> bits(65536);
  for (size_t i = 0; i < bits.size(); ++i) bits[i] = static_cast<uint16_t>(i);
  return bits;
}

// Every instruction set of this processor that the library has code for.
class KvConvertTest : public testing::TestWithParam<int64_t> {
 protected:
  void SetUp() override { hwy::SetSupportedTargetsForTest(GetParam()); }
  void TearDown() override { hwy::SetSupportedTargetsForTest(0); }
};

TEST_P(KvConvertTest, DecodesEveryValueExactly) {
  const std::vector<uint16_t> bits = AllBits();
  std::vector<float> decoded(bits.size());
  for (const KvDtype dtype : kHalves) {
    DecodeKv(bits.data(), dtype, bits.size(), decoded.data());
    for (size_t i = 0; i < bits.size(); ++i) {
      const double expected = Value(bits[i], dtype);
      if (std::isnan(expected)) {
        ASSERT_TRUE(std::isnan(decoded[i])) << KvDtypeName(dtype) << " " << i;
      } else {
        ASSERT_EQ(decoded[i], expected) << KvDtypeName(dtype) << " " << i;
        ASSERT_EQ(std::signbit(decoded[i]), std::signbit(expected));
      }
    }
  }
}

TEST_P(KvConvertTest, EveryFiniteValueSurvivesTheWayThroughFp32) {
  for (const KvDtype dtype : kHalves) {
    std::vector<uint16_t> bits;
    for (const uint16_t candidate : AllBits()) {
      if (std::isfinite(Value(candidate, dtype))) bits.push_back(candidate);
    }
    std::vector<float> wide(bits.size());
    std::vector<uint16_t> narrow(bits.size());
    EXPECT_EQ(EncodeKv(bits.data(), dtype, KvDtype::kFloat32, bits.size(), wide.data()),
              std::nullopt);
    EXPECT_EQ(EncodeKv(wide.data(), KvDtype::kFloat32, dtype, bits.size(), narrow.data()),
              std::nullopt);
    EXPECT_EQ(narrow, bits) << KvDtypeName(dtype);
  }
}

// Between any two neighbours: the middle goes to the even one, all else to the nearer one.
TEST_P(KvConvertTest, RoundsToNearestAndTiesToEven) {
  for (const KvDtype dtype : kHalves) {
    const uint16_t highest = dtype == KvDtype::kFloat16 ? 0x7bff : 0x7f7f;
    std::vector<float> values;
    std::vector<uint16_t> expected;
    for (uint16_t low = 0; low < highest; ++low) {
      const uint16_t high = static_cast<uint16_t>(low + 1);
      const float middle = static_cast<float>((Value(low, dtype) + Value(high, dtype)) / 2);
      values.insert(values.end(), {std::nextafter(middle, 0.0f), middle,
                                   std::nextafter(middle, INFINITY), -middle});
      const uint16_t even = low % 2 == 0 ? low : high;
      expected.insert(expected.end(), {low, even, high, static_cast<uint16_t>(0x8000 | even)});
    }
    std::vector<uint16_t> encoded(values.size());
    ASSERT_EQ(EncodeKv(values.data(), KvDtype::kFloat32, dtype, values.size(), encoded.data()),
              std::nullopt);
    for (size_t i = 0; i < values.size(); ++i) {
      ASSERT_EQ(encoded[i], expected[i]) << KvDtypeName(dtype) << " " << values[i];
    }
  }
}

TEST_P(KvConvertTest, ReportsTheFirstElementThatIsNotFiniteAtAnyPositionAndLength) {
  const float infinity = std::numeric_limits<float>::infinity();
  struct Case {
    KvDtype dtype;
    float highest_that_fits;
    float lowest_that_does_not;
  };
  const Case cases[] = {
      {KvDtype::kFloat32, std::numeric_limits<float>::max(), infinity},
      {KvDtype::kFloat16, std::nextafter(65520.0f, 0.0f), 65520.0f},
      {KvDtype::kBfloat16, std::nextafter(0x1.ffp127f, 0.0f), 0x1.ffp127f},
  };
  for (const Case& c : cases) {
    for (size_t count = 0; count < 70; ++count) {
      std::vector<float> values(count, -c.highest_that_fits);
      std::vector<float> encoded(count);
      ASSERT_EQ(EncodeKv(values.data(), KvDtype::kFloat32, c.dtype, count, encoded.data()),
                std::nullopt);
      for (size_t bad = 0; bad < count; ++bad) {
        for (const float bad_value : {c.lowest_that_does_not, -infinity, std::nanf("")}) {
          values[bad] = bad_value;
          ASSERT_EQ(EncodeKv(values.data(), KvDtype::kFloat32, c.dtype, count, encoded.data()), bad)
              << KvDtypeName(c.dtype) << " " << bad_value << " of " << count;
        }
        values[bad] = c.highest_that_fits;
      }
      // Of two the first counts.
      if (count < 2) continue;
      values[count - 1] = infinity;
      values[count - 2] = infinity;
      EXPECT_EQ(EncodeKv(values.data(), KvDtype::kFloat32, c.dtype, count, encoded.data()),
                count - 2);
    }
  }
}

TEST_P(KvConvertTest, ReportsEveryHalfThatIsNotFinite) {
  for (const KvDtype from : kHalves) {
    for (const KvDtype to : kDtypes) {
      for (const uint16_t bits : AllBits()) {
        const double value = Value(bits, from);
        float encoded;
        const double limit = to == KvDtype::kFloat16 ? 65520 : INFINITY;
        const bool finite = std::abs(value) < limit;
        ASSERT_EQ(EncodeKv(&bits, from, to, 1, &encoded).has_value(), !finite)
            << KvDtypeName(from) << " to " << KvDtypeName(to) << " " << bits;
      }
    }
  }
}

TEST_P(KvConvertTest, EqualDtypesCopyTheBitsOfAnyLengthAndNothingBeyond) {
  std::mt19937 random(1);
  for (const KvDtype dtype : kDtypes) {
    const size_t bytes = KvDtypeBytes(dtype);
    for (size_t count = 0; count < 100; ++count) {
      std::vector<float> values(count);
      for (float& value : values) value = static_cast<float>(random() % 4096) / 512 - 4;
      std::vector<float> from(count + 1);
      ASSERT_EQ(EncodeKv(values.data(), KvDtype::kFloat32, dtype, count, from.data()),
                std::nullopt);
      std::vector<char> to(count * bytes + 8, 'x');
      ASSERT_EQ(EncodeKv(from.data(), dtype, dtype, count, to.data()), std::nullopt);
      EXPECT_EQ(std::memcmp(from.data(), to.data(), count * bytes), 0);
      EXPECT_EQ(std::string(to.end() - 8, to.end()), "xxxxxxxx");
    }
  }
}

TEST_P(KvConvertTest, HalvesConvertIntoEachOtherThroughTheirValue) {
  const std::vector<uint16_t> bits = AllBits();
  for (const uint16_t half : bits) {
    const double value = Value(half, KvDtype::kFloat16);
    uint16_t brain;
    if (EncodeKv(&half, KvDtype::kFloat16, KvDtype::kBfloat16, 1, &brain).has_value()) continue;
    const float wide = static_cast<float>(value);
    uint16_t expected;
    ASSERT_EQ(EncodeKv(&wide, KvDtype::kFloat32, KvDtype::kBfloat16, 1, &expected), std::nullopt);
    ASSERT_EQ(brain, expected) << half;
  }
}

INSTANTIATE_TEST_SUITE_P(Targets, KvConvertTest,
                         testing::ValuesIn(hwy::SupportedAndGeneratedTargets()),
                         [](const testing::TestParamInfo<int64_t>& target) {
                           return std::string(hwy::TargetName(target.param));
                         });

}  // namespace
}  // namespace terrace
