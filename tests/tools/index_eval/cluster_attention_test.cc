#include "tools/index_eval/cluster_attention.h"

#include <algorithm>
#include <cstdint>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace terrace {
namespace {

using ::testing::AllOf;
using ::testing::Gt;
using ::testing::HasSubstr;
using ::testing::Le;
using ::testing::Lt;

EvalHead Head(uint64_t seed, size_t keys = 10000) {
  SyntheticHeadOptions options;
  options.keys = keys;
  options.head_dim = 64;
  options.samples = 1024;
  options.steps = 6;
  options.query_dims = 8;
  options.shared_dims = 4;
  options.topics = 64;
  options.seed = seed;
  auto heads = MakeSyntheticHeads(options, 1);
  EXPECT_TRUE(heads.ok()) << heads.status();
  return std::move(heads->front());
}

ClusterAttention Measure(const EvalHead& head, const ClusteringOptions& options = {}) {
  ComputePool pool(2);
  auto measured = MeasureClusterAttention(head, options, pool);
  EXPECT_TRUE(measured.ok()) << measured.status();
  return *std::move(measured);
}

class ClusterAttentionTest : public testing::TestWithParam<uint64_t> {};

// gtest prints the seed as the parameter of a test that failed.
INSTANTIATE_TEST_SUITE_P(Seeds, ClusterAttentionTest, testing::Values(1, 2, 3),
                         [](const auto& info) { return absl::StrCat("seed", info.param); });

TEST_P(ClusterAttentionTest, ReadsNoMoreThanItsBudgetAndNoLessMuch) {
  const ClusterAttention measured = Measure(Head(GetParam()));
  ASSERT_EQ(measured.budgets.size(), std::size(kReadShares));
  for (size_t i = 0; i < measured.budgets.size(); ++i) {
    const BudgetFigures& figures = measured.budgets[i];
    EXPECT_EQ(figures.share, kReadShares[i]);
    EXPECT_THAT(figures.read_share, AllOf(Gt(0.7 * figures.share), Le(figures.share)));
  }
}

TEST_P(ClusterAttentionTest, TheOracleIsTheBestThereIs) {
  const ClusterAttention measured = Measure(Head(GetParam()));
  for (const BudgetFigures& figures : measured.budgets) {
    EXPECT_THAT(figures.mass_of_oracle, AllOf(Gt(0.2), Lt(1.0 + 1e-5)));
    EXPECT_LE(figures.mass, figures.mass_of_oracle + 1e-5);
  }
  EXPECT_GT(measured.budgets.back().mass, measured.budgets.front().mass);
}

TEST_P(ClusterAttentionTest, EstimatesHelpAndSoDoesReadingMore) {
  const ClusterAttention measured = Measure(Head(GetParam()));
  for (const BudgetFigures& figures : measured.budgets) {
    EXPECT_LT(figures.error, figures.error_without);
    EXPECT_GT(figures.error, 0);
  }
  EXPECT_LT(measured.budgets.back().error, measured.budgets.front().error);
  EXPECT_LT(measured.budgets.back().error_without, measured.budgets.front().error_without);
}

// Clusters of a key each choose as the oracle does, but for what 8 bits round.
TEST_P(ClusterAttentionTest, ClustersOfOneKeyAreTheOracle) {
  const ClusterAttention measured =
      Measure(Head(GetParam(), 2000), {.cluster_keys = 1, .iterations = 2});
  for (const BudgetFigures& figures : measured.budgets) {
    EXPECT_GT(figures.mass_of_oracle, 0.97) << figures.share;
  }
}

TEST(ClusterAttentionCostTest, BytesAreShares) {
  const EvalHead head = Head(1);
  const ClusterAttention measured = Measure(head);
  EXPECT_GT(measured.build_seconds, 0);
  EXPECT_NEAR(measured.kv_share, measured.bytes_per_key / (4.0 * 64), 1e-12);
  // At least the means of keys and values in a byte an element.
  EXPECT_GT(measured.bytes_per_key, 2 * 64 / 32.0);
  EXPECT_LT(measured.kv_share, 0.2);
}

TEST(ClusterAttentionCostTest, AHeadWithoutSamplesIsClusteredByKeys) {
  EvalHead head = Head(1);
  head.samples.clear();
  const ClusterAttention measured = Measure(head);
  EXPECT_LT(measured.budgets.back().error, measured.budgets.back().error_without);
}

TEST(ClusterAttentionCostTest, PassesErrorsOn) {
  ComputePool pool(1);
  const auto measured =
      MeasureClusterAttention(Head(1), {.cluster_keys = 0, .iterations = 1}, pool);
  EXPECT_EQ(measured.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(measured.status().message()), HasSubstr("cluster_keys is 0"));
}

}  // namespace
}  // namespace terrace
