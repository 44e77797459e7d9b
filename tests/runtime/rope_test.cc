#include "runtime/rope.h"

#include <cmath>
#include <cstdint>
#include <limits>
#include <numbers>
#include <random>
#include <string>
#include <vector>

#include "gtest/gtest.h"
#include "io/check.h"
#include "tests/support/kv_samples.h"

namespace terrace {
namespace {

Rope MakeRope(size_t head_dim, const RopeOptions& options = {}) {
  absl::StatusOr<Rope> rope = Rope::Create(head_dim, options);
  TERRACE_CHECK(rope.ok());
  return *std::move(rope);
}

std::vector<float> Rotated(const Rope& rope, int64_t position, std::vector<float> rows) {
  rope.RotateTokens(position, rows.size() / rope.head_dim(), absl::MakeSpan(rows));
  return rows;
}

double Dot(const std::vector<float>& a, const std::vector<float>& b) {
  double dot = 0;
  for (size_t i = 0; i < a.size(); ++i) dot += double{a[i]} * double{b[i]};
  return dot;
}

// By the definition, in long double.
std::vector<double> Expected(const std::vector<double>& frequencies, int64_t position,
                             const std::vector<float>& row) {
  const size_t half = frequencies.size();
  std::vector<double> expected(2 * half);
  for (size_t i = 0; i < half; ++i) {
    const long double angle = static_cast<long double>(position) * frequencies[i];
    const auto cosine = static_cast<double>(std::cos(angle));
    const auto sine = static_cast<double>(std::sin(angle));
    expected[i] = row[i] * cosine - row[half + i] * sine;
    expected[half + i] = row[half + i] * cosine + row[i] * sine;
  }
  return expected;
}

TEST(RopeTest, FrequenciesAreThePowersOfTheta) {
  const Rope rope = MakeRope(128, {.theta = 500000});
  ASSERT_EQ(rope.frequencies().size(), 64);
  EXPECT_EQ(rope.head_dim(), 128);
  for (size_t i = 0; i < 64; ++i) {
    const double expected = std::exp(-std::log(500000.0) * static_cast<double>(i) / 64);
    EXPECT_NEAR(rope.frequencies()[i], expected, 1e-12 * expected);
  }
}

TEST(RopeTest, PositionZeroChangesNothing) {
  const std::vector<float> row = NormalFloats(64, 1);
  EXPECT_EQ(Rotated(MakeRope(64), 0, row), row);
}

TEST(RopeTest, RotationFollowsItsDefinitionUpToPositionsOfTensOfMillions) {
  const Rope rope = MakeRope(128);
  const std::vector<double> frequencies(rope.frequencies().begin(), rope.frequencies().end());
  const std::vector<float> row = NormalFloats(128, 2);
  for (const int64_t position : {1, 2, 1000, 131072, 1000003, 10000000, 99999999}) {
    const std::vector<double> expected = Expected(frequencies, position, row);
    const std::vector<float> rotated = Rotated(rope, position, row);
    for (size_t i = 0; i < row.size(); ++i) {
      ASSERT_NEAR(rotated[i], expected[i], 2e-6) << "position " << position << " element " << i;
    }
  }
}

TEST(RopeTest, RotationsAddUp) {
  std::mt19937_64 random(3);
  for (const size_t head_dim : {2, 64, 128, 1024}) {
    const Rope rope = MakeRope(head_dim);
    const std::vector<float> row = NormalFloats(head_dim, head_dim);
    for (int i = 0; i < 20; ++i) {
      const auto p = static_cast<int64_t>(random() % 10000000);
      const auto q = static_cast<int64_t>(random() % 10000000);
      const std::vector<float> twice = Rotated(rope, q, Rotated(rope, p, row));
      const std::vector<float> once = Rotated(rope, p + q, row);
      const std::vector<float> back = Rotated(rope, -p, Rotated(rope, p, row));
      for (size_t j = 0; j < head_dim; ++j) {
        ASSERT_NEAR(twice[j], once[j], 5e-6) << p << " + " << q;
        ASSERT_NEAR(back[j], row[j], 5e-6) << p;
      }
    }
  }
}

TEST(RopeTest, DotProductsDependOnTheDistanceAlone) {
  const Rope rope = MakeRope(128, {.theta = 500000});
  const std::vector<float> query = NormalFloats(128, 4);
  const std::vector<float> key = NormalFloats(128, 5);
  for (const int64_t distance : {0, 1, 77, 4096, 1000000}) {
    const double expected = Dot(Rotated(rope, distance, query), key);
    for (const int64_t position : {1, 500, 131072, 10000000}) {
      const double dot =
          Dot(Rotated(rope, position + distance, query), Rotated(rope, position, key));
      EXPECT_NEAR(dot, expected, 1e-4) << "distance " << distance << " at " << position;
    }
  }
}

TEST(RopeTest, EveryTokenAndHeadOfARowIsRotatedByItsOwnPosition) {
  constexpr size_t kHeadDim = 16;
  constexpr size_t kHeads = 3;
  const Rope rope = MakeRope(kHeadDim);
  const std::vector<float> rows = NormalFloats(5 * kHeads * kHeadDim, 6);
  std::vector<float> rotated = rows;
  rope.RotateTokens(1000, kHeads, absl::MakeSpan(rotated));
  for (size_t at = 0; at < rows.size(); at += kHeadDim) {
    const std::vector<float> row(rows.begin() + at, rows.begin() + at + kHeadDim);
    const std::vector<float> expected =
        Rotated(rope, 1000 + static_cast<int64_t>(at / (kHeads * kHeadDim)), row);
    for (size_t i = 0; i < kHeadDim; ++i) ASSERT_EQ(rotated[at + i], expected[i]) << at + i;
  }
}

TEST(RopeTest, LinearScalingIsAPositionDividedByTheFactor) {
  const Rope plain = MakeRope(64);
  const Rope scaled = MakeRope(64, {.scaling = RopeOptions::Scaling::kLinear, .factor = 4});
  const std::vector<float> row = NormalFloats(64, 7);
  const std::vector<float> expected = Rotated(plain, 250, row);
  const std::vector<float> actual = Rotated(scaled, 1000, row);
  for (size_t i = 0; i < row.size(); ++i) EXPECT_NEAR(actual[i], expected[i], 1e-6);
}

// The rule of Llama 3.1 in terms of wavelengths, as its authors state it.
TEST(RopeTest, Llama3ScalingFollowsThePublishedRule) {
  const RopeOptions options = {.theta = 500000,
                               .scaling = RopeOptions::Scaling::kLlama3,
                               .factor = 8,
                               .low_frequency_factor = 1,
                               .high_frequency_factor = 4,
                               .original_context = 8192};
  const Rope rope = MakeRope(128, options);
  size_t kept = 0;
  size_t divided = 0;
  for (size_t i = 0; i < 64; ++i) {
    const double frequency = 1 / std::pow(500000.0, static_cast<double>(2 * i) / 128);
    const double wavelength = 2 * std::numbers::pi / frequency;
    double expected = frequency;
    if (wavelength > 8192.0 / 1) {
      expected = frequency / 8;
      ++divided;
    } else if (wavelength >= 8192.0 / 4) {
      const double smooth = (8192.0 / wavelength - 1) / (4.0 - 1);
      expected = (1 - smooth) * frequency / 8 + smooth * frequency;
    } else {
      ++kept;
    }
    EXPECT_NEAR(rope.frequencies()[i], expected, 1e-12 * expected) << i;
  }
  // The three branches of the rule were all taken.
  EXPECT_GT(kept, 20);
  EXPECT_GT(divided, 20);
  EXPECT_LT(kept + divided, 64);
}

TEST(RopeTest, RefusesHeadsThatHaveNoHalves) {
  for (const size_t head_dim : {0, 1, 63, 1026}) {
    const absl::Status status = Rope::Create(head_dim, {}).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << head_dim;
    EXPECT_NE(status.message().find("head_dim"), std::string::npos) << status;
  }
}

TEST(RopeTest, ValidationNamesTheFieldAndItsValue) {
  constexpr double kInfinity = std::numeric_limits<double>::infinity();
  using Scaling = RopeOptions::Scaling;
  struct Case {
    RopeOptions options;
    std::string field;
    std::string value;
  };
  const Case cases[] = {
      {{.theta = 1}, "rope.theta", "1"},
      {{.theta = std::nan("")}, "rope.theta", "nan"},
      {{.theta = kInfinity}, "rope.theta", "inf"},
      {{.scaling = Scaling::kLinear, .factor = 0}, "rope.factor", "0"},
      {{.scaling = Scaling::kLinear, .factor = -2}, "rope.factor", "-2"},
      {{.scaling = Scaling::kLlama3, .low_frequency_factor = 0}, "rope.low_frequency_factor", "0"},
      {{.scaling = Scaling::kLlama3, .low_frequency_factor = 4, .high_frequency_factor = 3},
       "rope.high_frequency_factor",
       "3"},
      {{.scaling = Scaling::kLlama3, .original_context = -8192}, "rope.original_context", "-8192"},
  };
  for (const Case& c : cases) {
    const absl::Status status = c.options.Validate();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << c.field;
    EXPECT_NE(status.message().find(c.field + ": " + c.value), std::string::npos) << status;
    EXPECT_EQ(Rope::Create(64, c.options).status(), status);
  }
  EXPECT_TRUE(RopeOptions().Validate().ok());
  // Fields of another scaling are not looked at.
  EXPECT_TRUE((RopeOptions{.original_context = -1}).Validate().ok());
}

}  // namespace
}  // namespace terrace
