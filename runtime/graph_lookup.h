#ifndef TERRACE_RUNTIME_GRAPH_LOOKUP_H_
#define TERRACE_RUNTIME_GRAPH_LOOKUP_H_

#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/types/span.h"
#include "index/graph_index.h"
#include "runtime/column_table.h"
#include "runtime/pinned_columns.h"
#include "runtime/query_samples.h"
#include "runtime/runtime_core.h"

namespace terrace {

// The graphs over the sealed keys of one layer of a context, for the KV heads whose policy is
// graph. A search follows links from key to key, so keys and values are kept in DRAM by leases for
// as long as the context is active; where DRAM has no room for that, there is no graph.
//
// Column 0, which has the sinks, is left out. Thread-compatible; const members are thread-safe.
class GraphLookup {
 public:
  // REQUIRES: some head of the layer has the policy. `core` outlives it.
  GraphLookup(RuntimeCore& core, size_t layer);
  GraphLookup(const GraphLookup&) = delete;
  GraphLookup& operator=(const GraphLookup&) = delete;
  ~GraphLookup();

  // Tokens of columns below can be searched; 1 where there is no graph, or its keys are not held.
  size_t end_column() const { return 1 + columns_; }
  // The end of those that it has a graph of, whether their keys are held or not.
  size_t indexed_columns() const { return indexed_ > 0 ? 1 + indexed_ : 0; }

  // Brings the keys of `columns` below `end` into DRAM, where they are not, and builds the graphs,
  // or adds to them what they do not have. `samples` has queries of each KV head. The columns that
  // were there before are the same ones. kResourceExhausted where DRAM or the memory for indexes
  // has no room, kDataLoss where a block is lost; then it is as it was, or without what it held.
  absl::Status Extend(absl::Span<const ColumnIndex> columns, size_t end,
                      absl::Span<const QuerySamples> samples);
  // Appends what Load needs to `bytes`.
  void Save(size_t kv_head, std::vector<std::byte>& bytes) const { indexes_[kv_head]->Save(bytes); }
  // Becomes what was saved for indexed_columns() of `columns`, the keys of which Extend will bring:
  // `heads` holds the bytes of each KV head with the policy, in order. Errors as GraphIndex::Load,
  // kResourceExhausted where memory has no room; then it is empty.
  absl::Status Load(absl::Span<const std::vector<std::byte>> heads, size_t columns);
  // Becomes a copy of another, with which it shares what that holds in DRAM. Without graphs where
  // memory has no room for them.
  void CopyFrom(const GraphLookup& other);
  // [heads with the policy], KV heads.
  absl::Span<const size_t> heads() const { return pinned_.kv_heads(); }

  // Lets go of keys and values; Extend takes them back.
  void Unpin();
  // Forgets the graphs.
  void Clear();

  // The tokens that the queries want, [rows, head_dim], numbered from that of column 1 on.
  // REQUIRES: the head has the policy and end_column() > 1.
  absl::Status Search(size_t kv_head, absl::Span<const float> queries,
                      const KeySearchOptions& options, KeySearchResult& result) const;
  // Where the tokens are.
  const PinnedColumns& pinned() const { return pinned_; }

 private:
  uint64_t GraphBytes(size_t columns) const;

  RuntimeCore& core_;
  const size_t layer_;
  size_t columns_ = 0;  // that can be searched
  size_t indexed_ = 0;  // columns that the indexes have, pinned or not
  PinnedColumns pinned_;
  std::vector<std::unique_ptr<GraphIndex>> indexes_;  // [kv_heads], null without the policy
  uint64_t accounted_bytes_ = 0;                      // of the memory for indexes
};

}  // namespace terrace

#endif  // TERRACE_RUNTIME_GRAPH_LOOKUP_H_
