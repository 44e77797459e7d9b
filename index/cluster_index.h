#ifndef TERRACE_INDEX_CLUSTER_INDEX_H_
#define TERRACE_INDEX_CLUSTER_INDEX_H_

#include <cstddef>
#include <memory>

#include "absl/status/statusor.h"
#include "index/key_index.h"
#include "index/segment_clusters.h"

namespace terrace {

struct ClusterOptions {
  ClusteringOptions clustering = {};
  // Keys behind the last sealed segment become a segment when there are so many of them, but for
  // what does not fill a cluster; those outside of segments are searched exactly. From 1 to
  // kSegmentKeys.
  size_t seal_keys = 1024;
};

// "cluster": reads the keys of a ClusterTable that promise most. The effort, times cluster_keys, is
// the number of keys that a search reads for all its rows. kInvalidArgument naming the
// field.
absl::StatusOr<std::unique_ptr<KeyIndex>> MakeClusterIndex(const ClusterOptions& options);

}  // namespace terrace

#endif  // TERRACE_INDEX_CLUSTER_INDEX_H_
