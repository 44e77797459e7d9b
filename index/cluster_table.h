#ifndef TERRACE_INDEX_CLUSTER_TABLE_H_
#define TERRACE_INDEX_CLUSTER_TABLE_H_

#include <cstddef>
#include <cstdint>
#include <limits>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "index/compute_pool.h"
#include "index/key_panels.h"
#include "index/query_space.h"
#include "index/residual_codes.h"
#include "index/segment_clusters.h"
#include "index/summary_scores.h"

namespace terrace {

struct ClusterTableOptions {
  size_t head_dim = 128;
  // Whether clusters know the mean of their values, without which nothing is estimated.
  bool has_values = true;
  // Whether what a mean or a code leaves unknown of keys counts by its variance: keys that differ
  // have a larger mean of exponentials than the exponential of their mean (Jensen).
  bool spread_correction = true;
  // Whether single keys are known by codes, not only clusters.
  bool residual_codes = true;
  ClusteringOptions clustering = {};
};

// What the clusters are worth to the queries of one lookup, filled by ClusterTable::Score. Used
// again, it allocates only where it grows. Thread-compatible.
struct ClusterScores {
  size_t rows = 0;
  std::vector<float> shifts;  // [rows]; masses count in units of exp(shift)
  // [rows, clusters]: the estimated masses.
  std::vector<float> masses;
  std::vector<double> totals;  // [rows]: their sums
  // The clusters whose keys are known one by one, ascending, and the estimated masses of these
  // keys: [rows, scanned, cluster_keys].
  std::vector<uint32_t> scanned;
  std::vector<float> key_masses;
  // [clusters]: the share of a row's mass, summed over the rows, as of the last Score.
  std::vector<float> worth;

  // Scratch.
  std::vector<float> logits;       // [rows, clusters], of mean keys
  std::vector<float> represented;  // [space dimensions, rows]
  std::vector<float> squares;      // [space dimensions, rows]
  std::vector<float> by_row;       // [3, rows]
  std::vector<float> key_worth;    // [scanned, cluster_keys]
  std::vector<float> bin;          // of a WorthCut
  std::vector<uint32_t> taken;     // by a WorthCut
  std::vector<uint32_t> unscanned;
  std::vector<float> rest;  // [rows, clusters], of Estimate
  std::vector<float> sums;  // [rows, padded head_dim], of Estimate
  ResidualQueries residuals;
};

struct ClusterBudget {
  // Keys to read at most, but for the first cluster where clusters are read.
  size_t keys = 0;
  // Keys that hold less than this share of the mass, the mean over the rows, are left to
  // estimation; clusters that are read as a whole where the mean over their keys does.
  float min_share = 0;
};

// Single keys to read, by cluster.
struct KeyChoice {
  std::vector<uint32_t> clusters;  // those with keys to read, ascending
  // [clusters + 1]: the keys of clusters[i] are places[begins[i]] to places[begins[i + 1] - 1].
  std::vector<uint32_t> begins;
  // In the cluster, ascending; ClusterTable::members(cluster).offsets[place] is the key.
  std::vector<uint16_t> places;
};

// The clusters of all sealed segments of one layer and KV head, after RetroInfer's wave index
// (arXiv 2505.02922, section 4): of each its mean key and mean value in 8 bits and its spread, of
// each key a few bits for what it differs by from its mean key (residual_codes.h), and of each
// segment the order of its keys by cluster. All clusters have equally many keys. Keys and values
// themselves are not kept and are needed in Add alone. Keys are after RoPE.
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

  // The most keys, at most `keys`, that the first segments have.
  size_t WholeSegments(size_t keys) const;
  // Forgets the segments that reach beyond the first `keys` keys; keys() says what is left.
  void Truncate(size_t keys);

  // Estimates the mass of every cluster by its mean, and then that of the keys of the clusters with
  // almost all of the mass, at most a part of them and `most_scanned`, by their codes.
  void Score(absl::Span<const float> queries, ClusterScores& scores,
             size_t most_scanned = std::numeric_limits<size_t>::max()) const;
  // For those who score elsewhere: the mean keys of a segment, which Score scores in this form.
  struct SegmentMeans {
    size_t clusters = 0;
    SummaryLayout layout;
    const std::byte* means = nullptr;  // of `layout`, less the mean of all keys of the segment
    absl::Span<const float> spreads;   // [clusters]
  };
  SegmentMeans segment_means(size_t segment) const;
  // What those scores are raised by to be the logarithms of mean exponentials (RaiseLogits in
  // cluster_kernels.h): `shifts` and `gains` are [segments, rows].
  void Raises(absl::Span<const float> queries, absl::Span<float> shifts,
              absl::Span<float> gains) const;
  // The clusters to read exactly, best first: those with the largest shares of a row's mass, summed
  // over the rows.
  void Rank(ClusterScores& scores, const ClusterBudget& budget,
            std::vector<uint32_t>& chosen) const;
  // The keys to read exactly: those with the largest such shares. Where more are wanted than are
  // known one by one, further clusters are chosen as a whole.
  void RankKeys(ClusterScores& scores, const ClusterBudget& budget, KeyChoice& chosen) const;
  // The partial attention over all keys but those of the clusters `read`: by their codes where they
  // are known, else by mean keys and spreads, and mean values. `out` is [rows, head_dim], `lse` is
  // [rows], with zeros and minus infinity where nothing is left. Of a table with values.
  void Estimate(ClusterScores& scores, absl::Span<const uint32_t> read, absl::Span<float> out,
                absl::Span<float> lse) const;
  // The same for all keys but those of `read`.
  void Estimate(ClusterScores& scores, const KeyChoice& read, absl::Span<float> out,
                absl::Span<float> lse) const;

  // The keys of a cluster: first_key + each of the offsets, which ascend.
  struct Members {
    size_t first_key;
    absl::Span<const uint16_t> offsets;
  };
  Members members(size_t cluster) const;
  // Appends the keys of a choice to `keys`, cluster by cluster.
  void ListKeys(const KeyChoice& choice, std::vector<uint32_t>& keys) const;

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
    std::vector<uint16_t> coded;         // CodedDimensions
    std::vector<std::byte> key_means;    // of Layout(clusters), less the mean
    std::vector<std::byte> value_means;  // of Layout(clusters); empty without values
    std::vector<float> mean_value;       // [head_dim], of all values, as value_means have them
  };
  ClusterTable(const ClusterTableOptions& options, QuerySpace space);

  Segment MakeSegment(const KeyPanels& keys, const KeyPanels* values, size_t first,
                      size_t count) const;
  void Take(Segment segment);
  std::vector<float> MeanValue(const Segment& segment) const;
  const Segment& SegmentOf(size_t cluster) const;
  SummaryLayout Layout(size_t clusters) const {
    return {.count = clusters, .dimensions = options_.head_dim};
  }
  // Of one segment; `squares` is [space dimensions, rows], of the elements that represent the
  // queries.
  void RaiseOf(const Segment& segment, absl::Span<const float> queries,
               absl::Span<const float> squares, float* shifts, float* gains) const;
  // Writes the logits of the mean keys of a segment's clusters, and to `masses` the logarithms of
  // the mean exponentials of their keys, and makes the shifts at least the largest of these.
  void ScoreSegment(const Segment& segment, const SummaryQueries& queries,
                    absl::Span<const float> plain_queries, ClusterScores& scores) const;
  void ChooseScanned(ClusterScores& scores, size_t most_scanned) const;
  // Writes the logits of the keys of the scanned clusters.
  void Scan(ClusterScores& scores) const;
  void SetWorth(ClusterScores& scores) const;
  // Puts the best `count` clusters that are not scanned into scores.unscanned, ascending, without
  // those worth less than `least`.
  void ChooseUnscanned(ClusterScores& scores, size_t count, float least) const;
  // The partial attention of the masses in scores.rest.
  void EstimateRest(ClusterScores& scores, absl::Span<float> out, absl::Span<float> lse) const;
  ResidualShape Residuals() const {
    return options_.residual_codes ? ResidualShape::For(options_.head_dim) : ResidualShape();
  }

  // Constant after construction.
  ClusterTableOptions options_;
  QuerySpace space_;

  std::vector<Segment> segments_;
  size_t keys_ = 0;  // of all segments
};

}  // namespace terrace

#endif  // TERRACE_INDEX_CLUSTER_TABLE_H_
