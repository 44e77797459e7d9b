#ifndef TERRACE_INDEX_GRAPH_BEAM_H_
#define TERRACE_INDEX_GRAPH_BEAM_H_

#include <cstddef>
#include <cstdint>
#include <vector>

#include "absl/types/span.h"
#include "index/key_graph.h"

namespace terrace {

// The state of one best-first search through a KeyGraph, without the scores: whoever searches
// alternates between keys to score and offering their scores, and may do other work in between,
// such as a step of another search while the keys come in from memory.
//
// Best first means that the neighbours of the best key not expanded yet are scored next, and that
// the search ends when all of the `width` best keys seen are expanded. Used again, it allocates
// only where it grows. Thread-compatible.
class GraphBeam {
 public:
  struct Scored {
    float score;
    uint32_t key;
    bool expanded;
  };

  // Forgets everything. `width` is at least 1; `keys` is how many there are.
  void Start(size_t width, size_t keys);
  // Those of `keys` that were not handed out since Start: score them and Offer the result.
  absl::Span<const uint32_t> Unseen(absl::Span<const uint32_t> keys);
  // Expands the best key that is not, and returns its neighbours as Unseen does, which may be none.
  // False: there is no key to expand, so that the search is over.
  bool Expand(const KeyGraph& graph, absl::Span<const uint32_t>& unseen);
  // The scores of the keys that were handed out last. Larger is better; NaN is worst of all.
  void Offer(absl::Span<const uint32_t> keys, const float* scores);

  // The best keys so far, best first.
  absl::Span<const Scored> best() const { return absl::MakeConstSpan(best_.data(), count_); }
  // The key that Expand would take, so that its neighbours may be brought in; or null.
  const Scored* next() const { return next_ < count_ ? &best_[next_] : nullptr; }
  size_t seen_count() const { return seen_count_; }
  size_t memory_bytes() const;

 private:
  void Insert(uint32_t key, float score);

  size_t width_ = 0;
  size_t count_ = 0;
  size_t next_ = 0;  // all before are expanded
  size_t seen_count_ = 0;
  std::vector<Scored> best_;      // [width + 1], count_ of which are in use
  std::vector<uint64_t> seen_;    // a bit for each key
  std::vector<uint32_t> unseen_;  // handed out last
};

}  // namespace terrace

#endif  // TERRACE_INDEX_GRAPH_BEAM_H_
