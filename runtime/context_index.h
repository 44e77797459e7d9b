#ifndef TERRACE_RUNTIME_CONTEXT_INDEX_H_
#define TERRACE_RUNTIME_CONTEXT_INDEX_H_

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/types/span.h"
#include "runtime/cluster_lookup.h"
#include "runtime/column_table.h"
#include "runtime/graph_lookup.h"
#include "runtime/query_samples.h"
#include "runtime/runtime_core.h"

namespace terrace {

// What a context knows about its sealed tokens for the heads whose policies have an index, layer by
// layer. Private to runtime/. Thread-compatible; const members are thread-safe.
//
// Indexes are made of blocks that stay where they are, so nothing is lost with them: an index that
// finds no room, or whose blocks are gone, leaves its tokens to exact attention.
class ContextIndex {
 public:
  explicit ContextIndex(RuntimeCore& core);
  ~ContextIndex();

  // Whether any head has such a policy.
  bool is_used() const;
  // Queries that a KV head was asked, [rows, head_dim], from which an index learns what to expect.
  void AddQueries(size_t layer, size_t kv_head, absl::Span<const float> queries);

  // Indexes what is worth it of `columns`, the sealed ones of the layer: whole segments always, and
  // before a step of decoding everything, once it is index_tail_tokens. Errors are not the
  // caller's: they are counted, and it is tried again when there are as many tokens more.
  void Extend(size_t layer, absl::Span<const ColumnIndex> columns, bool decoding);
  // Indexes all of `columns`, now.
  absl::Status Build(size_t layer, absl::Span<const ColumnIndex> columns);

  // Null where no head of the layer has such a policy.
  const ClusterLookup* clusters(size_t layer) const { return layers_[layer].clusters.get(); }
  const GraphLookup* graphs(size_t layer) const { return layers_[layer].graphs.get(); }
  // Where the tokens of a head are that its index finds one by one; null where it finds none such.
  const PinnedColumns* tokens(size_t layer, size_t kv_head) const;
  // The block of a cluster.
  BlockId cluster_block(size_t cluster, size_t layer, size_t kv_head) const {
    return core_.columns().block(postings_[cluster], layer, kv_head);
  }
  // A block of a cluster was not there: the next Extend makes it anew.
  void NoteLost(size_t layer, size_t kv_head, size_t cluster);

  // Forgets what it knows of the tokens of columns from `columns` on.
  void Truncate(size_t columns);
  // Becomes a copy of another; both share the blocks of clusters.
  void CopyFrom(ContextIndex& other);
  // Writes everything but the blocks to a file, whose name and `id` the manifest of the context
  // has; `postings` becomes their columns. Errors of CheckedFileWriter::Commit.
  absl::Status Save(const std::string& path, uint64_t id, std::vector<ColumnIndex>& postings);
  // Becomes what was saved. `postings` are referred to, by it from now on. Where it says why not,
  // it is empty, and Extend starts anew.
  absl::Status Load(const std::string& path, uint64_t id, std::vector<ColumnIndex> postings);
  // Lets go of what it keeps in DRAM tiers until the next Extend.
  void Unpin();
  void Clear();

  uint64_t refusals() const { return refusals_; }

 private:
  struct Lost {
    size_t kv_head;
    size_t cluster;
  };
  struct Layer {
    std::vector<QuerySamples> samples;  // [kv_heads]
    std::unique_ptr<ClusterLookup> clusters;
    std::unique_ptr<GraphLookup> graphs;
    std::vector<Lost> lost;
    size_t retry_clusters = 0;  // not before there are so many columns
    size_t retry_graphs = 0;
  };

  // Where clusters are stored, brings all layers to the same number of them, which is that of the
  // posting columns: only those may be shared, since whoever shares them may cut later segments
  // otherwise.
  void Even();
  // Forgets the clusters from about the `keep`-th on, so that all layers have whole segments.
  void TruncateClusters(size_t keep);
  absl::Status LoadLayers(const std::string& path, uint64_t id);
  absl::Status LoadLayer(Layer& layer, absl::Span<const std::byte> bytes);
  void Repair(size_t layer, absl::Span<const ColumnIndex> columns);

  RuntimeCore& core_;
  std::vector<Layer> layers_;
  std::vector<ColumnIndex> postings_;  // cluster c of every layer is in the c-th; referred to
  uint64_t refusals_ = 0;
};

}  // namespace terrace

#endif  // TERRACE_RUNTIME_CONTEXT_INDEX_H_
