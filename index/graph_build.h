#ifndef TERRACE_INDEX_GRAPH_BUILD_H_
#define TERRACE_INDEX_GRAPH_BUILD_H_

#include <cstddef>
#include <cstdint>
#include <vector>

#include "absl/types/span.h"
#include "index/compute_pool.h"
#include "index/graph_beam.h"
#include "index/key_graph.h"

namespace terrace {

// Links keys for the queries that will come. Keys are points of a QueryMetric, [n, dimensions], of
// which distances are squared Euclidean. Every step is a function of its input alone: many threads
// compute candidates from the graph as it was and each sets neighbours of its own keys, so that the
// graph does not depend on how many they are. Borrows all that it is given.
class GraphBuilder {
 public:
  // `width` is how many keys a search for the neighbours of a key looks at.
  GraphBuilder(const float* points, size_t dimensions, size_t width, KeyGraph& graph,
               ComputePool& pool);

  // RoarGraph's projection (arXiv 2408.08933, section 4.2). `found` is [queries, k]: the best keys
  // of each query, best first. Keys that the same query found become candidates of each other. The
  // candidates that a key has from all queries are merged before they are pruned: the published
  // code lets each query write the neighbours of its best key, of which the last writer wins.
  void Project(absl::Span<const uint32_t> found, size_t k);
  // Connectivity enhancement (the same, section 4.3): searches for each key from `first` to `end`,
  // a batch at a time, and adds what it meets to its candidates. Searches start from `entries`.
  void Connect(size_t first, size_t end, absl::Span<const uint32_t> entries);
  // Makes all keys reachable from `root`: a key that is not is linked from the nearest that is and
  // can spare a link.
  void Reach(uint32_t root, absl::Span<const uint32_t> entries);

 private:
  struct Candidate {
    float distance;
    uint32_t key;
  };
  // What one thread works with.
  struct Scratch {
    GraphBeam beam;
    std::vector<uint32_t> keys;
    std::vector<float> distances;
    std::vector<Candidate> candidates;
    std::vector<uint32_t> chosen;
    std::vector<uint32_t> rest;
  };
  struct Link {
    uint32_t to;
    uint32_t from;
  };

  // Sorts the candidates of `key` that are in scratch.keys and prunes them into scratch.chosen.
  void Choose(uint32_t key, Scratch& scratch) const;
  // Gathers what queries that found `key` found beside it into scratch.keys.
  void GatherFound(absl::Span<const uint32_t> found, size_t k, absl::Span<const uint32_t> places,
                   Scratch& scratch) const;
  // Best first, in scratch.beam.
  void SearchFor(uint32_t key, absl::Span<const uint32_t> entries, Scratch& scratch) const;
  // Adds links back to the `keys`, whose neighbours were just set, pruning where there are too
  // many.
  void LinkBack(absl::Span<const uint32_t> keys);

  const float* point(uint32_t key) const { return points_ + key * dimensions_; }

  const float* const points_;
  const size_t dimensions_;
  const size_t width_;
  KeyGraph& graph_;
  ComputePool& pool_;
  std::vector<Scratch> scratch_;  // of each worker
};

}  // namespace terrace

#endif  // TERRACE_INDEX_GRAPH_BUILD_H_
