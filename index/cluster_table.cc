#include "index/cluster_table.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <optional>
#include <utility>

#include "absl/strings/str_cat.h"
#include "index/finite_rows.h"
#include "index/kv_convert.h"

namespace terrace {
namespace {

constexpr size_t kMaxHeadDim = 1024;

// Means of rows, those of the clusters and that of the segment.
class Means {
 public:
  Means(const KeyPanels& rows, size_t first, const SegmentClusters& clusters)
      : head_dim_(rows.head_dim()), clusters_(clusters.clusters() * head_dim_), all_(head_dim_) {
    std::vector<float> row(head_dim_);
    for (size_t c = 0; c < clusters.clusters(); ++c) {
      double* const mean = clusters_.data() + c * head_dim_;
      for (const uint16_t key : clusters.members(c)) {
        DecodeKv(rows.key(first + key), rows.dtype(), head_dim_, row.data());
        for (size_t d = 0; d < head_dim_; ++d) mean[d] += double{row[d]};
      }
      const auto size = static_cast<double>(clusters.cluster_keys());
      for (size_t d = 0; d < head_dim_; ++d) {
        all_[d] += mean[d] / static_cast<double>(clusters.order.size());
        mean[d] /= size;
      }
    }
  }

  absl::Span<const double> all() const { return all_; }
  absl::Span<const double> cluster(size_t c) const {
    return absl::MakeConstSpan(clusters_).subspan(c * head_dim_, head_dim_);
  }

 private:
  const size_t head_dim_;
  std::vector<double> clusters_;  // [clusters, head_dim]
  std::vector<double> all_;       // [head_dim]
};

float Bounded(double element) {
  constexpr double kMax = std::numeric_limits<float>::max() / 4;
  return static_cast<float>(std::clamp(element, -kMax, kMax));
}

}  // namespace

ClusterTable::ClusterTable(const ClusterTableOptions& options, QuerySpace space)
    : options_(options), space_(std::move(space)) {}

absl::StatusOr<ClusterTable> ClusterTable::Create(const ClusterTableOptions& options,
                                                  QuerySpace space) {
  if (options.head_dim == 0 || options.head_dim % 8 != 0 || options.head_dim > kMaxHeadDim) {
    return absl::InvalidArgumentError(absl::StrCat("head_dim is ", options.head_dim,
                                                   ", which is not a multiple of 8 from 8 to ",
                                                   kMaxHeadDim));
  }
  if (space.head_dim() != options.head_dim) {
    return absl::InvalidArgumentError(absl::StrCat("the query space is for a head_dim of ",
                                                   space.head_dim(), ", not ", options.head_dim));
  }
  if (absl::Status status = options.clustering.Validate(); !status.ok()) return status;
  return ClusterTable(options, std::move(space));
}

absl::Status ClusterTable::Add(const KeyPanels& keys, const KeyPanels* values, size_t end,
                               ComputePool& pool) {
  if (keys.head_dim() != options_.head_dim || end > keys.size() || end < keys_) {
    return absl::InvalidArgumentError(absl::StrCat("keys ", keys_, " to ", end, " of ", keys.size(),
                                                   " with a head_dim of ", keys.head_dim(),
                                                   " for a table with one of ", options_.head_dim));
  }
  if ((values != nullptr) != options_.has_values) {
    return absl::InvalidArgumentError(absl::StrCat(
        "a table ", options_.has_values ? "with" : "without", " values was given the other"));
  }
  if (values != nullptr && (values->head_dim() != options_.head_dim || values->size() < end)) {
    return absl::InvalidArgumentError(absl::StrCat(values->size(), " values with a head_dim of ",
                                                   values->head_dim(), " for ", end,
                                                   " keys with one of ", options_.head_dim));
  }
  if ((end - keys_) % cluster_keys() != 0) {
    return absl::InvalidArgumentError(absl::StrCat("keys ", keys_, " to ", end,
                                                   " are not a multiple of the ", cluster_keys(),
                                                   " keys of a cluster"));
  }
  const size_t segment_keys = options_.clustering.segment_keys();
  const size_t count = (end - keys_ + segment_keys - 1) / segment_keys;
  std::vector<Segment> made(count);
  std::vector<std::optional<size_t>> bad_keys(count);
  std::vector<std::optional<size_t>> bad_values(count);
  pool.ForEach(count, [&](size_t i, size_t) {
    const size_t first = keys_ + i * segment_keys;
    const size_t last = std::min(end, first + segment_keys);
    bad_keys[i] = FirstNotFinite(keys, first, last);
    if (values != nullptr) bad_values[i] = FirstNotFinite(*values, first, last);
    if (bad_keys[i] || bad_values[i]) return;
    made[i] = MakeSegment(keys, values, first, last - first);
  });
  for (size_t i = 0; i < count; ++i) {
    if (bad_keys[i]) {
      return absl::InvalidArgumentError(absl::StrCat("key ", *bad_keys[i], " is not finite"));
    }
    if (bad_values[i]) {
      return absl::InvalidArgumentError(absl::StrCat("value ", *bad_values[i], " is not finite"));
    }
  }
  for (Segment& segment : made) Take(std::move(segment));
  return absl::OkStatus();
}

ClusterTable::Segment ClusterTable::MakeSegment(const KeyPanels& keys, const KeyPanels* values,
                                                size_t first, size_t count) const {
  Segment segment;
  segment.clusters = ClusterSegment(keys, first, count, space_, options_.clustering, Residuals());
  const size_t clusters = segment.clusters.clusters();
  const Means means(keys, first, segment.clusters);
  segment.mean.resize(options_.head_dim);
  std::transform(means.all().begin(), means.all().end(), segment.mean.begin(), Bounded);
  const SummaryLayout layout = Layout(clusters);
  segment.key_means.resize(layout.bytes());
  std::vector<float> row(options_.head_dim);
  for (size_t c = 0; c < clusters; ++c) {
    for (size_t d = 0; d < row.size(); ++d) {
      row[d] = Bounded(means.cluster(c)[d] - double{segment.mean[d]});
    }
    layout.Store(c, row, 0, 0, segment.key_means.data());
  }
  if (values == nullptr) return segment;
  const Means value_means(*values, first, segment.clusters);
  segment.value_means.resize(layout.bytes());
  for (size_t c = 0; c < clusters; ++c) {
    const absl::Span<const double> mean = value_means.cluster(c);
    std::transform(mean.begin(), mean.end(), row.begin(), Bounded);
    layout.Store(c, row, 0, 0, segment.value_means.data());
  }
  return segment;
}

std::vector<float> ClusterTable::MeanValue(const Segment& segment) const {
  std::vector<float> mean(options_.has_values ? options_.head_dim : 0);
  const size_t clusters = segment.clusters.clusters();
  const SummaryLayout layout = Layout(clusters);
  const std::byte* const means = segment.value_means.data();
  for (size_t c = 0; c < clusters && !mean.empty(); ++c) {
    const int8_t* const row = layout.vectors(means) + c * layout.padded_dimensions();
    const float scale = layout.scales(means)[c] / static_cast<float>(clusters);
    for (size_t d = 0; d < mean.size(); ++d) mean[d] += scale * static_cast<float>(row[d]);
  }
  return mean;
}

void ClusterTable::Take(Segment segment) {
  segment.first_key = keys_;
  segment.first_cluster = clusters();
  segment.coded = CodedDimensions(Residuals(), segment.clusters.shape);
  segment.mean_value = MeanValue(segment);
  keys_ += segment.clusters.order.size();
  segments_.push_back(std::move(segment));
}

size_t ClusterTable::WholeSegments(size_t keys) const {
  size_t whole = keys_;
  for (auto segment = segments_.rbegin(); whole > keys; ++segment) whole = segment->first_key;
  return whole;
}

void ClusterTable::Truncate(size_t keys) {
  keys_ = WholeSegments(keys);
  while (!segments_.empty() && segments_.back().first_key >= keys_) segments_.pop_back();
}

const ClusterTable::Segment& ClusterTable::SegmentOf(size_t cluster) const {
  const auto after = std::upper_bound(
      segments_.begin(), segments_.end(), cluster,
      [](size_t number, const Segment& segment) { return number < segment.first_cluster; });
  return *std::prev(after);
}

ClusterTable::Members ClusterTable::members(size_t cluster) const {
  const Segment& segment = SegmentOf(cluster);
  return {.first_key = segment.first_key,
          .offsets = segment.clusters.members(cluster - segment.first_cluster)};
}

size_t ClusterTable::memory_bytes() const {
  size_t bytes = space_.memory_bytes() + segments_.capacity() * sizeof(Segment);
  for (const Segment& segment : segments_) {
    bytes += (segment.clusters.order.capacity() + segment.clusters.codes.capacity() +
              segment.coded.capacity()) *
                 sizeof(uint16_t) +
             (segment.clusters.spreads.capacity() + segment.clusters.shape.capacity() +
              segment.mean.capacity() + segment.mean_value.capacity()) *
                 sizeof(float) +
             segment.key_means.capacity() + segment.value_means.capacity();
  }
  return bytes;
}

}  // namespace terrace
