#ifndef TERRACE_RUNTIME_GRAPH_LOOKUP_H_
#define TERRACE_RUNTIME_GRAPH_LOOKUP_H_

#include <cstddef>
#include <cstdint>
#include <memory>
#include <utility>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/types/span.h"
#include "index/graph_index.h"
#include "runtime/column_table.h"
#include "runtime/query_samples.h"
#include "runtime/runtime_core.h"
#include "tiers/lease.h"

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
  void Save(size_t kv_head, std::vector<std::byte>& bytes) const {
    HeadOf(kv_head).index->Save(bytes);
  }
  // Becomes what was saved for indexed_columns() of `columns`, the keys of which Extend will bring:
  // `heads` holds the bytes of each KV head with the policy, in order. Errors as GraphIndex::Load,
  // kResourceExhausted where memory has no room; then it is empty.
  absl::Status Load(absl::Span<const std::vector<std::byte>> heads, size_t columns);
  // Becomes a copy of another, with which it shares what that holds in DRAM. Without graphs where
  // memory has no room for them.
  void CopyFrom(const GraphLookup& other);
  // [heads with the policy], KV heads.
  std::vector<size_t> heads() const;

  // Lets go of keys and values; Extend takes them back.
  void Unpin();
  // Forgets the graphs.
  void Clear();

  // The tokens that the queries want, [rows, head_dim], numbered from that of column 1 on.
  // REQUIRES: the head has the policy and end_column() > 1.
  absl::Status Search(size_t kv_head, absl::Span<const float> queries,
                      const KeySearchOptions& options, KeySearchResult& result) const;
  // Copies keys and values of these tokens, [tokens, head_dim] each, values behind the keys.
  void Gather(size_t kv_head, absl::Span<const uint32_t> tokens, std::byte* to) const;

 private:
  struct Head {
    size_t kv_head = 0;
    std::unique_ptr<GraphIndex> index;
    std::vector<const std::byte*> blocks;  // of columns 1, 2, ...
  };

  uint64_t GraphBytes(size_t columns) const;
  KeyPanels Keys(const Head& head) const;
  absl::Status Pin(absl::Span<const ColumnIndex> columns, size_t end);
  const Head& HeadOf(size_t kv_head) const { return heads_[places_[kv_head]]; }

  RuntimeCore& core_;
  const size_t layer_;
  size_t columns_ = 0;  // that can be searched
  size_t pinned_ = 0;   // columns
  size_t indexed_ = 0;  // columns that the indexes have, pinned or not
  std::vector<Head> heads_;
  std::vector<size_t> places_;  // [kv_heads], in heads_
  // What this and its copies hold in DRAM.
  struct PinnedBlocks {
    PinnedBlocks(RuntimeCore& runtime, Lease blocks) : core(runtime), lease(std::move(blocks)) {}
    ~PinnedBlocks() { core.GivePins(lease.size()); }
    RuntimeCore& core;
    const Lease lease;
  };
  std::vector<std::shared_ptr<const PinnedBlocks>> pinned_blocks_;
  uint64_t accounted_bytes_ = 0;  // of the memory for indexes
};

}  // namespace terrace

#endif  // TERRACE_RUNTIME_GRAPH_LOOKUP_H_
