#ifndef TERRACE_INDEX_GRAPH_SEARCH_H_
#define TERRACE_INDEX_GRAPH_SEARCH_H_

#include <cstddef>
#include <cstdint>
#include <vector>

#include "absl/types/span.h"
#include "index/graph_beam.h"
#include "index/graph_entries.h"
#include "index/key_graph.h"
#include "index/key_index.h"
#include "index/key_panels.h"

namespace terrace {

// What one search at a time works with. Used again, it allocates only where it grows.
struct GraphScratch {
  std::vector<GraphBeam> beams;  // of rows that are searched for side by side
  std::vector<float> scores;
  std::vector<uint32_t> entry_keys;
  std::vector<uint32_t> tail_keys;

  size_t memory_bytes() const;
};

// Where a search looks: a graph over the first graph.size() keys, and all keys behind them.
struct GraphView {
  const KeyGraph& graph;
  const GraphEntries& entries;
  uint32_t root;  // where every search enters besides
  const KeyPanels& keys;
};

// Finds the best k keys of each row of `queries`, [rows, head_dim], by a beam of `width`, at least
// k, over the keys where they lie, and by scoring all keys that are not in the graph. Threads may
// search at the same time, each with a scratch of its own.
void SearchGraph(const GraphView& view, absl::Span<const float> queries, size_t k, size_t width,
                 GraphScratch& scratch, KeySearchResult& result);

}  // namespace terrace

#endif  // TERRACE_INDEX_GRAPH_SEARCH_H_
