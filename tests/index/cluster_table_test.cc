#include "index/cluster_table.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <set>
#include <vector>

#include "tests/support/grouped_rows.h"

namespace terrace {
namespace {

using ::testing::HasSubstr;

constexpr size_t kHeadDim = kGroupedHeadDim;
constexpr float kInfinity = std::numeric_limits<float>::infinity();

ClusterTable Table(const std::vector<float>& keys, const std::vector<float>& values,
                   const ClusterTableOptions& options = {.head_dim = kHeadDim},
                   size_t threads = 1) {
  auto table = ClusterTable::Create(options, QuerySpace(kHeadDim));
  ComputePool pool(threads);
  const KeyPanels value_panels = Panels(values);
  const absl::Status status = table->Add(Panels(keys), &value_panels, keys.size() / kHeadDim, pool);
  EXPECT_TRUE(status.ok()) << status;
  return *std::move(table);
}

struct Attention {
  std::vector<double> out;
  double lse = -kInfinity;
};

// In fp64, over the tokens for which `use` is true.
template <typename Use>
Attention Attend(const float* query, const std::vector<float>& keys,
                 const std::vector<float>& values, Use use) {
  Attention result{.out = std::vector<double>(kHeadDim)};
  double sum = 0;
  for (size_t i = 0; i < keys.size() / kHeadDim; ++i) {
    if (!use(i)) continue;
    const double weight = std::exp(std::inner_product(
        query, query + kHeadDim, keys.begin() + static_cast<ptrdiff_t>(i * kHeadDim), 0.0));
    sum += weight;
    for (size_t d = 0; d < kHeadDim; ++d) {
      result.out[d] += weight * double{values[i * kHeadDim + d]};
    }
  }
  for (double& element : result.out) element /= sum > 0 ? sum : 1;
  result.lse = std::log(sum);
  return result;
}

double RelativeError(const std::vector<double>& got, const std::vector<double>& want) {
  double error = 0;
  double norm = 0;
  for (size_t d = 0; d < want.size(); ++d) {
    error += (got[d] - want[d]) * (got[d] - want[d]);
    norm += want[d] * want[d];
  }
  return std::sqrt(error / norm);
}

Attention Merge(const Attention& a, const float* out, float lse) {
  Attention merged{.out = a.out, .lse = a.lse};
  merged.lse = std::log(std::exp(a.lse) + std::exp(double{lse}));
  for (size_t d = 0; d < kHeadDim; ++d) {
    merged.out[d] = a.out[d] * std::exp(a.lse - merged.lse) +
                    double{out[d]} * std::exp(double{lse} - merged.lse);
  }
  return merged;
}

// For each row the exact attention to what is read, merged with the estimate of the rest.
std::vector<Attention> Merged(const ClusterTable& table, const std::vector<float>& keys,
                              const std::vector<float>& values, const std::vector<float>& queries,
                              size_t budget, bool single_keys = false) {
  ClusterScores scores;
  const size_t rows = queries.size() / kHeadDim;
  std::vector<float> out(queries.size());
  std::vector<float> lse(rows);
  std::set<size_t> tokens;
  table.Score(queries, scores);
  if (single_keys) {
    KeyChoice read;
    table.RankKeys(scores, {.keys = budget}, read);
    for (size_t i = 0; i < read.clusters.size(); ++i) {
      const auto members = table.members(read.clusters[i]);
      for (size_t at = read.begins[i]; at < read.begins[i + 1]; ++at) {
        tokens.insert(members.first_key + members.offsets[read.places[at]]);
      }
    }
    EXPECT_EQ(tokens.size(), std::min(budget, table.keys()));
    table.Estimate(scores, read, absl::MakeSpan(out), absl::MakeSpan(lse));
  } else {
    std::vector<uint32_t> read;
    if (budget > 0) table.Rank(scores, {.keys = budget}, read);
    for (const uint32_t cluster : read) {
      const auto members = table.members(cluster);
      for (const uint16_t offset : members.offsets) tokens.insert(members.first_key + offset);
    }
    table.Estimate(scores, read, absl::MakeSpan(out), absl::MakeSpan(lse));
  }
  std::vector<Attention> merged;
  for (size_t row = 0; row < rows; ++row) {
    const Attention exact = Attend(queries.data() + row * kHeadDim, keys, values,
                                   [&](size_t i) { return tokens.count(i) > 0; });
    merged.push_back(Merge(exact, out.data() + row * kHeadDim, lse[row]));
  }
  return merged;
}

TEST(ClusterTableTest, NothingIsLeftToEstimateWhenEverythingIsRead) {
  const std::vector<float> keys = Normals(1008 * kHeadDim, 1);
  const std::vector<float> values = Normals(1008 * kHeadDim, 2);
  const std::vector<float> queries = Normals(4 * kHeadDim, 3, 0.5f);
  const ClusterTable table = Table(keys, values);
  for (const bool single_keys : {false, true}) {
    const std::vector<Attention> merged = Merged(table, keys, values, queries, 1008, single_keys);
    for (size_t row = 0; row < 4; ++row) {
      const Attention full =
          Attend(queries.data() + row * kHeadDim, keys, values, [](size_t) { return true; });
      EXPECT_LT(RelativeError(merged[row].out, full.out), 1e-12);
      EXPECT_DOUBLE_EQ(merged[row].lse, full.lse);
    }
  }
}

TEST(ClusterTableTest, EstimatesOfTightClustersAreTheAttention) {
  // 10,000 tokens are two segments, the second of which is short.
  const std::vector<float> keys = GroupedRows(10000, 16, 0.005f, 40);
  const std::vector<float> values = Normals(10000 * kHeadDim, 5);
  const std::vector<float> queries = Normals(5 * kHeadDim, 6, 0.5f);
  const ClusterTable table = Table(keys, values);
  EXPECT_EQ(table.segments(), 2u);
  EXPECT_EQ(table.keys(), 10000u);
  for (const size_t budget : {size_t{0}, size_t{300}}) {
    const std::vector<Attention> merged = Merged(table, keys, values, queries, budget);
    for (size_t row = 0; row < 5; ++row) {
      const Attention full =
          Attend(queries.data() + row * kHeadDim, keys, values, [](size_t) { return true; });
      EXPECT_LT(RelativeError(merged[row].out, full.out), 0.04);
      EXPECT_NEAR(merged[row].lse, full.lse, 0.03);
    }
  }
}

TEST(ClusterTableTest, SpreadsMakeUpForMeansThatAreBelowTheExponentials) {
  const std::vector<float> keys = GroupedRows(8192, 16, 0.5f, 70);
  const std::vector<float> values = Normals(8192 * kHeadDim, 8);
  const std::vector<float> queries = Normals(16 * kHeadDim, 9, 0.4f);
  double errors[2] = {};  // without and with the correction
  for (const bool corrected : {false, true}) {
    const ClusterTable table =
        Table(keys, values,
              {.head_dim = kHeadDim, .spread_correction = corrected, .residual_codes = false});
    const std::vector<Attention> merged = Merged(table, keys, values, queries, 0);
    for (size_t row = 0; row < 16; ++row) {
      const Attention full =
          Attend(queries.data() + row * kHeadDim, keys, values, [](size_t) { return true; });
      errors[corrected ? 1 : 0] += std::abs(merged[row].lse - full.lse) / 16;
      // The exponential of the mean is a lower bound.
      if (!corrected) {
        EXPECT_LT(merged[row].lse, full.lse);
      }
    }
  }
  EXPECT_LT(errors[1], 0.4 * errors[0]);
}

TEST(ClusterTableTest, RankTakesTheBestFirstWithinItsBudget) {
  const std::vector<float> keys = GroupedRows(9008, 16, 0.1f, 10);
  const ClusterTable table = Table(keys, Normals(9008 * kHeadDim, 11));
  const std::vector<float> queries = Normals(3 * kHeadDim, 12, 0.5f);
  ClusterScores scores;
  table.Score(queries, scores);
  std::vector<uint32_t> all;
  table.Rank(scores, {.keys = 9008}, all);
  ASSERT_EQ(all.size(), table.clusters());
  EXPECT_EQ(std::set<uint32_t>(all.begin(), all.end()).size(), all.size());
  for (size_t i = 0; i + 1 < all.size(); ++i) {
    EXPECT_GE(scores.worth[all[i]], scores.worth[all[i + 1]]);
  }
  // Worth is a share of mass, so all clusters together have one for each row.
  double total = 0;
  for (const float worth : scores.worth) total += double{worth};
  EXPECT_NEAR(total, 3, 1e-3);

  std::vector<uint32_t> some;
  table.Rank(scores, {.keys = 270}, some);
  EXPECT_EQ(some,
            std::vector<uint32_t>(all.begin(), all.begin() + static_cast<ptrdiff_t>(some.size())));
  size_t keys_read = 0;
  for (const uint32_t cluster : some) keys_read += table.members(cluster).offsets.size();
  EXPECT_LE(keys_read, 270u);
  EXPECT_GT(keys_read + table.members(all[some.size()]).offsets.size(), 270u);
  // Even less than a cluster buys one.
  table.Rank(scores, {.keys = 1}, some);
  EXPECT_EQ(some.size(), 1u);

  std::vector<uint32_t> heavy;
  // A cluster of 16 keys with a mean share of 0.01 / 16 each.
  table.Rank(scores, {.keys = 9008, .min_share = 0.01f / 16}, heavy);
  EXPECT_FALSE(heavy.empty());
  EXPECT_LT(heavy.size(), table.clusters());
  for (size_t c = 0; c < table.clusters(); ++c) {
    double share = 0;
    for (size_t row = 0; row < 3; ++row) {
      share += double{scores.masses[row * table.clusters() + c]} / scores.totals[row] / 3;
    }
    if (std::abs(share - 0.01) < 1e-6) continue;
    EXPECT_EQ(std::count(heavy.begin(), heavy.end(), c), share > 0.01 ? 1 : 0) << share;
  }
}

std::vector<std::byte> Saved(const ClusterTable& table) {
  std::vector<std::byte> bytes;
  table.Save(bytes);
  return bytes;
}

TEST(ClusterTableTest, AnyNumberOfThreadsMakesTheSameTable) {
  const std::vector<float> keys = Normals(20000 * kHeadDim, 13);
  const std::vector<float> values = Normals(20000 * kHeadDim, 14);
  EXPECT_EQ(Saved(Table(keys, values)), Saved(Table(keys, values, {.head_dim = kHeadDim}, 2)));
}

TEST(ClusterTableTest, LoadGivesWhatWasSaved) {
  const std::vector<float> keys = Normals(9008 * kHeadDim, 16);
  const std::vector<float> samples = Normals(50 * kHeadDim, 17);
  const ClusterTableOptions options{.head_dim = kHeadDim};
  auto table = ClusterTable::Create(options, QuerySpace(samples, Panels(keys)));
  ComputePool pool(1);
  const KeyPanels panels = Panels(keys);
  ASSERT_TRUE(table->Add(panels, &panels, 9008, pool).ok());
  const std::vector<std::byte> bytes = Saved(*table);
  auto loaded = ClusterTable::Load(options, bytes);
  ASSERT_TRUE(loaded.ok()) << loaded.status();
  EXPECT_EQ(Saved(*loaded), bytes);
  const std::vector<float> queries = Normals(2 * kHeadDim, 18);
  ClusterScores before;
  ClusterScores after;
  table->Score(queries, before);
  loaded->Score(queries, after);
  EXPECT_EQ(before.masses, after.masses);
  EXPECT_EQ(before.key_masses, after.key_masses);
  // It goes on growing.
  const std::vector<float> more = Normals(9504 * kHeadDim, 19);
  const KeyPanels more_panels = Panels(more);
  ASSERT_TRUE(loaded->Add(more_panels, &more_panels, 9504, pool).ok());
  EXPECT_EQ(loaded->keys(), 9504u);

  EXPECT_EQ(ClusterTable::Load({.head_dim = 64}, bytes).status().code(),
            absl::StatusCode::kInvalidArgument);
  for (const ClusterTableOptions& other :
       {ClusterTableOptions{.head_dim = kHeadDim, .has_values = false},
        {.head_dim = kHeadDim, .residual_codes = false},
        {.head_dim = kHeadDim, .clustering = {.cluster_keys = 8}}}) {
    EXPECT_EQ(ClusterTable::Load(other, bytes).status().code(), absl::StatusCode::kInvalidArgument);
  }
}

TEST(ClusterTableTest, DamagedBytesAreDataLoss) {
  const std::vector<float> keys = Normals(48 * kHeadDim, 20);
  const std::vector<std::byte> bytes = Saved(Table(keys, keys));
  const ClusterTableOptions options{.head_dim = kHeadDim};
  for (size_t i = 0; i < bytes.size(); ++i) {
    std::vector<std::byte> damaged = bytes;
    damaged[i] ^= std::byte{0x10};
    EXPECT_EQ(ClusterTable::Load(options, damaged).status().code(), absl::StatusCode::kDataLoss)
        << "byte " << i;
    damaged.assign(bytes.begin(), bytes.begin() + static_cast<ptrdiff_t>(i));
    EXPECT_EQ(ClusterTable::Load(options, damaged).status().code(), absl::StatusCode::kDataLoss)
        << i << " bytes";
  }
}

TEST(ClusterTableTest, BadInputIsNamedAndAddsNothing) {
  EXPECT_THAT(ClusterTable::Create({.head_dim = 12}, QuerySpace(12)).status().message(),
              HasSubstr("head_dim is 12"));
  EXPECT_FALSE(ClusterTable::Create({.head_dim = 16}, QuerySpace(32)).ok());
  EXPECT_THAT(
      ClusterTable::Create({.head_dim = 16, .clustering = {.cluster_keys = 4097}}, QuerySpace(16))
          .status()
          .message(),
      HasSubstr("cluster_keys is 4097"));
  std::vector<float> keys = Normals(9000 * kHeadDim, 21);
  const KeyPanels panels = Panels(keys);
  auto table = *ClusterTable::Create({.head_dim = kHeadDim}, QuerySpace(kHeadDim));
  ComputePool pool(2);
  EXPECT_FALSE(table.Add(panels, nullptr, 8992, pool).ok());
  EXPECT_FALSE(table.Add(panels, &panels, 9008, pool).ok());
  EXPECT_THAT(table.Add(panels, &panels, 9000, pool).message(), HasSubstr("multiple of the 16"));
  keys[8500 * kHeadDim + 3] = std::numeric_limits<float>::quiet_NaN();
  EXPECT_THAT(table.Add(panels, &panels, 8992, pool).message(), HasSubstr("key 8500"));
  keys[70 * kHeadDim] = kInfinity;
  EXPECT_THAT(table.Add(panels, &panels, 8992, pool).message(), HasSubstr("key 70 "));
  EXPECT_EQ(table.keys(), 0u);
  EXPECT_EQ(table.clusters(), 0u);
  // An empty table estimates nothing.
  ClusterScores scores;
  std::vector<float> out(kHeadDim, 1.0f);
  std::vector<float> lse(1);
  table.Score(Normals(kHeadDim, 22), scores);
  table.Estimate(scores, std::vector<uint32_t>(), absl::MakeSpan(out), absl::MakeSpan(lse));
  EXPECT_EQ(lse[0], -kInfinity);
  EXPECT_EQ(out, std::vector<float>(kHeadDim, 0.0f));
}

TEST(ClusterTableTest, ClustersAreBlocksOfTheirSegments) {
  // 15 keys a cluster: a segment has 8,190.
  const std::vector<float> keys = Normals(9000 * kHeadDim, 50);
  const KeyPanels panels = Panels(keys);
  auto table = *ClusterTable::Create({.head_dim = kHeadDim, .clustering = {.cluster_keys = 15}},
                                     QuerySpace(kHeadDim));
  ComputePool pool(1);
  ASSERT_TRUE(table.Add(panels, &panels, 9000, pool).ok());
  ASSERT_EQ(table.clusters(), 600u);
  EXPECT_EQ(table.segments(), 2u);
  std::set<size_t> seen;
  for (size_t c = 0; c < 600; ++c) {
    const ClusterTable::Members members = table.members(c);
    EXPECT_EQ(members.first_key, c < 546 ? 0u : 8190u);
    EXPECT_EQ(members.offsets.size(), 15u);
    for (const uint16_t offset : members.offsets) seen.insert(members.first_key + offset);
  }
  EXPECT_EQ(seen.size(), 9000u);
}

TEST(ClusterTableTest, TruncateForgetsSegmentsThatReachBeyond) {
  const std::vector<float> keys = Normals(8192 * 2 * kHeadDim, 51);
  const std::vector<float> queries = Normals(2 * kHeadDim, 52);
  const KeyPanels panels = Panels(keys);
  ComputePool pool(1);
  auto table = *ClusterTable::Create({.head_dim = kHeadDim}, QuerySpace(kHeadDim));
  std::vector<std::vector<std::byte>> states;
  for (const size_t end : {0u, 1600u, 3200u, 11392u, 16384u}) {
    ASSERT_TRUE(table.Add(panels, &panels, end, pool).ok());
    std::vector<std::byte> bytes;
    table.Save(bytes);
    states.push_back(bytes);
  }
  const auto expect = [&](size_t keys_left, size_t state) {
    EXPECT_EQ(table.keys(), keys_left);
    EXPECT_EQ(table.clusters(), keys_left / 16);
    std::vector<std::byte> bytes;
    table.Save(bytes);
    EXPECT_EQ(bytes, states[state]);
  };
  table.Truncate(20000);
  expect(16384, 4);
  table.Truncate(16383);
  expect(11392, 3);
  table.Truncate(11392);
  expect(11392, 3);
  table.Truncate(3300);
  expect(3200, 2);
  // It grows as if nothing had been there.
  ASSERT_TRUE(table.Add(panels, &panels, 11392, pool).ok());
  expect(11392, 3);
  table.Truncate(1601);
  expect(1600, 1);
  ClusterScores scores;
  std::vector<uint32_t> chosen;
  table.Score(queries, scores);
  table.Rank(scores, {.keys = 16384}, chosen);
  EXPECT_EQ(chosen.size(), 100u);
  table.Truncate(0);
  expect(0, 0);
}

}  // namespace
}  // namespace terrace
