#include <algorithm>
#include <cmath>
#include <limits>

#include "absl/container/inlined_vector.h"
#include "index/cluster_kernels.h"
#include "index/cluster_table.h"
#include "index/prefetch.h"

// What a ClusterTable estimates of keys that are not read.
namespace terrace {
namespace {

// Clusters with less than this share of the mass, the mean over the rows, have the mean value of
// their segment for theirs: most clusters, which have next to nothing.
constexpr float kSmallShare = 1.6e-5f;
// Mean values that are added in one go, while the sums stay in registers.
constexpr size_t kAddedAtOnce = 16;

double SumOf(const float* values, size_t count) {
  // Several sums, which do not wait for each other.
  constexpr size_t kLanes = 8;
  float sums[kLanes] = {};
  size_t i = 0;
  for (; i + kLanes <= count; i += kLanes) {
    for (size_t lane = 0; lane < kLanes; ++lane) sums[lane] += values[i + lane];
  }
  double sum = 0;
  for (; i < count; ++i) sum += double{values[i]};
  for (const float lane : sums) sum += double{lane};
  return sum;
}

}  // namespace

void ClusterTable::Estimate(ClusterScores& scores, absl::Span<const uint32_t> read,
                            absl::Span<float> out, absl::Span<float> lse) const {
  scores.rest = scores.masses;
  for (const uint32_t cluster : read) {
    for (size_t row = 0; row < scores.rows; ++row) scores.rest[row * clusters() + cluster] = 0;
  }
  EstimateRest(scores, out, lse);
}

void ClusterTable::Estimate(ClusterScores& scores, const KeyChoice& read, absl::Span<float> out,
                            absl::Span<float> lse) const {
  const size_t size = cluster_keys();
  const size_t known = scores.scanned.size() * size;
  scores.rest = scores.masses;
  absl::InlinedVector<float, 16> rests(scores.rows);
  absl::InlinedVector<float, 128> unread(size);  // 1 where a key is not read
  auto scanned = scores.scanned.begin();
  for (size_t i = 0; i < read.clusters.size(); ++i) {
    const uint32_t cluster = read.clusters[i];
    const absl::Span<const uint16_t> places =
        absl::MakeConstSpan(read.places)
            .subspan(read.begins[i], read.begins[i + 1] - read.begins[i]);
    while (scanned != scores.scanned.end() && *scanned < cluster) ++scanned;
    const bool is_known = scanned != scores.scanned.end() && *scanned == cluster;
    if (is_known) {
      // Sums of what is left, since differences would leave rounding.
      std::fill(unread.begin(), unread.end(), 1.0f);
      for (const uint16_t place : places) unread[place] = 0;
      const auto first = static_cast<size_t>(scanned - scores.scanned.begin()) * size;
      WeightedSums(scores.key_masses.data() + first, known, scores.rows, unread.data(), size,
                   rests.data());
    }
    const float share = static_cast<float>(size - places.size()) / static_cast<float>(size);
    for (size_t row = 0; row < scores.rows; ++row) {
      float& rest = scores.rest[row * clusters() + cluster];
      rest = is_known ? rests[row] : rest * share;
    }
  }
  EstimateRest(scores, out, lse);
}

void ClusterTable::EstimateRest(ClusterScores& scores, absl::Span<float> out,
                                absl::Span<float> lse) const {
  const size_t count = clusters();
  const size_t head_dim = options_.head_dim;
  const size_t padded = Layout(1).padded_dimensions();
  const size_t rows = scores.rows;
  const float small = kSmallShare * static_cast<float>(rows);
  absl::InlinedVector<double, 16> masses(rows, 0.0);
  absl::InlinedVector<double, 16> others(rows, 0.0);  // of small clusters
  const int8_t* vectors[kAddedAtOnce];
  absl::InlinedVector<float, kAddedAtOnce * 16> factors(kAddedAtOnce * rows, 0.0f);
  size_t added = 0;
  scores.sums.assign(rows * padded, 0.0f);
  scores.taken.resize(count + kNumbersRoom);
  const size_t end = NumbersFrom(scores.worth.data(), count, small, scores.taken.data());
  size_t large = 0;
  const auto add = [&] {
    AddScaled(vectors, added, factors.data(), rows, padded, scores.sums.data());
    added = 0;
  };
  for (const Segment& segment : segments_) {
    const size_t segment_clusters = segment.clusters.clusters();
    const SummaryLayout layout = Layout(segment_clusters);
    const std::byte* const means = segment.value_means.data();
    for (size_t row = 0; row < rows; ++row) {
      others[row] =
          SumOf(scores.rest.data() + row * count + segment.first_cluster, segment_clusters);
      masses[row] += others[row];
    }
    for (; large < end && scores.taken[large] < segment.first_cluster + segment_clusters; ++large) {
      const size_t cluster = scores.taken[large];
      const size_t place = cluster - segment.first_cluster;
      const float scale = layout.scales(means)[place];
      for (size_t row = 0; row < rows; ++row) {
        const float mass = scores.rest[row * count + cluster];
        others[row] -= double{mass};
        factors[added * rows + row] = mass * scale;
      }
      vectors[added] = layout.vectors(means) + place * padded;
      // They lie apart, and arrive while others are listed.
      PrefetchBytes(vectors[added], padded);
      if (++added == kAddedAtOnce) add();
    }
    for (size_t row = 0; row < rows; ++row) {
      // What rounding leaves of nothing may be below zero.
      const auto mass = static_cast<float>(std::max(others[row], 0.0));
      float* const sums = scores.sums.data() + row * padded;
      for (size_t d = 0; d < head_dim; ++d) sums[d] += mass * segment.mean_value[d];
    }
  }
  add();
  for (size_t row = 0; row < rows; ++row) {
    const bool any = masses[row] > 0;
    lse[row] = any ? scores.shifts[row] + static_cast<float>(std::log(masses[row]))
                   : -std::numeric_limits<float>::infinity();
    const double per_mass = any ? 1 / masses[row] : 0;
    for (size_t d = 0; d < head_dim; ++d) {
      out[row * head_dim + d] =
          static_cast<float>(double{scores.sums[row * padded + d]} * per_mass);
    }
  }
}

}  // namespace terrace
