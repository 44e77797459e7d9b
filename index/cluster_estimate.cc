#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

#include "index/cluster_kernels.h"
#include "index/cluster_table.h"
#include "index/key_scores.h"

// What a ClusterTable tells about queries.
namespace terrace {
namespace {

// A cluster with less than this share of every row's mass adds its mass to an estimate, and its
// value not: 8,192 of them would be 0.1 % of the output.
constexpr double kNegligibleShare = 1e-7;

}  // namespace

void ClusterTable::ScoreSegment(const Segment& segment, const SummaryQueries& queries,
                                absl::Span<const float> plain_queries,
                                absl::Span<const float> squares, size_t stride, float* logits,
                                absl::Span<float> largest) const {
  const size_t head_dim = options_.head_dim;
  const size_t rows = queries.rows();
  const size_t clusters = segment.clusters.clusters();
  // Of all keys of the segment: what was subtracted from the means.
  std::vector<float> shifts(rows);
  ScoreRun(plain_queries, head_dim, segment.mean.data(), KvDtype::kFloat32, 1, shifts.data());
  // Half the variance of a row's logits in a cluster with a spread of 1.
  std::vector<float> gains(rows);
  for (size_t i = 0; i < squares.size(); ++i) {
    gains[i % rows] += 0.5f * squares[i] * segment.clusters.shape[i / rows];
  }
  queries.ScoreEach(Layout(clusters), segment.key_means.data(), stride, logits);
  for (size_t row = 0; row < rows; ++row) {
    const LogitRaise raise{.shift = shifts[row],
                           .gain = gains[row],
                           .log_keys = std::log(static_cast<float>(cluster_keys()))};
    largest[row] = std::max(largest[row], RaiseLogits(segment.clusters.spreads.data(), clusters,
                                                      raise, logits + row * stride));
  }
}

void ClusterTable::Score(absl::Span<const float> queries, ClusterScores& scores) const {
  const size_t count = clusters();
  const SummaryQueries summary_queries(Layout(1), queries);
  scores.rows = summary_queries.rows();
  scores.weights.resize(scores.rows * count);
  scores.shifts.assign(scores.rows, -std::numeric_limits<float>::infinity());
  scores.totals.assign(scores.rows, 0.0);
  if (count == 0) return;
  std::vector<float> squares;
  if (options_.spread_correction) {
    squares.resize(space_.dimensions() * scores.rows);
    space_.Represent(queries, squares.data());
    for (float& element : squares) element *= element;
  }
  for (const Segment& segment : segments_) {
    ScoreSegment(segment, summary_queries, queries, squares, count,
                 scores.weights.data() + segment.first_cluster, absl::MakeSpan(scores.shifts));
  }
  for (size_t row = 0; row < scores.rows; ++row) {
    float* const weights = scores.weights.data() + row * count;
    scores.totals[row] = static_cast<double>(cluster_keys()) *
                         WeighLogits(weights, count, scores.shifts[row], weights);
  }
}

void ClusterTable::Rank(ClusterScores& scores, const ClusterBudget& budget,
                        std::vector<uint32_t>& chosen) const {
  const size_t count = clusters();
  scores.worth.assign(count, 0.0f);
  chosen.clear();
  for (size_t row = 0; row < scores.rows; ++row) {
    const auto per_mass = static_cast<float>(1 / scores.totals[row]);
    const float* const weights = scores.weights.data() + row * count;
    for (size_t c = 0; c < count; ++c) scores.worth[c] += weights[c] * per_mass;
  }
  const auto size = static_cast<float>(cluster_keys());
  for (size_t c = 0; c < count; ++c) {
    // No row's share is above the sum over the rows, so only few need a closer look.
    if (scores.worth[c] * size >= budget.min_share) chosen.push_back(static_cast<uint32_t>(c));
  }
  if (budget.min_share > 0) {
    std::erase_if(chosen, [&](uint32_t c) {
      for (size_t row = 0; row < scores.rows; ++row) {
        const double mass = double{scores.weights[row * count + c]} * double{size};
        if (mass >= double{budget.min_share} * scores.totals[row]) return false;
      }
      return true;
    });
  }
  // Even less than a cluster buys one.
  const size_t most = std::min(std::max<size_t>(budget.keys / cluster_keys(), 1), chosen.size());
  const auto end = chosen.begin() + static_cast<ptrdiff_t>(most);
  const auto better = [&](uint32_t a, uint32_t b) {
    return scores.worth[a] != scores.worth[b] ? scores.worth[a] > scores.worth[b] : a < b;
  };
  std::nth_element(chosen.begin(), end, chosen.end(), better);
  std::sort(chosen.begin(), end, better);
  chosen.erase(end, chosen.end());
}

void ClusterTable::Estimate(ClusterScores& scores, absl::Span<const uint32_t> read,
                            absl::Span<float> out, absl::Span<float> lse) const {
  const size_t count = clusters();
  const size_t head_dim = options_.head_dim;
  const size_t padded = Layout(1).padded_dimensions();
  scores.read.assign(count, 0);
  for (const uint32_t cluster : read) scores.read[cluster] = 1;
  std::vector<double> masses(scores.rows);
  std::vector<float> factors(scores.rows);
  std::vector<float> sums(scores.rows * padded);
  for (size_t c = 0; c < count; ++c) {
    if (scores.read[c] != 0) continue;
    bool counts = false;
    for (size_t row = 0; row < scores.rows; ++row) {
      const double mass =
          double{scores.weights[row * count + c]} * static_cast<double>(cluster_keys());
      masses[row] += mass;
      factors[row] = static_cast<float>(mass);
      counts |= mass > kNegligibleShare * scores.totals[row];
    }
    if (!counts) continue;
    const Segment& segment = SegmentOf(c);
    const size_t place = c - segment.first_cluster;
    const SummaryLayout layout = Layout(segment.clusters.clusters());
    const std::byte* const means = segment.value_means.data();
    for (float& factor : factors) factor *= layout.scales(means)[place];
    AddScaled(layout.vectors(means) + place * padded, factors.data(), scores.rows, padded,
              sums.data());
  }
  for (size_t row = 0; row < scores.rows; ++row) {
    const bool any = masses[row] > 0;
    lse[row] = any ? scores.shifts[row] + static_cast<float>(std::log(masses[row]))
                   : -std::numeric_limits<float>::infinity();
    const double per_mass = any ? 1 / masses[row] : 0;
    for (size_t d = 0; d < head_dim; ++d) {
      out[row * head_dim + d] = static_cast<float>(double{sums[row * padded + d]} * per_mass);
    }
  }
}

}  // namespace terrace
