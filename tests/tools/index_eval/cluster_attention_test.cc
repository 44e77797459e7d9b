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

// Both choices of a budget.
std::vector<ReadFigures> Choices(const BudgetFigures& figures) {
  return {figures.whole_clusters, figures.single_keys};
}

TEST_P(ClusterAttentionTest, ReadsNoMoreThanItsBudgetAndNoLessMuch) {
  const ClusterAttention measured = Measure(Head(GetParam()));
  ASSERT_EQ(measured.budgets.size(), std::size(kReadShares));
  for (size_t i = 0; i < measured.budgets.size(); ++i) {
    const BudgetFigures& figures = measured.budgets[i];
    EXPECT_EQ(figures.share, kReadShares[i]);
    EXPECT_THAT(figures.whole_clusters.read_share,
                AllOf(Gt(0.8 * figures.share), Le(figures.share)));
    EXPECT_NEAR(figures.single_keys.read_share, figures.share, 1e-9);
  }
}

TEST_P(ClusterAttentionTest, TheOracleIsTheBestThereIs) {
  const ClusterAttention measured = Measure(Head(GetParam()));
  for (const BudgetFigures& figures : measured.budgets) {
    for (const ReadFigures& read : Choices(figures)) {
      EXPECT_THAT(read.mass_of_oracle, AllOf(Gt(0.2), Lt(1.0 + 1e-5)));
      EXPECT_LE(read.mass, read.mass_of_oracle + 1e-5);
    }
  }
  EXPECT_GT(measured.budgets.back().whole_clusters.mass,
            measured.budgets.front().whole_clusters.mass);
  EXPECT_GT(measured.budgets.back().single_keys.mass, measured.budgets.front().single_keys.mass);
}

TEST_P(ClusterAttentionTest, SingleKeysAreCloserToTheOracleThanWholeClusters) {
  const ClusterAttention measured = Measure(Head(GetParam()));
  for (const BudgetFigures& figures : measured.budgets) {
    EXPECT_GT(figures.single_keys.mass_of_oracle, figures.whole_clusters.mass_of_oracle)
        << figures.share;
    EXPECT_LT(figures.single_keys.error, figures.whole_clusters.error) << figures.share;
    EXPECT_LT(figures.single_keys.error_without, figures.whole_clusters.error_without)
        << figures.share;
  }
}

TEST_P(ClusterAttentionTest, EstimatesHelpAndSoDoesReadingMore) {
  const ClusterAttention measured = Measure(Head(GetParam()));
  for (const BudgetFigures& figures : measured.budgets) {
    for (const ReadFigures& read : Choices(figures)) {
      EXPECT_LT(read.error, read.error_without) << figures.share;
      EXPECT_GT(read.error, 0);
    }
  }
  const std::vector<ReadFigures> least = Choices(measured.budgets.front());
  const std::vector<ReadFigures> most = Choices(measured.budgets.back());
  for (size_t i = 0; i < most.size(); ++i) {
    EXPECT_LT(most[i].error, least[i].error);
    EXPECT_LT(most[i].error_without, least[i].error_without);
  }
}

// The heads have queries out of the distribution of their keys. Bounds have some room: single keys
// had 0.91 or more of the oracle's mass and an error of at most 10.7 %, clusters 0.67 and 19.3 %.
TEST_P(ClusterAttentionTest, KeepsItsQualityAtThreePercent) {
  const ClusterAttention measured = Measure(Head(GetParam()));
  const BudgetFigures& figures = measured.budgets[2];
  ASSERT_EQ(figures.share, 0.03);
  EXPECT_GT(figures.single_keys.mass_of_oracle, 0.88);
  EXPECT_LT(figures.single_keys.error, 0.13);
  EXPECT_GT(figures.whole_clusters.mass_of_oracle, 0.64);
  EXPECT_LT(figures.whole_clusters.error, 0.22);
}

// Clusters of a key each choose as the oracle does, but for what 8 bits round.
TEST_P(ClusterAttentionTest, ClustersOfOneKeyAreTheOracle) {
  const ClusterAttention measured =
      Measure(Head(GetParam(), 2000), {.cluster_keys = 1, .iterations = 2});
  for (const BudgetFigures& figures : measured.budgets) {
    for (const ReadFigures& read : Choices(figures)) {
      EXPECT_GT(read.mass_of_oracle, 0.97) << figures.share;
    }
  }
}

// The last 15 keys have almost all of the attention, which is found only by reading them.
TEST(ClusterAttentionTailTest, KeysThatFillNoClusterAreReadWithinTheBudget) {
  constexpr size_t kKeys = 10015;
  constexpr size_t kTail = kKeys % ClusteringOptions().cluster_keys;
  static_assert(kTail == 15);
  constexpr uint16_t kForty = 0x5100;  // in fp16
  EvalHead head = Head(1, kKeys);
  for (size_t key = 0; key < kKeys; ++key) {
    head.keys[key * head.head_dim] = key < kKeys - kTail ? 0 : kForty;
  }
  // A logit of 40 times 8 / sqrt(64) more than the others.
  for (size_t at = 0; at < head.queries.size(); at += head.head_dim) head.queries[at] = 8;
  const ClusterAttention measured = Measure(head);
  for (const BudgetFigures& figures : measured.budgets) {
    for (const ReadFigures& read : Choices(figures)) {
      EXPECT_THAT(read.read_share, AllOf(Gt(0.7 * figures.share), Le(figures.share)));
      EXPECT_GT(read.mass, 0.99);
      EXPECT_THAT(read.mass_of_oracle, AllOf(Gt(0.99), Lt(1.0 + 1e-5)));
      EXPECT_LT(read.error, 0.01);
      EXPECT_LT(read.error_without, 0.01);
    }
  }
}

TEST(ClusterAttentionTailTest, LastKeysAreReadBeyondTheBudgetTooAndTheOracleHasAsMany) {
  const ClusterAttention measured = Measure(Head(1, 109));  // 6 clusters and 13 keys
  for (const BudgetFigures& figures : measured.budgets) {
    for (const ReadFigures& read : Choices(figures)) {
      EXPECT_NEAR(read.read_share, 13.0 / 109, 1e-9);
      EXPECT_LE(read.mass_of_oracle, 1.0 + 1e-5);
      EXPECT_GT(read.error, 0);
    }
  }
}

TEST(ClusterAttentionTailTest, FewerKeysThanAClusterAreAllRead) {
  const ClusterAttention measured = Measure(Head(1, 11));
  for (const BudgetFigures& figures : measured.budgets) {
    for (const ReadFigures& read : Choices(figures)) {
      EXPECT_NEAR(read.read_share, 1, 1e-9);
      EXPECT_NEAR(read.mass, 1, 1e-4);
      EXPECT_LT(read.error, 1e-4);
    }
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
  for (const ReadFigures& read : Choices(measured.budgets.back())) {
    EXPECT_LT(read.error, read.error_without);
  }
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
