#include "runtime/ffn_kernels.h"

#include <cmath>
#include <cstring>
#include <vector>

#include "gtest/gtest.h"
#include "hwy/targets.h"
#include "index/kv_convert.h"
#include "tests/support/kv_samples.h"

namespace terrace {
namespace {

constexpr KvDtype kDtypes[] = {KvDtype::kFloat32, KvDtype::kFloat16, KvDtype::kBfloat16};
constexpr size_t kWidths[] = {1, 7, 8, 31, 32, 33, 64, 100, 256, 1001};

// Random weights as they are stored, and what they stand for.
struct Weights {
  Weights(size_t count, KvDtype dtype, uint64_t seed)
      : floats(NormalFloats(count, seed)), bytes(count * KvDtypeBytes(dtype)) {
    EncodeKv(floats.data(), KvDtype::kFloat32, dtype, count, bytes.data());
    DecodeKv(bytes.data(), dtype, count, floats.data());
  }
  std::vector<float> floats;
  std::vector<std::byte> bytes;
};

// Runs under every instruction set of this processor that the library has code for.
class FfnKernelsTest : public testing::TestWithParam<int64_t> {
 protected:
  void SetUp() override { hwy::SetSupportedTargetsForTest(GetParam()); }
  void TearDown() override { hwy::SetSupportedTargetsForTest(0); }
};

TEST_P(FfnKernelsTest, DotEqualsFloat64ForEveryWidthAndDtype) {
  for (const KvDtype dtype : kDtypes) {
    for (const size_t width : kWidths) {
      const Weights row(width, dtype, width);
      const std::vector<float> x = NormalFloats(5 * width, width + 1);
      std::vector<float> sums(5);
      DotTokens(dtype, row.bytes.data(), x.data(), width, width, absl::MakeSpan(sums));
      for (size_t t = 0; t < sums.size(); ++t) {
        double expected = 0, size = 0;
        for (size_t i = 0; i < width; ++i) {
          expected += double{row.floats[i]} * x[t * width + i];
          size += std::abs(double{row.floats[i]} * x[t * width + i]);
        }
        ASSERT_NEAR(sums[t], expected, 1e-6 * size) << KvDtypeName(dtype) << " " << width;
      }
    }
  }
}

TEST_P(FfnKernelsTest, DotOfATokenHasTheSameBitsWhateverItsCompanyIs) {
  constexpr size_t kWidth = 333;
  const Weights row(kWidth, KvDtype::kFloat16, 1);
  const std::vector<float> x = NormalFloats(6 * kWidth, 2);
  std::vector<float> together(6);
  DotTokens(KvDtype::kFloat16, row.bytes.data(), x.data(), kWidth, kWidth,
            absl::MakeSpan(together));
  for (size_t t = 0; t < together.size(); ++t) {
    float alone = 0;
    DotTokens(KvDtype::kFloat16, row.bytes.data(), x.data() + t * kWidth, kWidth, kWidth,
              absl::MakeSpan(&alone, 1));
    ASSERT_EQ(std::memcmp(&alone, &together[t], sizeof(alone)), 0) << "token " << t;
  }
}

TEST_P(FfnKernelsTest, AddedRowsEqualFloat64ForEveryWidthAndDtype) {
  for (const KvDtype dtype : kDtypes) {
    for (const size_t width : kWidths) {
      for (const size_t count : {0, 1, 5, 8, 9, 17}) {
        const Weights rows(count * width, dtype, width + count);
        const std::vector<float> scales = NormalFloats(count, 3);
        std::vector<const void*> pointers;
        for (size_t row = 0; row < count; ++row) {
          pointers.push_back(rows.bytes.data() + row * width * KvDtypeBytes(dtype));
        }
        std::vector<float> out = NormalFloats(width, 4);
        const std::vector<float> before = out;
        AddScaledRows(dtype, pointers, scales, width, out.data());
        for (size_t i = 0; i < width; ++i) {
          double expected = before[i], size = std::abs(before[i]);
          for (size_t row = 0; row < count; ++row) {
            const double term = double{scales[row]} * rows.floats[row * width + i];
            expected += term;
            size += std::abs(term);
          }
          ASSERT_NEAR(out[i], expected, 1e-6 * size) << KvDtypeName(dtype) << " " << width;
        }
      }
    }
  }
}

TEST_P(FfnKernelsTest, AddedRowsHaveTheSameBitsHoweverTheyAreCut) {
  constexpr size_t kWidth = 200, kRows = 21;
  const Weights rows(kRows * kWidth, KvDtype::kFloat16, 5);
  const std::vector<float> scales = NormalFloats(kRows, 6);
  std::vector<const void*> pointers, right;
  for (size_t row = 0; row < kRows; ++row) {
    pointers.push_back(rows.bytes.data() + row * kWidth * 2);
    right.push_back(rows.bytes.data() + (row * kWidth + 48) * 2);
  }
  std::vector<float> whole(kWidth, 1), cut(kWidth, 1);
  AddScaledRows(KvDtype::kFloat16, pointers, scales, kWidth, whole.data());
  const auto add = [&](size_t first, size_t count) {
    const absl::Span<const float> some = absl::MakeConstSpan(scales).subspan(first, count);
    AddScaledRows(KvDtype::kFloat16, absl::MakeConstSpan(pointers).subspan(first, count), some, 48,
                  cut.data());
    AddScaledRows(KvDtype::kFloat16, absl::MakeConstSpan(right).subspan(first, count), some,
                  kWidth - 48, cut.data() + 48);
  };
  add(0, 3);
  add(3, 11);
  add(14, kRows - 14);
  EXPECT_EQ(std::memcmp(whole.data(), cut.data(), kWidth * sizeof(float)), 0);
}

INSTANTIATE_TEST_SUITE_P(EveryTarget, FfnKernelsTest,
                         testing::ValuesIn(hwy::SupportedAndGeneratedTargets()),
                         [](const testing::TestParamInfo<int64_t>& info) {
                           return std::string(hwy::TargetName(info.param));
                         });

}  // namespace
}  // namespace terrace
