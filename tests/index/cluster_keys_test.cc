#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <iterator>
#include <numeric>
#include <random>
#include <set>
#include <vector>

#include "hwy/targets.h"
#include "index/cluster_table.h"
#include "index/key_scores.h"
#include "index/largest_worth.h"
#include "index/residual_codes.h"

// What a ClusterTable knows of single keys.
namespace terrace {
namespace {

std::vector<float> Normals(size_t count, uint64_t seed, float deviation = 1) {
  std::mt19937_64 random(seed);
  std::normal_distribution<float> normal(0, deviation);
  std::vector<float> out(count);
  for (float& element : out) element = normal(random);
  return out;
}

// Queries of four heads, row i of head i % 4, each in 4 dimensions of its own and 4 that all share;
// keys have most of their variance elsewhere.
struct Head {
  static constexpr size_t kHeadDim = 128;
  static constexpr size_t kKeys = 16384;
  static constexpr size_t kRows = 4;

  explicit Head(uint64_t seed)
      : keys(Normals(kKeys * kHeadDim, seed)),
        values(Normals(kKeys * kHeadDim, seed + 1)),
        samples(Queries(2048, seed + 2)) {
    for (size_t i = 0; i < keys.size(); ++i) {
      values[i] += 0.5f;  // what all have in common
      if (i % kHeadDim >= 20) keys[i] *= 3;
    }
  }
  static std::vector<float> Queries(size_t rows, uint64_t seed) {
    std::vector<float> queries = Normals(rows * kHeadDim, seed, 0.005f);
    const std::vector<float> inside = Normals(rows * 8, seed + 100, 0.9f);
    for (size_t i = 0; i < rows; ++i) {
      for (size_t d = 0; d < 8; ++d) {
        queries[i * kHeadDim + (d < 4 ? d : 4 + i % kRows * 4 + d - 4)] += inside[i * 8 + d];
      }
    }
    return queries;
  }
  KeyPanels Panels(const std::vector<float>& rows) const {
    return KeyPanels::Contiguous(rows.data(), kKeys, kHeadDim, KvDtype::kFloat32);
  }
  ClusterTable Table(bool residual_codes) const {
    auto table = *ClusterTable::Create({.residual_codes = residual_codes},
                                       QuerySpace(samples, Panels(keys)));
    ComputePool pool(1);
    const KeyPanels value_panels = Panels(values);
    EXPECT_TRUE(table.Add(Panels(keys), &value_panels, kKeys, pool).ok());
    return table;
  }

  std::vector<float> keys;
  std::vector<float> values;
  std::vector<float> samples;
};

// The exact weights of a group's queries: [rows, keys], each row sums to 1.
std::vector<double> Weights(const Head& head, const std::vector<float>& queries) {
  std::vector<float> logits(Head::kKeys * Head::kRows);
  ScoreRun(queries, Head::kHeadDim, head.keys.data(), KvDtype::kFloat32, Head::kKeys,
           logits.data());
  std::vector<double> weights(logits.size());
  for (size_t row = 0; row < Head::kRows; ++row) {
    double sum = 0;
    for (size_t i = 0; i < Head::kKeys; ++i) {
      sum += weights[row * Head::kKeys + i] = std::exp(double{logits[i * Head::kRows + row]});
    }
    for (size_t i = 0; i < Head::kKeys; ++i) weights[row * Head::kKeys + i] /= sum;
  }
  return weights;
}

double MassOf(const std::vector<double>& weights, const std::set<size_t>& tokens) {
  double mass = 0;
  for (const size_t token : tokens) {
    for (size_t row = 0; row < Head::kRows; ++row) mass += weights[row * Head::kKeys + token];
  }
  return mass;
}

std::set<size_t> Tokens(const ClusterTable& table, const KeyChoice& choice) {
  std::set<size_t> tokens;
  for (size_t i = 0; i < choice.clusters.size(); ++i) {
    const auto members = table.members(choice.clusters[i]);
    for (size_t at = choice.begins[i]; at < choice.begins[i + 1]; ++at) {
      tokens.insert(members.first_key + members.offsets[choice.places[at]]);
    }
  }
  return tokens;
}

// The mean relative error of the rows' outputs, of exact attention to `tokens` and an estimate.
double OutputError(const Head& head, const std::vector<double>& weights,
                   const std::vector<float>& queries, const std::set<size_t>& tokens,
                   const std::vector<float>& out, const std::vector<float>& lse) {
  double error = 0;
  for (size_t row = 0; row < Head::kRows; ++row) {
    // The sum of exponentials, from one key's logit and weight.
    const double logit =
        std::inner_product(queries.begin() + row * Head::kHeadDim,
                           queries.begin() + (row + 1) * Head::kHeadDim, head.keys.begin(), 0.0);
    const double log_sum = logit - std::log(weights[row * Head::kKeys]);
    const double rest = std::exp(double{lse[row]} - log_sum);
    std::vector<double> full(Head::kHeadDim), merged(Head::kHeadDim);
    double mass = rest;
    for (size_t i = 0; i < Head::kKeys; ++i) {
      const bool read = tokens.count(i) > 0;
      const double weight = weights[row * Head::kKeys + i];
      mass += read ? weight : 0;
      for (size_t d = 0; d < Head::kHeadDim; ++d) {
        const double part = weight * double{head.values[i * Head::kHeadDim + d]};
        full[d] += part;
        merged[d] += read ? part : 0;
      }
    }
    double off = 0, norm = 0;
    for (size_t d = 0; d < Head::kHeadDim; ++d) {
      const double got = (merged[d] + rest * double{out[row * Head::kHeadDim + d]}) / mass;
      off += (got - full[d]) * (got - full[d]);
      norm += full[d] * full[d];
    }
    error += std::sqrt(off / norm) / Head::kRows;
  }
  return error;
}

TEST(ClusterKeysTest, CodesFindTheKeysThatMeansOfClustersMiss) {
  const Head head(1);
  const ClusterTable with = head.Table(true);
  const ClusterTable without = head.Table(false);
  // The dimensions of all four heads, though their rows alternate.
  EXPECT_GE(with.space().dimensions(), 20u);
  EXPECT_LE(with.space().dimensions(), 32u);
  constexpr size_t kBudget = Head::kKeys * 3 / 100;
  double oracle = 0, found = 0, by_clusters = 0, by_means = 0, error = 0, cluster_error = 0;
  ClusterScores scores;
  std::vector<float> out(Head::kRows * Head::kHeadDim), lse(Head::kRows);
  constexpr size_t kSteps = 4;
  for (uint64_t step = 0; step < kSteps; ++step) {
    const std::vector<float> queries = Head::Queries(Head::kRows, 1000 + step);
    const std::vector<double> weights = Weights(head, queries);
    std::vector<double> shares(Head::kKeys);
    for (size_t i = 0; i < weights.size(); ++i) shares[i % Head::kKeys] += weights[i];
    std::nth_element(shares.begin(), shares.begin() + kBudget, shares.end(), std::greater<>());
    oracle += std::accumulate(shares.begin(), shares.begin() + kBudget, 0.0);

    with.Score(queries, scores);
    KeyChoice keys;
    with.RankKeys(scores, {.keys = kBudget}, keys);
    const std::set<size_t> tokens = Tokens(with, keys);
    ASSERT_EQ(tokens.size(), kBudget);
    EXPECT_TRUE(std::is_sorted(keys.clusters.begin(), keys.clusters.end()));
    found += MassOf(weights, tokens);
    with.Estimate(scores, keys, absl::MakeSpan(out), absl::MakeSpan(lse));
    error += OutputError(head, weights, queries, tokens, out, lse) / kSteps;

    const auto read_clusters = [&](const ClusterTable& table) {
      std::vector<uint32_t> clusters;
      table.Rank(scores, {.keys = kBudget}, clusters);
      std::set<size_t> read;
      for (const uint32_t c : clusters) {
        const auto members = table.members(c);
        for (const uint16_t offset : members.offsets) read.insert(members.first_key + offset);
      }
      table.Estimate(scores, clusters, absl::MakeSpan(out), absl::MakeSpan(lse));
      cluster_error +=
          &table == &with ? OutputError(head, weights, queries, read, out, lse) / kSteps : 0;
      return MassOf(weights, read);
    };
    by_clusters += read_clusters(with);
    without.Score(queries, scores);
    EXPECT_TRUE(scores.scanned.empty());
    by_means += read_clusters(without);
  }
  RecordProperty("found", std::to_string(found / oracle));
  RecordProperty("error", std::to_string(error));
  EXPECT_GE(found / oracle, 0.97);
  EXPECT_GT(by_clusters, by_means);
  EXPECT_GT(found, 1.05 * by_clusters);
  EXPECT_LT(error, 0.05);
  EXPECT_LT(error, cluster_error);
}

TEST(ClusterKeysTest, AnyNumberOfKeysCanBeChosenAndSmallOnesLeft) {
  const Head head(2);
  const ClusterTable table = head.Table(true);
  const std::vector<float> queries = Head::Queries(Head::kRows, 2000);
  ClusterScores scores;
  table.Score(queries, scores);
  const size_t known = scores.scanned.size() * 16;
  ASSERT_GT(known, 0u);
  ASSERT_LT(known, Head::kKeys);
  KeyChoice choice;
  std::set<size_t> before;
  for (const size_t budget : {size_t{0}, size_t{1}, size_t{500}, known, known + 160, Head::kKeys}) {
    table.RankKeys(scores, {.keys = budget}, choice);
    const std::set<size_t> tokens = Tokens(table, choice);
    EXPECT_EQ(tokens.size(), budget);
    EXPECT_EQ(choice.places.size(), budget);
    EXPECT_TRUE(std::includes(tokens.begin(), tokens.end(), before.begin(), before.end()));
    before = tokens;
  }
  constexpr float kShare = 0.002f;
  table.RankKeys(scores, {.keys = Head::kKeys, .min_share = kShare}, choice);
  size_t large = 0;
  for (size_t i = 0; i < known; ++i) {
    double share = 0;
    for (size_t row = 0; row < Head::kRows; ++row) {
      share += double{scores.key_masses[row * known + i]} / scores.totals[row] / Head::kRows;
    }
    ASSERT_GT(std::abs(share - kShare), 1e-8) << "rounding decides; take other keys";
    large += share > kShare ? 1 : 0;
  }
  EXPECT_GT(large, 0u);
  EXPECT_EQ(choice.places.size(), large);
  EXPECT_EQ(choice.begins.back(), large);
}

TEST(ClusterKeysTest, EveryInstructionSetFindsTheSame) {
  const Head head(3);
  const ClusterTable table = head.Table(true);
  const std::vector<float> queries = Head::Queries(Head::kRows, 3000);
  ClusterScores want;
  KeyChoice choice;
  table.Score(queries, want);
  table.RankKeys(want, {.keys = 500}, choice);
  const std::set<size_t> wanted = Tokens(table, choice);
  for (const int64_t target : hwy::SupportedAndGeneratedTargets()) {
    SCOPED_TRACE(hwy::TargetName(target));
    hwy::SetSupportedTargetsForTest(target);
    ClusterScores got;
    table.Score(queries, got);
    for (size_t row = 0; row < Head::kRows; ++row) {
      EXPECT_NEAR(got.shifts[row], want.shifts[row], 1e-3);
      EXPECT_NEAR(got.totals[row], want.totals[row], 1e-3 * want.totals[row]);
    }
    table.RankKeys(got, {.keys = 500}, choice);
    std::vector<size_t> both;
    const std::set<size_t> found = Tokens(table, choice);
    EXPECT_EQ(found.size(), 500u);
    std::set_intersection(found.begin(), found.end(), wanted.begin(), wanted.end(),
                          std::back_inserter(both));
    EXPECT_GE(both.size(), 490u);
  }
  hwy::SetSupportedTargetsForTest(0);
}

TEST(ClusterKeysTest, SummariesAreASmallShareOfKeysAndValues) {
  for (const size_t head_dim : {64u, 128u}) {
    const std::vector<float> keys = Normals(16384 * head_dim, 15);
    auto table = ClusterTable::Create({.head_dim = head_dim}, QuerySpace(head_dim));
    ComputePool pool(1);
    const KeyPanels panels = KeyPanels::Contiguous(keys.data(), 16384, head_dim, KvDtype::kFloat32);
    ASSERT_TRUE(table->Add(panels, &panels, 16384, pool).ok());
    EXPECT_LE(table->memory_bytes(), 0.07 * 16384 * 2 * static_cast<double>(head_dim) * 2);
  }
}

TEST(ResidualCodesTest, CodesAreNearResidualsOnEveryInstructionSet) {
  constexpr size_t kDims = 40;
  constexpr size_t kPlaces = 83;
  constexpr size_t kRows = 5;
  const std::vector<float> residuals = Normals(kPlaces * kDims, 3);
  const std::vector<float> represented = Normals(kDims * kRows, 4);
  const std::vector<float> shape(kDims, 1.0f / kDims);
  const std::vector<float> bases = Normals(kRows, 5);
  constexpr float kSpread = kDims;  // every element has a deviation of 1
  for (const size_t head_dim : {128u, 64u, 32u}) {
    const ResidualShape codes_shape = ResidualShape::For(head_dim);
    const std::vector<uint16_t> coded = CodedDimensions(codes_shape, shape);
    ASSERT_EQ(coded.size(), codes_shape.dimensions);
    std::vector<uint16_t> codes(codes_shape.size(kPlaces));
    for (size_t place = 0; place < kPlaces; ++place) {
      EncodeResidual(codes_shape, coded, shape, kSpread, residuals.data() + place * kDims, place,
                     codes.data());
    }
    for (const int64_t target : hwy::SupportedAndGeneratedTargets()) {
      SCOPED_TRACE(hwy::TargetName(target));
      hwy::SetSupportedTargetsForTest(target);
      ResidualQueries queries;
      queries.Set(codes_shape, coded, shape, represented, kRows);
      for (const auto& [first, count] :
           {std::pair<size_t, size_t>{0, 83}, {16, 32}, {7, 5}, {40, 43}}) {
        std::vector<float> logits(kRows * count);
        queries.Score(codes.data(), first, count, std::sqrt(kSpread), bases, count, logits.data());
        double off = 0, variance = 0;
        for (size_t row = 0; row < kRows; ++row) {
          for (size_t i = 0; i < count; ++i) {
            double product = 0;
            for (const uint16_t d : coded) {
              product +=
                  double{represented[d * kRows + row]} * double{residuals[(first + i) * kDims + d]};
            }
            const double error = double{logits[row * count + i]} - double{bases[row]} - product;
            off += error * error;
            variance += product * product;
          }
        }
        EXPECT_LT(off, 2 * double{codes_shape.distortion()} * variance);
      }
    }
    hwy::SetSupportedTargetsForTest(0);
  }
}

TEST(WorthCutTest, TakesTheLargestAndTheFirstOfEquals) {
  std::vector<float> worth = Normals(1000, 6);
  for (float& x : worth) x = std::floor(std::abs(x) * 20) / 20;  // many are equal, some are 0
  std::vector<size_t> order(worth.size());
  std::iota(order.begin(), order.end(), size_t{0});
  std::stable_sort(order.begin(), order.end(),
                   [&](size_t a, size_t b) { return worth[a] > worth[b]; });
  std::vector<float> scratch;
  for (const size_t most : {0u, 1u, 2u, 17u, 500u, 990u, 999u, 1000u, 2000u}) {
    std::vector<uint32_t> taken;
    WorthCut(worth, most, scratch).Collect(worth, taken);
    std::vector<uint32_t> want(
        order.begin(), order.begin() + static_cast<ptrdiff_t>(std::min<size_t>(most, 1000)));
    std::sort(want.begin(), want.end());
    EXPECT_EQ(taken, want) << most;
  }
}

}  // namespace
}  // namespace terrace
