#include "tools/index_eval/index_sweep.h"

#include <algorithm>
#include <memory>
#include <numeric>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "index/key_scores.h"
#include "tools/index_eval/index_kinds.h"

namespace terrace {
namespace {

using ::testing::AllOf;
using ::testing::Each;
using ::testing::Gt;
using ::testing::HasSubstr;
using ::testing::Lt;

// Finds the best keys among the first `effort` percent of all, 100 by default, so that all figures
// are known.
class FirstKeysIndex : public KeyIndex {
 public:
  absl::Status Build(const KeyPanels& keys, absl::Span<const float>, ComputePool&) override {
    keys_ = std::make_unique<KeyPanels>(keys);
    return absl::OkStatus();
  }
  absl::Status Append(const KeyPanels&, ComputePool&) override { return absl::OkStatus(); }
  absl::Status Search(absl::Span<const float> queries, const KeySearchOptions& options,
                      KeySearchResult& result) const override {
    if (options.effort == 66) return absl::InternalError("no such effort");
    const size_t rows = queries.size() / keys_->head_dim();
    const size_t count = keys_->size() * (options.effort == 0 ? 100 : options.effort) / 100;
    result.keys.assign(rows * options.k, KeySearchResult::kNoKey);
    result.scores.assign(rows * options.k, 0);
    result.scored_keys = rows * count;
    result.scored_centroids = rows * 7;
    for (size_t row = 0; row < rows; ++row) {
      std::vector<float> scores(count);
      ScoreRun(queries.subspan(row * keys_->head_dim(), keys_->head_dim()), keys_->head_dim(),
               keys_->key(0), keys_->dtype(), count, scores.data());
      std::vector<uint32_t> ids(count);
      std::iota(ids.begin(), ids.end(), 0);
      std::sort(ids.begin(), ids.end(),
                [&](uint32_t a, uint32_t b) { return scores[a] > scores[b]; });
      std::copy_n(ids.begin(), std::min(options.k, count),
                  result.keys.begin() + static_cast<ptrdiff_t>(row * options.k));
    }
    return absl::OkStatus();
  }
  absl::string_view name() const override { return "first"; }
  size_t size() const override { return keys_->size(); }
  size_t memory_bytes() const override { return 3 * keys_->size(); }
  std::vector<size_t> Efforts(size_t) const override { return {1, 50, 100}; }

 private:
  std::unique_ptr<KeyPanels> keys_;
};

const IndexKind kFirstKeys = {.name = "first",
                              .kind = "first",
                              .make = []() -> absl::StatusOr<std::unique_ptr<KeyIndex>> {
                                return std::make_unique<FirstKeysIndex>();
                              },
                              .clustering = {}};

std::vector<EvalHead> SmallHeads(size_t count) {
  SyntheticHeadOptions options;
  options.keys = 2000;
  options.head_dim = 64;
  options.samples = 256;
  options.steps = 6;
  options.query_dims = 8;
  options.shared_dims = 4;
  options.topics = 64;
  auto heads = MakeSyntheticHeads(options, count);
  EXPECT_TRUE(heads.ok()) << heads.status();
  return *std::move(heads);
}

absl::StatusOr<SweepResult> Sweep(const std::vector<EvalHead>& heads, const SweepOptions& options,
                                  bool stop = false) {
  const std::atomic<bool> stopped(stop);
  return RunIndexSweep(heads, {&kFirstKeys, 1}, options, stopped, [](absl::string_view) {});
}

TEST(IndexSweepTest, AnExactSearchOfAllKeysHasNoError) {
  const std::vector<EvalHead> heads = SmallHeads(3);
  const auto result = Sweep(heads, {.k = 2000, .threads = 2, .efforts = {100}});
  ASSERT_TRUE(result.ok()) << result.status();
  EXPECT_EQ(result->heads.size(), 3u);
  EXPECT_EQ(result->group, 4u);
  EXPECT_EQ(result->steps, 6u);
  ASSERT_EQ(result->indexes.size(), 1u);
  EXPECT_THAT(result->indexes[0].bytes_per_key, Each(3.0));
  ASSERT_EQ(result->indexes[0].efforts.size(), 1u);
  const EffortResult& effort = result->indexes[0].efforts[0];
  ASSERT_EQ(effort.heads.size(), 3u);
  for (size_t head = 0; head < 3; ++head) {
    const FoundFigures& figures = effort.heads[head];
    EXPECT_DOUBLE_EQ(figures.recall, 1);
    EXPECT_DOUBLE_EQ(figures.scanned_share, 1);
    EXPECT_DOUBLE_EQ(figures.distances, 2007);
    EXPECT_NEAR(figures.mass, 1, 1e-4);
    EXPECT_NEAR(figures.output_error, 0, 1e-4);
    EXPECT_THAT(result->best_masses[head], AllOf(Gt(0.2), Lt(1.0)));
    EXPECT_NEAR(figures.mass_of_best * result->best_masses[head], 1, 0.2);
  }
  EXPECT_GT(effort.group_search.p50_us, 0);
  EXPECT_GE(effort.group_search.p99_us, effort.group_search.p50_us);
  EXPECT_GT(result->scan_rows.p50_us, 0);
}

// The best 3 % of 2,000 keys are 60.
TEST(IndexSweepTest, TheBestShareHasItsOwnMass) {
  const std::vector<EvalHead> heads = SmallHeads(2);
  const auto result = Sweep(heads, {.k = 60, .threads = 1, .efforts = {0}});
  ASSERT_TRUE(result.ok()) << result.status();
  for (size_t head = 0; head < 2; ++head) {
    const FoundFigures& figures = result->indexes[0].efforts[0].heads[head];
    EXPECT_NEAR(figures.mass_of_best, 1, 1e-4);
    EXPECT_NEAR(figures.mass, result->best_masses[head], 1e-4);
    EXPECT_GT(figures.output_error, 1e-3) << "as the other keys are missing";
  }
}

TEST(IndexSweepTest, KeysThatAreNotFoundCost) {
  const std::vector<EvalHead> heads = SmallHeads(2);
  const auto result = Sweep(heads, {.k = 50, .threads = 1, .efforts = {}});
  ASSERT_TRUE(result.ok()) << result.status();
  const std::vector<EffortResult>& efforts = result->indexes[0].efforts;
  ASSERT_EQ(efforts.size(), 3u) << "those of the index";
  for (size_t head = 0; head < 2; ++head) {
    // 20 keys where 50 were asked for.
    EXPECT_LT(efforts[0].heads[head].recall, 0.4 + 1e-9);
    EXPECT_DOUBLE_EQ(efforts[0].heads[head].scanned_share, 0.01);
    EXPECT_THAT(efforts[1].heads[head].recall, AllOf(Gt(0.1), Lt(0.95)));
    EXPECT_DOUBLE_EQ(efforts[2].heads[head].recall, 1);
    EXPECT_LT(efforts[1].heads[head].mass, efforts[2].heads[head].mass);
    EXPECT_GT(efforts[0].heads[head].output_error, efforts[2].heads[head].output_error);
  }
}

// The last of the k best keys has many equals here, any of which will do.
TEST(IndexSweepTest, EqualKeysAreEquallyGood) {
  std::vector<EvalHead> heads = SmallHeads(1);
  const size_t dim = heads[0].head_dim;
  for (size_t i = 1; i < heads[0].key_count(); ++i) {
    std::copy_n(heads[0].keys.begin(), dim,
                heads[0].keys.begin() + static_cast<ptrdiff_t>(i * dim));
  }
  const auto result = Sweep(heads, {.k = 10, .threads = 1, .efforts = {5}});
  ASSERT_TRUE(result.ok()) << result.status();
  EXPECT_DOUBLE_EQ(result->indexes[0].efforts[0].heads[0].recall, 1);
}

TEST(IndexSweepTest, MoreKeysThanThereAreIsAll) {
  const auto result = Sweep(SmallHeads(1), {.k = 5000, .threads = 1, .efforts = {100}});
  ASSERT_TRUE(result.ok()) << result.status();
  EXPECT_DOUBLE_EQ(result->indexes[0].efforts[0].heads[0].recall, 1);
}

TEST(IndexSweepTest, NamesIndexAndHeadOfAnError) {
  const auto result = Sweep(SmallHeads(1), {.k = 10, .threads = 1, .efforts = {66}});
  EXPECT_EQ(result.status().code(), absl::StatusCode::kInternal);
  EXPECT_THAT(std::string(result.status().message()),
              HasSubstr("index first, seed 1: no such effort"));
}

TEST(IndexSweepTest, Stops) {
  EXPECT_EQ(Sweep(SmallHeads(1), {.k = 10, .threads = 1, .efforts = {}}, true).status().code(),
            absl::StatusCode::kCancelled);
}

TEST(IndexSweepTest, StopsAtEnoughRecall) {
  const auto efforts = [](double enough) {
    const auto result =
        Sweep(SmallHeads(2),
              {.k = 50, .threads = 1, .efforts = {20, 60, 90, 100}, .enough_recall = enough});
    EXPECT_TRUE(result.ok()) << result.status();
    return result->indexes[0].efforts.size();
  };
  EXPECT_EQ(efforts(0), 1u);
  EXPECT_EQ(efforts(1), 4u) << "what is exact comes last";
  EXPECT_THAT(efforts(0.5), AllOf(Gt(1u), Lt(4u)));
}

}  // namespace
}  // namespace terrace
