#include "runtime/attention.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include "gtest/gtest.h"
#include "hwy/targets.h"
#include "tests/support/kv_samples.h"
#include "tests/support/reference_attention.h"

namespace terrace {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr KvDtype kDtypes[] = {KvDtype::kFloat32, KvDtype::kFloat16, KvDtype::kBfloat16};
// The promise is 1e-3. Inputs are rounded before both sides see them, so that what remains are the
// rounding errors of fp32 sums.
constexpr double kTolerance = 2e-5;

AttentionAccumulator MakeAccumulator(size_t rows, size_t head_dim) {
  absl::StatusOr<AttentionAccumulator> made = AttentionAccumulator::Create(rows, head_dim);
  TERRACE_CHECK(made.ok());
  return *std::move(made);
}

struct Result {
  std::vector<float> out;
  std::vector<float> lse;
};

Result Finish(AttentionAccumulator& accumulator) {
  Result result = {.out = std::vector<float>(accumulator.rows() * accumulator.head_dim(), NAN),
                   .lse = std::vector<float>(accumulator.rows(), NAN)};
  accumulator.Finish(absl::MakeSpan(result.out), absl::MakeSpan(result.lse));
  return result;
}

// Errors are relative to the length of the row's result, or to the values where they cancel out.
void ExpectNear(const Result& actual, const ReferenceResult& expected, size_t head_dim,
                double tolerance = kTolerance) {
  ASSERT_EQ(actual.lse.size(), expected.lse.size());
  for (size_t row = 0; row < expected.lse.size(); ++row) {
    if (std::isinf(expected.lse[row])) {
      ASSERT_EQ(actual.lse[row], -kInfinity) << "row " << row;
    } else {
      ASSERT_NEAR(actual.lse[row], expected.lse[row],
                  tolerance * std::max(1.0, std::abs(expected.lse[row])))
          << "row " << row;
    }
    double norm = 0;
    for (size_t i = 0; i < head_dim; ++i) {
      norm = std::max(norm, std::abs(expected.out[row * head_dim + i]));
    }
    for (size_t i = 0; i < head_dim; ++i) {
      ASSERT_NEAR(actual.out[row * head_dim + i], expected.out[row * head_dim + i],
                  tolerance * std::max(norm, 0.01))
          << "row " << row << " element " << i;
    }
  }
}

// Runs under every instruction set of this processor that the library has code for.
class AttentionTest : public testing::TestWithParam<int64_t> {
 protected:
  void SetUp() override { hwy::SetSupportedTargetsForTest(GetParam()); }
  void TearDown() override { hwy::SetSupportedTargetsForTest(0); }
};

TEST_P(AttentionTest, EqualsTheReferenceForEveryShapeAndDtype) {
  for (const size_t head_dim : {8, 16, 24, 40, 64, 72, 80, 96, 128, 200, 256, 512}) {
    for (const size_t rows : {1, 2, 3, 4, 5, 7, 8, 9, 13, 33}) {
      for (const KvDtype dtype : kDtypes) {
        const size_t tokens = 1 + (head_dim * 7 + rows * 13) % 130;
        SCOPED_TRACE(testing::Message() << "head_dim " << head_dim << " rows " << rows << " tokens "
                                        << tokens << " " << KvDtypeName(dtype));
        const KvSample sample = KvSample::Random(tokens, head_dim, dtype, tokens);
        const std::vector<float> queries = NormalFloats(rows * head_dim, 7);
        AttentionAccumulator accumulator = MakeAccumulator(rows, head_dim);
        accumulator.Reset(queries);
        accumulator.Add(sample.run());
        const ReferenceRun reference[] = {{sample.run()}};
        ExpectNear(Finish(accumulator), ReferenceAttention(head_dim, queries, reference), head_dim);
        if (HasFatalFailure()) return;
      }
    }
  }
}

TEST_P(AttentionTest, EveryRunLengthIsWhole) {
  constexpr size_t kHeadDim = 32;
  for (const KvDtype dtype : kDtypes) {
    for (const size_t rows : {1, 4, 12}) {
      const std::vector<float> queries = NormalFloats(rows * kHeadDim, 3);
      for (size_t tokens = 0; tokens < 100; ++tokens) {
        const KvSample sample = KvSample::Random(tokens, kHeadDim, dtype, tokens);
        AttentionAccumulator accumulator = MakeAccumulator(rows, kHeadDim);
        accumulator.Reset(queries);
        accumulator.Add(sample.run());
        const ReferenceRun reference[] = {{sample.run()}};
        ExpectNear(Finish(accumulator), ReferenceAttention(kHeadDim, queries, reference), kHeadDim);
        if (HasFatalFailure()) return;
      }
    }
  }
}

// Runs of mixed dtypes and layouts, whatever way the tokens are cut, with masks that hide whole
// tiles, parts of them, and everything.
TEST_P(AttentionTest, RunsWithMasksAndStridesAddUp) {
  constexpr size_t kHeadDim = 64;
  for (uint64_t seed = 0; seed < 30; ++seed) {
    SCOPED_TRACE(testing::Message() << "seed " << seed);
    std::mt19937_64 random(seed);
    const size_t rows = 1 + random() % 20;
    const std::vector<float> queries = NormalFloats(rows * kHeadDim, seed);
    AttentionAccumulator accumulator = MakeAccumulator(rows + random() % 3, kHeadDim);
    accumulator.Reset(queries);
    std::vector<KvSample> samples;
    std::vector<std::vector<size_t>> visible(6);
    std::vector<ReferenceRun> reference;
    for (size_t i = 0; i < visible.size(); ++i) {
      const size_t tokens = random() % 150;
      samples.push_back(KvSample::Random(tokens, kHeadDim, kDtypes[random() % 3], seed * 10 + i,
                                         random() % 2 == 0));
      if (random() % 4 != 0) {
        for (size_t row = 0; row < rows; ++row) visible[i].push_back(random() % (tokens + 20));
        if (random() % 4 == 0) visible[i].assign(rows, 0);
      }
      accumulator.Add(samples.back().run(), visible[i]);
      reference.push_back({samples.back().run(), visible[i]});
    }
    ExpectNear(Finish(accumulator), ReferenceAttention(kHeadDim, queries, reference), kHeadDim);
    if (HasFatalFailure()) return;
  }
}

TEST_P(AttentionTest, CausalChunkOfAPromptEqualsTheReference) {
  constexpr size_t kHeadDim = 128;
  constexpr size_t kGroup = 4;
  constexpr size_t kTokens = 100;
  const std::vector<float> queries = NormalFloats(kTokens * kGroup * kHeadDim, 5);
  std::vector<size_t> visible;
  for (size_t row = 0; row < kTokens * kGroup; ++row) visible.push_back(row / kGroup + 1);
  const KvSample past = KvSample::Random(300, kHeadDim, KvDtype::kFloat16, 1);
  const KvSample chunk = KvSample::Random(kTokens, kHeadDim, KvDtype::kFloat16, 2);
  AttentionAccumulator accumulator = MakeAccumulator(visible.size(), kHeadDim);
  accumulator.Reset(queries);
  accumulator.Add(past.run());
  accumulator.Add(chunk.run(), visible);
  const ReferenceRun reference[] = {{past.run()}, {chunk.run(), visible}};
  ExpectNear(Finish(accumulator), ReferenceAttention(kHeadDim, queries, reference), kHeadDim);
}

TEST_P(AttentionTest, HugeScoresNeverGiveNan) {
  constexpr size_t kHeadDim = 16;
  for (const float size : {1e2f, 1e4f, 1e19f, 1e38f}) {
    for (const size_t tokens : {1, 31, 64, 200}) {
      const std::vector<float> keys = NormalFloats(tokens * kHeadDim, 1, size / 8);
      const std::vector<float> values = NormalFloats(tokens * kHeadDim, 2);
      const KvSample sample(keys, values, kHeadDim, KvDtype::kFloat32);
      const std::vector<float> queries = NormalFloats(6 * kHeadDim, 3, size / 8);
      AttentionAccumulator accumulator = MakeAccumulator(6, kHeadDim);
      accumulator.Reset(queries);
      accumulator.Add(sample.run());
      const Result result = Finish(accumulator);
      for (const float value : result.out) ASSERT_TRUE(std::abs(value) < 10) << size;
      for (const float lse : result.lse) ASSERT_TRUE(std::isfinite(lse)) << size;
      std::vector<float> mass(tokens, 0);
      accumulator.AddColumnMass(sample.run(), {}, result.lse, absl::MakeSpan(mass));
      for (const float value : mass) ASSERT_TRUE(value >= 0 && value <= 7) << value;
    }
  }
}

// Scores that grow with every token, fall, are all equal, or have one outlier of 1e4 and more.
TEST_P(AttentionTest, AdversarialScoresEqualTheReference) {
  constexpr size_t kHeadDim = 64;
  constexpr size_t kTokens = 500;
  const std::vector<float> values = NormalFloats(kTokens * kHeadDim, 2);
  const std::vector<float> queries(4 * kHeadDim, 1.0f);
  for (const KvDtype dtype : kDtypes) {
    for (int shape = 0; shape < 5; ++shape) {
      SCOPED_TRACE(testing::Message() << KvDtypeName(dtype) << " shape " << shape);
      std::vector<float> keys(kTokens * kHeadDim);
      for (size_t token = 0; token < kTokens; ++token) {
        const float position = static_cast<float>(token);
        const float score[] = {position, -position, 8.0f, token == 321 ? 16384.0f : -16384.0f,
                               token % 7 == 0 ? 20000.0f : 0.0f};
        for (size_t i = 0; i < kHeadDim; ++i) {
          keys[token * kHeadDim + i] = score[shape] / 8;
        }
      }
      const KvSample sample(keys, values, kHeadDim, dtype);
      AttentionAccumulator accumulator = MakeAccumulator(4, kHeadDim);
      accumulator.Reset(queries);
      accumulator.Add(sample.run());
      const ReferenceRun reference[] = {{sample.run()}};
      ExpectNear(Finish(accumulator), ReferenceAttention(kHeadDim, queries, reference), kHeadDim);
      if (HasFatalFailure()) return;
    }
  }
}

TEST_P(AttentionTest, OneTokenGivesItsValueAndItsScore) {
  constexpr size_t kHeadDim = 8;
  const std::vector<float> keys(kHeadDim, 2.0f);
  const std::vector<float> values = {1, 2, 3, 4, 5, 6, 7, 8};
  const KvSample sample(keys, values, kHeadDim, KvDtype::kBfloat16);
  AttentionAccumulator accumulator = MakeAccumulator(1, kHeadDim);
  accumulator.Reset(std::vector<float>(kHeadDim, 0.5f));
  accumulator.Add(sample.run());
  const Result result = Finish(accumulator);
  EXPECT_EQ(result.out, values);
  EXPECT_NEAR(result.lse[0], 8 / std::sqrt(8.0f), 1e-5);
}

TEST_P(AttentionTest, NothingSeenGivesZerosAndMinusInfinity) {
  constexpr size_t kHeadDim = 16;
  const KvSample sample = KvSample::Random(40, kHeadDim, KvDtype::kFloat16, 1);
  AttentionAccumulator accumulator = MakeAccumulator(3, kHeadDim);
  accumulator.Reset(NormalFloats(3 * kHeadDim, 1));
  Result result = Finish(accumulator);
  EXPECT_EQ(result.out, std::vector<float>(3 * kHeadDim, 0));
  EXPECT_EQ(result.lse, std::vector<float>(3, -kInfinity));
  accumulator.Add(sample.run(), std::vector<size_t>{0, 0, 0});
  accumulator.Add(KvRun{});
  result = Finish(accumulator);
  EXPECT_EQ(result.out, std::vector<float>(3 * kHeadDim, 0));
  EXPECT_EQ(result.lse, std::vector<float>(3, -kInfinity));
}

TEST_P(AttentionTest, RunLseIsThatOfTheRunAlone) {
  constexpr size_t kHeadDim = 64;
  constexpr size_t kRows = 5;
  const std::vector<float> queries = NormalFloats(kRows * kHeadDim, 1);
  AttentionAccumulator accumulator = MakeAccumulator(kRows, kHeadDim);
  accumulator.Reset(queries);
  std::vector<KvSample> samples;
  std::vector<ReferenceRun> all;
  // The second is longer than what is settled at once, the third all but vanishes beside the rest.
  for (const size_t tokens : {100, 9000, 50}) {
    const float deviation = tokens == 50 ? 0.0f : 1.0f;
    samples.emplace_back(NormalFloats(tokens * kHeadDim, tokens, deviation),
                         NormalFloats(tokens * kHeadDim, 2), kHeadDim, KvDtype::kFloat16);
  }
  const std::vector<size_t> visible = {0, 10, 20, 30, 100};
  for (size_t i = 0; i < samples.size(); ++i) {
    all.push_back({samples[i].run()});
    if (i == 0) all.back().visible = visible;
    std::vector<float> lse(kRows, NAN);
    accumulator.AddWithLse(all[i].run, all[i].visible, absl::MakeSpan(lse));
    const ReferenceResult expected = ReferenceAttention(kHeadDim, queries, {&all[i], 1});
    for (size_t row = 0; row < kRows; ++row) {
      if (std::isinf(expected.lse[row])) {
        EXPECT_EQ(lse[row], -kInfinity);
      } else {
        EXPECT_NEAR(lse[row], expected.lse[row], 1e-4) << "run " << i << " row " << row;
      }
    }
  }
  ExpectNear(Finish(accumulator), ReferenceAttention(kHeadDim, queries, all), kHeadDim);
}

// A million tokens of equal weight: each one counts.
TEST_P(AttentionTest, LongContextsKeepTheirPrecision) {
  constexpr size_t kHeadDim = 8;
  const std::vector<float> keys(4096 * kHeadDim, 0.1f);
  const std::vector<float> values(4096 * kHeadDim, 0.1f);
  const KvSample sample(keys, values, kHeadDim, KvDtype::kFloat32);
  AttentionAccumulator accumulator = MakeAccumulator(1, kHeadDim);
  accumulator.Reset(std::vector<float>(kHeadDim, 1.0f));
  for (int i = 0; i < 300; ++i) accumulator.Add(sample.run());
  const Result result = Finish(accumulator);
  for (const float value : result.out) EXPECT_NEAR(value, 0.1, 1e-5);
  EXPECT_NEAR(result.lse[0], std::log(300 * 4096.0) + 0.8 / std::sqrt(8.0), 1e-4);
}

TEST_P(AttentionTest, ResultsCanBeReadBetweenRuns) {
  constexpr size_t kHeadDim = 32;
  const std::vector<float> queries = NormalFloats(2 * kHeadDim, 1);
  AttentionAccumulator accumulator = MakeAccumulator(2, kHeadDim);
  accumulator.Reset(queries);
  std::vector<KvSample> samples;
  for (uint64_t i = 0; i < 4; ++i) {
    samples.push_back(KvSample::Random(20, kHeadDim, KvDtype::kFloat16, i));
  }
  std::vector<ReferenceRun> reference;
  for (const KvSample& sample : samples) {
    reference.push_back({sample.run()});
    accumulator.Add(sample.run());
    ExpectNear(Finish(accumulator), ReferenceAttention(kHeadDim, queries, reference), kHeadDim);
  }
}

TEST_P(AttentionTest, ColumnMassIsTheSumOfTheRowsWeights) {
  constexpr size_t kHeadDim = 48;
  for (const KvDtype dtype : kDtypes) {
    for (const size_t rows : {1, 2, 4, 6, 30}) {
      constexpr size_t kTokens = 77;
      const std::vector<float> queries = NormalFloats(rows * kHeadDim, rows);
      const KvSample sample = KvSample::Random(kTokens, kHeadDim, dtype, 9);
      std::vector<size_t> visible;
      for (size_t row = 0; row < rows; ++row) visible.push_back(row * 40 % 100);
      AttentionAccumulator accumulator = MakeAccumulator(rows, kHeadDim);
      accumulator.Reset(queries);
      accumulator.Add(sample.run(), visible);
      const Result result = Finish(accumulator);
      std::vector<float> mass(kTokens, 0.25f);
      accumulator.AddColumnMass(sample.run(), visible, result.lse, absl::MakeSpan(mass));
      const ReferenceRun reference[] = {{sample.run(), visible}};
      const ReferenceResult expected = ReferenceAttention(kHeadDim, queries, reference);
      for (size_t t = 0; t < kTokens; ++t) {
        double sum = 0.25;
        for (size_t row = 0; row < rows; ++row) {
          if (std::isinf(expected.lse[row])) continue;
          sum += std::exp(expected.scores[row * kTokens + t] - expected.lse[row]);
        }
        ASSERT_NEAR(mass[t], sum, 1e-5 * std::max(1.0, sum)) << "rows " << rows << " token " << t;
      }
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Targets, AttentionTest,
                         testing::ValuesIn(hwy::SupportedAndGeneratedTargets()),
                         [](const testing::TestParamInfo<int64_t>& target) {
                           return std::string(hwy::TargetName(target.param));
                         });

TEST(AttentionCreateTest, RefusesDimensionsItHasNoLoopFor) {
  for (const size_t head_dim : {0, 4, 12, 100, 520, 1024}) {
    const absl::Status status = AttentionAccumulator::Create(4, head_dim).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << head_dim;
    EXPECT_NE(status.message().find("head_dim"), std::string::npos);
  }
  EXPECT_EQ(AttentionAccumulator::Create(0, 64).status().code(),
            absl::StatusCode::kInvalidArgument);
}

TEST(MergePartialsTest, PartsMergeToTheWholeInAnyOrder) {
  constexpr size_t kHeadDim = 64;
  constexpr size_t kRows = 3;
  const std::vector<float> queries = NormalFloats(kRows * kHeadDim, 1);
  std::vector<KvSample> samples;
  std::vector<ReferenceRun> reference;
  std::vector<Result> partials;
  AttentionAccumulator accumulator = MakeAccumulator(kRows, kHeadDim);
  for (const size_t tokens : {30, 1, 200, 0, 64}) {
    samples.push_back(KvSample::Random(tokens, kHeadDim, KvDtype::kFloat16, tokens));
    accumulator.Reset(queries);
    accumulator.Add(samples.back().run());
    partials.push_back(Finish(accumulator));
  }
  for (const KvSample& sample : samples) reference.push_back({sample.run()});
  const ReferenceResult expected = ReferenceAttention(kHeadDim, queries, reference);
  std::mt19937 random(4);
  for (int order = 0; order < 20; ++order) {
    std::shuffle(partials.begin(), partials.end(), random);
    Result merged = {.out = std::vector<float>(kRows * kHeadDim, 0),
                     .lse = std::vector<float>(kRows, -kInfinity)};
    for (const Result& partial : partials) {
      MergePartials(kHeadDim, partial.out, partial.lse, absl::MakeSpan(merged.out),
                    absl::MakeSpan(merged.lse));
    }
    ExpectNear(merged, expected, kHeadDim);
  }
}

TEST(MergePartialsTest, EmptyPartsChangeNothing) {
  const std::vector<float> zeros(8, 0);
  const std::vector<float> nothing = {-kInfinity};
  std::vector<float> out = zeros;
  std::vector<float> lse = nothing;
  MergePartials(8, zeros, nothing, absl::MakeSpan(out), absl::MakeSpan(lse));
  EXPECT_EQ(out, zeros);
  EXPECT_EQ(lse, nothing);
  const std::vector<float> part = {1, 2, 3, 4, 5, 6, 7, 8};
  const std::vector<float> huge = {20000.0f};
  MergePartials(8, part, huge, absl::MakeSpan(out), absl::MakeSpan(lse));
  EXPECT_EQ(out, part);
  EXPECT_EQ(lse, huge);
  MergePartials(8, zeros, nothing, absl::MakeSpan(out), absl::MakeSpan(lse));
  EXPECT_EQ(out, part);
  EXPECT_EQ(lse, huge);
}

}  // namespace
}  // namespace terrace
