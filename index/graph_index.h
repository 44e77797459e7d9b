#ifndef TERRACE_INDEX_GRAPH_INDEX_H_
#define TERRACE_INDEX_GRAPH_INDEX_H_

#include <cstddef>
#include <functional>
#include <memory>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "index/key_index.h"
#include "index/neighbour_search.h"

namespace terrace {

struct GraphOptions {
  size_t degree = 32;            // neighbours of a key at most, 4 bytes each: 4 to 36
  size_t sample_count = 16384;   // of the sample queries, evenly spread, that are used at most
  size_t keys_per_sample = 100;  // that each is linked through
  size_t build_width = 32;       // of the searches that look for the neighbours of a key
  size_t default_width = 256;    // of searches without an effort
  size_t tail_keys = 1024;       // appended keys that are scanned before they are linked
  // Finds the keys of the samples, which is much of the work of Build; the CPU does it where this
  // is null or fails. Borrowed as long as the index builds.
  NeighbourSearch* neighbours = nullptr;
  // Called by the thread in Build with the share done, ascending to 1. May be empty.
  std::function<void(double)> progress = nullptr;
};

// A graph over the keys of one KV head that is made of what queries find together, as
// RetrievalAttention (arXiv 2409.10516) proposes: queries lie elsewhere than keys, so that keys
// near each other tell little about what a query finds. One graph serves all query heads of the
// group, from the union of their samples; to have one for each query head, build one from its
// samples alone.
//
// Search takes the width of its beam for the effort, at least k. Appended keys are scanned until
// they are `tail_keys` or a sixty-fourth of all, whichever is more; then they are linked to what is
// near them by the metric of the queries that Build saw.
//
class GraphIndex : public KeyIndex {
 public:
  // Appends what Load needs to `bytes`; keys are no part of it.
  virtual void Save(std::vector<std::byte>& bytes) const = 0;
  // Becomes what was saved, with the keys that it had then, which may be anywhere: they are read by
  // searches, and Append may bring others in their place that are the same. kDataLoss for damaged
  // bytes, kInvalidArgument for other options or another number or size of keys; then it is empty.
  virtual absl::Status Load(absl::Span<const std::byte> bytes, const KeyPanels& keys) = 0;
};

// kInvalidArgument naming the field.
absl::StatusOr<std::unique_ptr<GraphIndex>> MakeGraphIndex(const GraphOptions& options);

}  // namespace terrace

#endif  // TERRACE_INDEX_GRAPH_INDEX_H_
