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
#include "runtime/pinned_columns.h"
#include "runtime/query_samples.h"
#include "runtime/runtime_core.h"

namespace terrace {

// The clusters over the sealed tokens of one layer of a context, for the KV heads whose policy is
// cluster. What tells which keys a query wants stays in memory. Where the keys are read depends on
// the tiers:
//
// - Without NVMe everything is in DRAM, where leases keep it (PinnedColumns) as long as the context
//   is active, and single tokens are read; where there is no room for that, nothing is looked up.
// - With NVMe a cluster has as many tokens as a block, so that it is one: the tokens of columns
//   1, 2, ..., taken segment by segment, are stored once more in the order of their clusters,
//   cluster c of all heads in posting column c, and whole clusters are read.
//
// Column 0, which has the sinks, is left out. Thread-compatible; const members are thread-safe.
class ClusterLookup {
 public:
  // REQUIRES: some head of the layer has the policy. `core` outlives it.
  ClusterLookup(RuntimeCore& core, size_t layer);
  ClusterLookup(const ClusterLookup& other);
  ClusterLookup& operator=(const ClusterLookup&) = delete;
  ~ClusterLookup();

  // Whether single tokens are read, not clusters.
  bool reads_tokens() const { return pinned_.has_value(); }
  // Where those are. REQUIRES: reads_tokens().
  const PinnedColumns& pinned() const { return *pinned_; }
  // Tokens of columns below can be looked up.
  size_t end_column() const {
    return reads_tokens() && pinned_->columns() < columns_ ? 1 : 1 + columns_;
  }
  // Columns, from column 1 on, whose tokens are in clusters; so many clusters, where those are
  // read.
  size_t columns() const { return columns_; }
  // REQUIRES: the head has the policy and columns() > 0.
  const ClusterTable& table(size_t kv_head) const { return *tables_[kv_head]; }

  // Clusters the tokens of the `columns` below `end` that are not in clusters, segment by segment,
  // and makes sure of what is to be read: it puts the blocks of clusters, with `postings`, to which
  // it adds, a column for each cluster of any layer; or it keeps tokens in DRAM, which it tries
  // again for those let go. `samples` has queries of each KV head. A segment is added as a whole or
  // not: kResourceExhausted where the tiers or the memory for indexes have no room, kDataLoss where
  // a block is lost.
  absl::Status Extend(absl::Span<const ColumnIndex> columns, size_t end,
                      absl::Span<const QuerySamples> samples, std::vector<ColumnIndex>& postings);
  // Puts the block of a cluster again that the tiers lost. Errors as for Extend.
  // REQUIRES: !reads_tokens().
  absl::Status PutAgain(size_t kv_head, size_t cluster, absl::Span<const ColumnIndex> columns,
                        ColumnIndex posting);
  // Appends what Load needs to `bytes`, which is all but the blocks.
  void Save(size_t kv_head, std::vector<std::byte>& bytes) const { table(kv_head).Save(bytes); }
  // Becomes what was saved, `heads` of which hold the bytes of each KV head with the policy, in
  // order, for so many columns. kDataLoss and kInvalidArgument as ClusterTable::Load has them,
  // kResourceExhausted where memory has no room; then it is empty.
  absl::Status Load(absl::Span<const std::vector<std::byte>> heads, size_t columns);
  absl::Span<const size_t> heads() const { return heads_; }

  // The most columns, at most `columns`, that whole segments of all heads have.
  size_t WholeSegments(size_t columns) const;
  // Forgets the clusters of columns from `columns` on, which is such a number; blocks stay.
  void Truncate(size_t columns);
  // Lets go of tokens in DRAM until the next Extend.
  void Unpin();

 private:
  absl::Status ExtendPinned(absl::Span<const ColumnIndex> columns, size_t end,
                            absl::Span<const QuerySamples> samples);
  // Adds the tokens up to `end_key` to the table of a head, which it makes where there is none.
  absl::Status AddKeys(size_t kv_head, const KeyPanels& keys, const KeyPanels& values,
                       size_t end_key, const QuerySamples& samples);
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
  size_t columns_ = 0;
  const std::vector<size_t> heads_;  // that have the policy
  std::optional<PinnedColumns> pinned_;
  std::vector<std::optional<ClusterTable>> tables_;  // [kv_heads]
  uint64_t accounted_bytes_ = 0;                     // of the memory for indexes
};

}  // namespace terrace

#endif  // TERRACE_RUNTIME_CLUSTER_LOOKUP_H_
