#ifndef TERRACE_INDEX_SEGMENT_CLUSTERS_H_
#define TERRACE_INDEX_SEGMENT_CLUSTERS_H_

#include <cstddef>
#include <cstdint>
#include <vector>

#include "index/key_panels.h"
#include "index/query_space.h"

namespace terrace {

// Keys of a sealed segment; fewer where a context is closed early.
inline constexpr size_t kSegmentKeys = 8192;

struct ClusteringOptions {
  size_t keys_per_cluster = 16;  // on average, before empty clusters go
  size_t iterations = 10;        // of Lloyd's algorithm
};

// The clusters of one segment. Keys in cluster order take the place of keys in token order.
struct SegmentClusters {
  size_t clusters() const { return begins.size() - 1; }

  // [keys], a permutation: the key, counted from the segment's first, at each place. Those of a
  // cluster follow each other, ascending.
  std::vector<uint16_t> order;
  // [clusters + 1]: cluster c has the places begins[c] to begins[c + 1] - 1, at least one.
  std::vector<uint16_t> begins;
  // [clusters]: the mean squared distance of its keys from its mean, in the query space.
  std::vector<float> spreads;
  // [space.dimensions()]: how the squared distances are shared among the directions; sums to 1, or
  // to 0 where all distances are 0.
  std::vector<float> shape;
};

// Clusters `count` keys from `first` on, 1 to kSegmentKeys of them, finite: k-means in the query
// space, by Lloyd's algorithm from evenly spaced keys, as RetroInfer does it within segments (arXiv
// 2505.02922, section 4.2). It takes inner products with centroids of length one; distances in the
// query space, which are those of inner products themselves, find better clusters. Depends on
// nothing but its arguments. Thread-safe.
SegmentClusters ClusterSegment(const KeyPanels& keys, size_t first, size_t count,
                               const QuerySpace& space, const ClusteringOptions& options);

}  // namespace terrace

#endif  // TERRACE_INDEX_SEGMENT_CLUSTERS_H_
