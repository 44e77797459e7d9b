#ifndef TERRACE_RUNTIME_CLUSTER_LOOKUP_H_
#define TERRACE_RUNTIME_CLUSTER_LOOKUP_H_

#include <cstddef>
#include <cstdint>
#include <optional>
#include <vector>

#include "absl/status/status.h"
#include "absl/types/span.h"
#include "index/cluster_table.h"
#include "runtime/column_table.h"
#include "runtime/query_samples.h"
#include "runtime/runtime_core.h"

namespace terrace {

// The clusters over the sealed tokens of one layer of a context, for the KV heads whose policy is
// cluster. A cluster has as many tokens as a block, so that it is one: the tokens of columns
// 1, 2, ..., taken segment by segment, are stored once more in the order of their clusters, cluster
// c of all heads in posting column c. What tells which clusters a query wants stays in memory.
//
// Column 0, which has the sinks, is left out. Thread-compatible; const members are thread-safe.
class ClusterLookup {
 public:
  // REQUIRES: some head of the layer has the policy. `core` outlives it.
  ClusterLookup(RuntimeCore& core, size_t layer);
  ClusterLookup(const ClusterLookup& other);
  ClusterLookup& operator=(const ClusterLookup&) = delete;
  ~ClusterLookup();

  // Tokens of columns below are in clusters.
  size_t end_column() const { return 1 + clusters_; }
  size_t clusters() const { return clusters_; }
  // REQUIRES: the head has the policy and clusters() > 0.
  const ClusterTable& table(size_t kv_head) const { return *tables_[kv_head]; }

  // Clusters the tokens of `columns` from end_column() to `end` - 1, and puts them. `samples` has
  // queries of each KV head. `postings` has a column for each cluster of any layer, to which it
  // adds. All or nothing, segment by segment: kResourceExhausted where the tiers or the memory for
  // indexes have no room, kDataLoss where a block is lost.
  absl::Status Extend(absl::Span<const ColumnIndex> columns, size_t end,
                      absl::Span<const QuerySamples> samples, std::vector<ColumnIndex>& postings);
  // Puts the block of a cluster again that the tiers lost. Errors as for Extend.
  absl::Status PutAgain(size_t kv_head, size_t cluster, absl::Span<const ColumnIndex> columns,
                        ColumnIndex posting);
  // Appends what Load needs to `bytes`, which is all but the blocks.
  void Save(size_t kv_head, std::vector<std::byte>& bytes) const { table(kv_head).Save(bytes); }
  // Becomes what was saved, `heads` of which hold the bytes of each KV head with the policy, in
  // order, in `clusters` clusters. kDataLoss and kInvalidArgument as ClusterTable::Load has them,
  // kResourceExhausted where memory has no room; then it is empty.
  absl::Status Load(absl::Span<const std::vector<std::byte>> heads, size_t clusters);
  absl::Span<const size_t> heads() const { return heads_; }

  // The most clusters, at most `clusters`, that whole segments of all heads have.
  size_t WholeSegments(size_t clusters) const;
  // Forgets the clusters from `clusters` on, which is such a number; their blocks stay.
  void Truncate(size_t clusters);

 private:
  absl::Status AddSegment(absl::Span<const ColumnIndex> columns, size_t count,
                          absl::Span<const QuerySamples> samples,
                          absl::Span<const ColumnIndex> postings);
  // Of `heads`: reads the tokens, clusters them, and writes the blocks, [heads, count, block
  // bytes], in the order of the clusters.
  absl::Status Cluster(absl::Span<const size_t> heads, absl::Span<const ColumnIndex> columns,
                       size_t count, absl::Span<const QuerySamples> samples,
                       std::vector<std::byte>& blocks);
  absl::Status PutBlocks(absl::Span<const size_t> heads, absl::Span<const ColumnIndex> postings,
                         absl::Span<const std::byte> blocks);
  absl::Status Account();
  ClusterTableOptions TableOptions() const;

  RuntimeCore& core_;
  const size_t layer_;
  size_t clusters_ = 0;
  std::vector<size_t> heads_;                        // that have the policy
  std::vector<std::optional<ClusterTable>> tables_;  // [kv_heads]
  uint64_t accounted_bytes_ = 0;                     // of the memory for indexes
};

}  // namespace terrace

#endif  // TERRACE_RUNTIME_CLUSTER_LOOKUP_H_
