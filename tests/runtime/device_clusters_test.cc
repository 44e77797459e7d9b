#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <vector>

#include "index/cluster_table.h"
#include "io/cuda_copy_engine.h"
#include "runtime/device_scoring.h"
#include "tests/support/grouped_rows.h"

namespace terrace {
namespace {

using ::testing::HasSubstr;

constexpr size_t kHeadDim = kGroupedHeadDim;
constexpr size_t kHeads = 2;
constexpr size_t kClusterKeys = 16;

absl::StatusOr<std::unique_ptr<DeviceClusters>> Make(bool on_host,
                                                     const DeviceClusterOptions& options) {
  return on_host ? MakeHostClusters(options) : MakeCudaClusters(options, 0);
}

// Tables of all heads, which grow by segments of the sizes that are asked for.
class Tables {
 public:
  explicit Tables(size_t keys) {
    for (size_t head = 0; head < kHeads; ++head) {
      keys_.push_back(GroupedRows(keys, 8, 0.3f, 10 + head));
      tables_.push_back(*ClusterTable::Create({.head_dim = kHeadDim,
                                               .has_values = false,
                                               .residual_codes = false,
                                               .clustering = {.iterations = 2}},
                                              QuerySpace(kHeadDim)));
    }
    for (const ClusterTable& table : tables_) pointers_.push_back(&table);
  }

  void AddUpTo(size_t end) {
    ComputePool pool(1);
    for (size_t head = 0; head < kHeads; ++head) {
      const absl::Status status = tables_[head].Add(Panels(keys_[head]), nullptr, end, pool);
      ASSERT_TRUE(status.ok()) << status;
    }
  }
  void Truncate(size_t keys) {
    for (ClusterTable& table : tables_) table.Truncate(keys);
  }
  const ClusterTable& table(size_t head) const { return tables_[head]; }
  absl::Span<const ClusterTable* const> all() const { return pointers_; }
  size_t clusters() const { return tables_[0].clusters(); }

 private:
  std::vector<std::vector<float>> keys_;
  std::vector<ClusterTable> tables_;
  std::vector<const ClusterTable*> pointers_;
};

std::vector<float> Queries(size_t rows) { return Normals(kHeads * rows * kHeadDim, 77, 0.5f); }

ClusterScores TableScores(const ClusterTable& table, absl::Span<const float> queries, size_t head) {
  const size_t head_floats = queries.size() / kHeads;
  ClusterScores scores;
  table.Score(queries.subspan(head * head_floats, head_floats), scores);
  return scores;
}

// The logits are those behind the masses of the table.
void ExpectLogitsOfTables(const Tables& tables, absl::Span<const float> queries,
                          const std::vector<float>& logits) {
  const size_t rows = queries.size() / kHeads / kHeadDim;
  const size_t count = tables.clusters();
  for (size_t head = 0; head < kHeads; ++head) {
    const ClusterScores scores = TableScores(tables.table(head), queries, head);
    for (size_t row = 0; row < rows; ++row) {
      for (size_t c = 0; c < count; ++c) {
        const float logit = logits[(head * rows + row) * count + c];
        const float mass = kClusterKeys * std::exp(logit - scores.shifts[row]);
        EXPECT_NEAR(mass, scores.masses[row * count + c], 1e-4f * mass + 1e-30f)
            << "head " << head << ", row " << row << ", cluster " << c;
      }
    }
  }
}

void ExpectScoresOfTables(bool on_host) {
  Tables tables(3000);
  const auto clusters =
      Make(on_host, {.kv_heads = kHeads, .head_dim = kHeadDim, .clusters = 150, .threads = 2});
  ASSERT_TRUE(clusters.ok()) << clusters.status();
  const auto host =
      *MakeHostClusters({.kv_heads = kHeads, .head_dim = kHeadDim, .clusters = 150, .threads = 1});
  // Segments of three sizes, of which one is forgotten in between.
  for (const size_t end : {320u, 1600u, 2000u, 2240u}) {
    if (end == 2000) {
      tables.Truncate(320);
      (*clusters)->Truncate(1);
      host->Truncate(1);
    }
    tables.AddUpTo(end);
    const absl::Status extended = (*clusters)->Extend(tables.all());
    ASSERT_TRUE(extended.ok()) << extended;
    ASSERT_TRUE(host->Extend(tables.all()).ok());
    ASSERT_EQ((*clusters)->clusters(), end / kClusterKeys);
    for (const size_t rows : {1u, 4u, 11u}) {
      const std::vector<float> queries = Queries(rows);
      std::vector<float> logits(kHeads * rows * tables.clusters());
      const absl::Status status = (*clusters)->Score(tables.all(), queries, absl::MakeSpan(logits));
      ASSERT_TRUE(status.ok()) << status;
      ExpectLogitsOfTables(tables, queries, logits);
      std::vector<float> twins(logits.size());
      ASSERT_TRUE(host->Score(tables.all(), queries, absl::MakeSpan(twins)).ok());
      EXPECT_EQ(logits, twins) << end << " keys, " << rows << " rows";
    }
  }
}

void ExpectBestOfTables(bool on_host) {
  Tables tables(6400);
  tables.AddUpTo(6400);
  const auto clusters =
      Make(on_host, {.kv_heads = kHeads, .head_dim = kHeadDim, .clusters = 400, .threads = 2});
  ASSERT_TRUE(clusters.ok()) << clusters.status();
  ASSERT_TRUE((*clusters)->Extend(tables.all()).ok());
  for (const size_t rows : {1u, 4u}) {
    for (const size_t k : {1u, 37u, 400u}) {
      const std::vector<float> queries = Queries(rows);
      std::vector<uint32_t> best(kHeads * k);
      std::vector<float> worth(best.size());
      const absl::Status status =
          (*clusters)->Best(tables.all(), queries, k, absl::MakeSpan(best), absl::MakeSpan(worth));
      ASSERT_TRUE(status.ok()) << status;
      for (size_t head = 0; head < kHeads; ++head) {
        ClusterScores scores = TableScores(tables.table(head), queries, head);
        std::vector<uint32_t> ranked;
        tables.table(head).Rank(scores, {.keys = k * kClusterKeys, .min_share = 0}, ranked);
        ASSERT_EQ(ranked.size(), k);
        std::vector<bool> seen(400);
        for (size_t i = 0; i < k; ++i) {
          const uint32_t chosen = best[head * k + i];
          ASSERT_LT(chosen, 400);
          EXPECT_FALSE(seen[chosen]) << "cluster " << chosen << " is chosen twice";
          seen[chosen] = true;
          // As good as what the table has at this place, and known for what it is worth.
          const float want = scores.worth[ranked[i]];
          EXPECT_NEAR(scores.worth[chosen], want, 1e-4f * want) << "place " << i;
          EXPECT_NEAR(worth[head * k + i], scores.worth[chosen], 1e-4f * want) << "place " << i;
          EXPECT_LE(worth[head * k + i], worth[head * k + (i > 0 ? i - 1 : 0)]);
        }
      }
      std::vector<uint32_t> without(best.size());
      ASSERT_TRUE((*clusters)->Best(tables.all(), queries, k, absl::MakeSpan(without), {}).ok());
      EXPECT_EQ(without, best);
    }
  }
}

TEST(DeviceClustersTest, HostLogitsAreThoseOfTables) { ExpectScoresOfTables(true); }
TEST(DeviceClustersTest, HostBestAreWhatTablesRankFirst) { ExpectBestOfTables(true); }

TEST(DeviceClustersTest, RefuseWhatDoesNotFit) {
  Tables tables(640);
  tables.AddUpTo(320);
  const DeviceClusterOptions fits = {
      .kv_heads = kHeads, .head_dim = kHeadDim, .clusters = 30, .threads = 1};
  const auto clusters = *MakeHostClusters(fits);
  ASSERT_TRUE(clusters->Extend(tables.all()).ok());
  EXPECT_EQ(clusters->Extend(tables.all().first(1)).code(), absl::StatusCode::kInvalidArgument);
  const std::vector<float> queries = Queries(2);
  std::vector<float> logits(kHeads * 2 * 20);
  EXPECT_TRUE(clusters->Score(tables.all(), queries, absl::MakeSpan(logits)).ok());
  // The tables go on, and what is here does not.
  tables.AddUpTo(640);
  const absl::Status behind = clusters->Score(tables.all(), queries, absl::MakeSpan(logits));
  EXPECT_EQ(behind.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(behind.message(), HasSubstr("KV head 0"));
  EXPECT_EQ(clusters->Extend(tables.all()).code(), absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(clusters->clusters(), 20);
  tables.Truncate(320);
  std::vector<uint32_t> best(kHeads * 21);
  EXPECT_EQ(clusters->Best(tables.all(), queries, 21, absl::MakeSpan(best), {}).code(),
            absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(clusters->Best(tables.all(), queries, 20, absl::MakeSpan(best), {}).code(),
            absl::StatusCode::kInvalidArgument);
  for (const bool on_host : {true, false}) {
    if (!on_host && !BuiltWithCuda()) continue;
    DeviceClusterOptions options = fits;
    options.clusters = 0;
    EXPECT_EQ(Make(on_host, options).status().code(), absl::StatusCode::kInvalidArgument);
    options = fits;
    options.head_dim = 12;
    EXPECT_EQ(Make(on_host, options).status().code(), absl::StatusCode::kInvalidArgument);
  }
}

TEST(DeviceClustersTest, WithoutADeviceSayWhy) {
  const auto made =
      MakeCudaClusters({.kv_heads = kHeads, .head_dim = kHeadDim, .clusters = 30, .threads = 1}, 0);
  if (made.ok()) GTEST_SKIP() << "a device answers";
  EXPECT_EQ(made.status().code(), absl::StatusCode::kUnavailable);
  EXPECT_THAT(made.status().message(), HasSubstr("CUDA scoring: "));
}

class DeviceClustersOnDeviceTest : public ::testing::Test {
 protected:
  void SetUp() override {
    const auto made = MakeCudaClusters(
        {.kv_heads = kHeads, .head_dim = kHeadDim, .clusters = 30, .threads = 1}, 0);
    if (!made.ok()) GTEST_SKIP() << made.status();
  }
};

TEST_F(DeviceClustersOnDeviceTest, LogitsAreThoseOfTablesAndOfTheTwin) {
  ExpectScoresOfTables(false);
}
TEST_F(DeviceClustersOnDeviceTest, BestAreWhatTablesRankFirst) { ExpectBestOfTables(false); }

}  // namespace
}  // namespace terrace
