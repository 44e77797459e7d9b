#ifndef TERRACE_INDEX_CLUSTER_TABLE_H_
#define TERRACE_INDEX_CLUSTER_TABLE_H_

#include <cstddef>
#include <cstdint>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "index/compute_pool.h"
#include "index/key_panels.h"
#include "index/query_space.h"
#include "index/segment_clusters.h"
#include "index/summary_scores.h"

namespace terrace {

struct ClusterTableOptions {
  size_t head_dim = 128;
  // Whether clusters know the mean of their values, without which nothing is estimated.
  bool has_values = true;
  // Whether the spread of a cluster counts: keys that differ have a larger mean of exponentials
  // than the exponential of their mean (Jensen).
  bool spread_correction = true;
  ClusteringOptions clustering = {};
};

// What the clusters are worth to the queries of one lookup, filled by ClusterTable::Score. Used
// again, it allocates only where it grows. Thread-compatible.
struct ClusterScores {
  size_t rows = 0;
  // [rows, clusters]: the estimated mass of a key of the cluster is exp(shift[row]) * weight.
  std::vector<float> weights;
  std::vector<float> shifts;   // [rows]
  std::vector<double> totals;  // [rows]: the sum of cluster_keys * weight over all
  std::vector<float> worth;    // [clusters], of a key; scratch of Rank
  std::vector<uint8_t> read;   // [clusters]; scratch of Estimate
};

struct ClusterBudget {
  // Keys to read at most. A cluster that does not fit ends the choice, but for the first.
  size_t keys = 0;
  // Clusters are left to estimation that hold less than this share of each row's mass.
  float min_share = 0;
};

// The clusters of all sealed segments of one layer and KV head, after RetroInfer's wave index
// (arXiv 2505.02922, section 4): of each its mean key and mean value in 8 bits and its
// spread, and of each segment the order of its keys by cluster. All clusters have equally many
// keys. Keys and values themselves are not kept and are needed in Add alone. Keys are after RoPE.
//
// Clusters are numbered over all segments in the order that they were added. Queries are
// [rows, head_dim], finite, and scaled by 1 / sqrt(head_dim); their rows are those of the group.
//
// Thread-safe, except that Add and Truncate exclude everything else.
class ClusterTable {
 public:
  // kInvalidArgument for a head_dim that is not a multiple of 8 from 8 to 1024 or not that of the
  // space, and for clustering options that are out of their limits.
  static absl::StatusOr<ClusterTable> Create(const ClusterTableOptions& options, QuerySpace space);
  // Of what Save wrote. `options` are as they were; kInvalidArgument if they were others, and
  // kDataLoss naming the place if the bytes are damaged.
  static absl::StatusOr<ClusterTable> Load(const ClusterTableOptions& options,
                                           absl::Span<const std::byte> bytes);
  // Appends the table to `bytes`.
  void Save(std::vector<std::byte>& bytes) const;

  // Seals the keys of `keys` from keys() to `end` - 1, a multiple of cluster_keys, in segments of
  // clustering.segment_keys(), the last one perhaps shorter, and works on as many segments at once
  // as `pool` has threads. `values` has the values of the same tokens; null if the table has none.
  //
  // kInvalidArgument for shapes that differ, for keys that do not fill their last cluster and,
  // naming the first, for keys or values that are not finite; then nothing was added.
  absl::Status Add(const KeyPanels& keys, const KeyPanels* values, size_t end, ComputePool& pool);

  // Forgets the segments that reach beyond the first `keys` keys; keys() says what is left.
  void Truncate(size_t keys);

  // Estimates the mass of every cluster.
  void Score(absl::Span<const float> queries, ClusterScores& scores) const;
  // The clusters to read exactly, those first of which a key is worth most: by its share of a row's
  // mass, summed over the rows.
  void Rank(ClusterScores& scores, const ClusterBudget& budget,
            std::vector<uint32_t>& chosen) const;
  // The partial attention over all clusters but those of `read`, from their mean keys, mean values
  // and spreads: `out` is [rows, head_dim], `lse` is [rows], with zeros and minus infinity
  // where nothing is left. Of a table with values.
  void Estimate(ClusterScores& scores, absl::Span<const uint32_t> read, absl::Span<float> out,
                absl::Span<float> lse) const;

  // The keys of a cluster: first_key + each of the offsets, which ascend.
  struct Members {
    size_t first_key;
    absl::Span<const uint16_t> offsets;
  };
  Members members(size_t cluster) const;

  size_t keys() const { return keys_; }
  size_t clusters() const { return keys_ / cluster_keys(); }
  size_t cluster_keys() const { return options_.clustering.cluster_keys; }
  size_t segments() const { return segments_.size(); }
  const QuerySpace& space() const { return space_; }
  // Everything it holds.
  size_t memory_bytes() const;

 private:
  struct Segment {
    size_t first_key = 0;
    size_t first_cluster = 0;
    SegmentClusters clusters;
    std::vector<float> mean;             // [head_dim], of all keys
    std::vector<std::byte> key_means;    // of Layout(clusters), less the mean
    std::vector<std::byte> value_means;  // of Layout(clusters); empty without values
  };
  ClusterTable(const ClusterTableOptions& options, QuerySpace space);

  Segment MakeSegment(const KeyPanels& keys, const KeyPanels* values, size_t first,
                      size_t count) const;
  void Take(Segment segment);
  const Segment& SegmentOf(size_t cluster) const;
  SummaryLayout Layout(size_t clusters) const {
    return {.count = clusters, .dimensions = options_.head_dim};
  }
  // Writes the log-masses of a key of each cluster of a segment, one row after the other and
  // `stride` apart, and makes `largest`, [rows], at least the largest of them. `squares` is
  // [space_.dimensions(), rows], of the elements that represent the queries there, or empty where
  // spreads do not count.
  void ScoreSegment(const Segment& segment, const SummaryQueries& queries,
                    absl::Span<const float> plain_queries, absl::Span<const float> squares,
                    size_t stride, float* logits, absl::Span<float> largest) const;

  // Constant after construction.
  ClusterTableOptions options_;
  QuerySpace space_;

  std::vector<Segment> segments_;
  size_t keys_ = 0;  // of all segments
};

}  // namespace terrace

#endif  // TERRACE_INDEX_CLUSTER_TABLE_H_
