#ifndef TERRACE_INDEX_SEGMENT_CLUSTERS_H_
#define TERRACE_INDEX_SEGMENT_CLUSTERS_H_

#include <cstddef>
#include <cstdint>
#include <vector>

#include "absl/status/status.h"
#include "absl/types/span.h"
#include "index/key_panels.h"
#include "index/query_space.h"
#include "index/residual_codes.h"

namespace terrace {

// Keys of a sealed segment at most.
inline constexpr size_t kSegmentKeys = 8192;
inline constexpr size_t kMaxClusterKeys = kSegmentKeys / 2;

struct ClusteringOptions {
  // Keys of every cluster, exactly, so that clusters can be stored as blocks. From 1 to
  // kMaxClusterKeys.
  size_t cluster_keys = 16;
  size_t iterations = 10;  // of Lloyd's algorithm, from 1 on

  // kInvalidArgument naming the field and its limits.
  absl::Status Validate() const;
  // Of a full segment: the largest multiple of cluster_keys up to kSegmentKeys.
  size_t segment_keys() const { return kSegmentKeys / cluster_keys * cluster_keys; }
};

// The clusters of one segment. Keys in cluster order take the place of keys in token order.
struct SegmentClusters {
  size_t clusters() const { return spreads.size(); }
  size_t cluster_keys() const { return order.size() / spreads.size(); }
  // The keys of a cluster, counted from the segment's first, ascending.
  absl::Span<const uint16_t> members(size_t cluster) const {
    return absl::MakeConstSpan(order).subspan(cluster * cluster_keys(), cluster_keys());
  }

  // [clusters, cluster_keys], a permutation of the keys.
  std::vector<uint16_t> order;
  // [clusters]: the mean squared distance of its keys from its mean, in the query space.
  std::vector<float> spreads;
  // [space.dimensions()]: how the squared distances are shared among the directions; sums to 1, or
  // to 0 where all distances are 0.
  std::vector<float> shape;
  // Of the residuals of the keys, in this order: residual_codes.h. Empty where none are wanted.
  std::vector<uint16_t> codes;
};

// Clusters `count` keys from `first` on, finite, 1 to kSegmentKeys of them and a multiple of
// options.cluster_keys. K-means in the query space, by Lloyd's algorithm from evenly spaced keys,
// as RetroInfer does it within segments (arXiv 2505.02922, section 4.2); it takes inner products
// with centroids of length one, where distances in the query space, which are those of inner
// products themselves, find better clusters. Then every centroid gets equally many keys
// (AssignBalanced) and becomes their mean. Depends on nothing but its arguments. Thread-safe.
SegmentClusters ClusterSegment(const KeyPanels& keys, size_t first, size_t count,
                               const QuerySpace& space, const ClusteringOptions& options,
                               const ResidualShape& residuals = {});

}  // namespace terrace

#endif  // TERRACE_INDEX_SEGMENT_CLUSTERS_H_
