#include <algorithm>
#include <cmath>
#include <limits>

#include "index/cluster_kernels.h"
#include "index/cluster_table.h"
#include "index/key_scores.h"
#include "index/largest_worth.h"
#include "index/prefetch.h"

// How a ClusterTable finds the masses of clusters and keys.
namespace terrace {
namespace {

// Keys are looked at one by one in the best clusters, but for clusters that together have at most
// this share of the mass, in no more than one of kScannedOneOf clusters, or kMinScanned.
constexpr double kUnscannedMass = 0.01;
constexpr size_t kScannedOneOf = 4;
constexpr size_t kMinScanned = 256;

// Scanned clusters lie apart, where the processor does not see them coming: so many ahead are asked
// for.
constexpr size_t kPrefetched = 12;

// Adds half the variance of each row's logits in a cluster with a spread of 1. `squares` is
// [dimensions, rows], of the elements that represent the queries.
void AddGains(absl::Span<const float> shape, absl::Span<const float> squares,
              absl::Span<float> gains) {
  const float* at = squares.data();
  for (const float share : shape) {
    for (float& gain : gains) gain += 0.5f * share * *at++;
  }
}

}  // namespace

ClusterTable::SegmentMeans ClusterTable::segment_means(size_t segment) const {
  const Segment& from = segments_[segment];
  const size_t count = from.clusters.clusters();
  return {.clusters = count,
          .layout = Layout(count),
          .means = from.key_means.data(),
          .spreads = from.clusters.spreads};
}

void ClusterTable::Raises(absl::Span<const float> queries, absl::Span<float> shifts,
                          absl::Span<float> gains) const {
  const size_t rows = queries.size() / options_.head_dim;
  std::vector<float> squares(space_.dimensions() * rows);
  space_.Represent(queries, squares.data());
  for (float& element : squares) element *= element;
  for (size_t i = 0; i < segments_.size(); ++i) {
    RaiseOf(segments_[i], queries, squares, shifts.data() + i * rows, gains.data() + i * rows);
  }
}

void ClusterTable::RaiseOf(const Segment& segment, absl::Span<const float> queries,
                           absl::Span<const float> squares, float* shifts, float* gains) const {
  const size_t rows = queries.size() / options_.head_dim;
  // Of all keys of the segment: what was subtracted from the means.
  ScoreRun(queries, options_.head_dim, segment.mean.data(), KvDtype::kFloat32, 1, shifts);
  std::fill_n(gains, rows, 0.0f);
  if (options_.spread_correction) {
    AddGains(segment.clusters.shape, squares, absl::MakeSpan(gains, rows));
  }
}

void ClusterTable::ScoreSegment(const Segment& segment, const SummaryQueries& queries,
                                absl::Span<const float> plain_queries,
                                ClusterScores& scores) const {
  const size_t rows = scores.rows;
  const size_t count = clusters();
  const size_t segment_clusters = segment.clusters.clusters();
  float* const shifts = scores.by_row.data();
  float* const gains = scores.by_row.data() + rows;
  RaiseOf(segment, plain_queries, scores.squares, shifts, gains);
  queries.ScoreEach(Layout(segment_clusters), segment.key_means.data(), count,
                    scores.logits.data() + segment.first_cluster);
  for (size_t row = 0; row < rows; ++row) {
    const LogitRaise raise{.shift = shifts[row],
                           .gain = gains[row],
                           .log_keys = std::log(static_cast<float>(cluster_keys()))};
    const size_t at = row * count + segment.first_cluster;
    scores.shifts[row] = std::max(
        scores.shifts[row], RaiseLogits(segment.clusters.spreads.data(), segment_clusters, raise,
                                        scores.logits.data() + at, scores.masses.data() + at));
  }
}

void ClusterTable::Score(absl::Span<const float> queries, ClusterScores& scores,
                         size_t most_scanned) const {
  const size_t count = clusters();
  const SummaryQueries summary_queries(Layout(1), queries);
  const size_t rows = summary_queries.rows();
  scores.rows = rows;
  scores.logits.resize(rows * count);
  scores.masses.resize(rows * count);
  scores.by_row.resize(3 * rows);
  scores.shifts.assign(rows, -std::numeric_limits<float>::infinity());
  scores.totals.assign(rows, 0.0);
  scores.scanned.clear();
  scores.key_masses.clear();
  if (count == 0) return;
  scores.represented.resize(space_.dimensions() * rows);
  space_.Represent(queries, scores.represented.data());
  scores.squares = scores.represented;
  for (float& element : scores.squares) element *= element;
  for (const Segment& segment : segments_) ScoreSegment(segment, summary_queries, queries, scores);
  for (size_t row = 0; row < rows; ++row) {
    float* const weights = scores.masses.data() + row * count;
    scores.totals[row] = WeighLogits(weights, count, scores.shifts[row], weights);
  }
  if (options_.residual_codes) {
    ChooseScanned(scores, most_scanned);
    Scan(scores);
  }
  const size_t keys = scores.scanned.size() * cluster_keys();
  for (size_t row = 0; row < rows; ++row) {
    float* const key_masses = scores.key_masses.data() + row * keys;
    const float largest = keys == 0 ? scores.shifts[row]
                                    : std::max(scores.shifts[row], LargestLogit(key_masses, keys));
    const float factor =
        std::exp(scores.shifts[row] - largest) * static_cast<float>(cluster_keys());
    scores.shifts[row] = largest;
    float* const masses = scores.masses.data() + row * count;
    double total = ScaleMasses(masses, count, factor);
    if (keys > 0) {
      WeighLogits(key_masses, keys, largest, key_masses);
      scores.bin.resize(scores.scanned.size());
      SumGroups(key_masses, scores.scanned.size(), cluster_keys(), scores.bin.data());
      for (size_t i = 0; i < scores.scanned.size(); ++i) {
        float& mass = masses[scores.scanned[i]];
        total += double{scores.bin[i]} - double{mass};
        mass = scores.bin[i];
      }
    }
    scores.totals[row] = total;
  }
  SetWorth(scores);
}

void ClusterTable::SetWorth(ClusterScores& scores) const {
  const size_t count = clusters();
  scores.worth.assign(count, 0.0f);
  for (size_t row = 0; row < scores.rows; ++row) {
    const auto per_mass = static_cast<float>(1 / scores.totals[row]);
    AddShares(scores.masses.data() + row * count, count, per_mass, scores.worth.data());
  }
  // Products of huge keys overflow, perhaps both ways at once.
  for (float& worth : scores.worth) worth = worth > 0 ? worth : 0;
}

void ClusterTable::ChooseScanned(ClusterScores& scores, size_t most_scanned) const {
  const size_t count = clusters();
  SetWorth(scores);
  const size_t most = std::min(std::max(count / kScannedOneOf, kMinScanned), most_scanned);
  WorthCut(scores.worth, most, scores.bin).Collect(scores.worth, scores.scanned);
  const auto least = static_cast<float>(kUnscannedMass * static_cast<double>(scores.rows) /
                                        static_cast<double>(count));
  std::erase_if(scores.scanned, [&](uint32_t c) { return scores.worth[c] < least; });
}

void ClusterTable::Scan(ClusterScores& scores) const {
  const size_t count = clusters();
  const size_t rows = scores.rows;
  const ResidualShape shape = Residuals();
  const size_t stride = scores.scanned.size() * cluster_keys();
  scores.key_masses.resize(rows * stride);
  const absl::Span<float> gains = absl::MakeSpan(scores.by_row).subspan(0, rows);
  const absl::Span<float> bases = absl::MakeSpan(scores.by_row).subspan(rows, rows);
  size_t i = 0;
  for (const Segment& segment : segments_) {
    const SegmentClusters& clusters = segment.clusters;
    const size_t end = segment.first_cluster + clusters.clusters();
    if (i == scores.scanned.size() || scores.scanned[i] >= end) continue;
    scores.residuals.Set(shape, segment.coded, clusters.shape, scores.represented, rows);
    // Half the variance of a row's logits that codes leave unknown, in a cluster with a spread
    // of 1.
    std::fill(gains.begin(), gains.end(), 0.0f);
    if (options_.spread_correction) {
      AddGains(clusters.shape, scores.squares, gains);
      for (const uint16_t d : segment.coded) {
        for (size_t row = 0; row < rows; ++row) {
          gains[row] -=
              0.5f * scores.squares[d * rows + row] * clusters.shape[d] * (1 - shape.distortion());
        }
      }
    }
    for (; i < scores.scanned.size() && scores.scanned[i] < end; ++i) {
      const size_t ahead = i + kPrefetched;
      if (ahead < scores.scanned.size() && scores.scanned[ahead] < end) {
        const size_t place = (scores.scanned[ahead] - segment.first_cluster) * cluster_keys();
        PrefetchBytes(clusters.codes.data() + shape.size(place / kCodedPlaces * kCodedPlaces),
                      shape.size(cluster_keys()) * sizeof(uint16_t));
      }
      const size_t cluster = scores.scanned[i] - segment.first_cluster;
      const float spread = clusters.spreads[cluster];
      for (size_t row = 0; row < rows; ++row) {
        bases[row] = scores.logits[row * count + scores.scanned[i]] + gains[row] * spread;
      }
      scores.residuals.Score(clusters.codes.data(), cluster * cluster_keys(), cluster_keys(),
                             std::sqrt(spread), bases, stride,
                             scores.key_masses.data() + i * cluster_keys());
    }
  }
}

}  // namespace terrace
