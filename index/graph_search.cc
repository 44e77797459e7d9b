#include "index/graph_search.h"

#include <algorithm>
#include <limits>

#include "absl/container/inlined_vector.h"
#include "index/key_scores.h"
#include "index/prefetch.h"

namespace terrace {
namespace {

// Rows that are searched for side by side: while the keys of one come in from memory, the others'
// are scored.
constexpr size_t kRowsAtOnce = 4;
constexpr size_t kTailRun = 256;

class RowSearch {
 public:
  RowSearch(const GraphView& view, absl::Span<const float> query, GraphBeam& beam, float* scores)
      : view_(view), query_(query), beam_(beam), scores_(scores) {}

  void Enter(size_t width, absl::Span<const uint32_t> entry_keys) {
    beam_.Start(width, view_.graph.size());
    if (view_.graph.size() == 0) return;
    Score(beam_.Unseen(entry_keys));
    Score(beam_.Unseen({&view_.root, 1}));
    PrefetchNeighbours();
  }
  // Asks for the keys that the next step scores. False when the search is over.
  bool Ask() {
    const bool more = beam_.Expand(view_.graph, unseen_);
    if (!more) unseen_ = {};
    for (const uint32_t key : unseen_) {
      PrefetchBytes(view_.keys.key(key), view_.keys.key_bytes());
    }
    return more;
  }
  void Step() {
    if (!unseen_.empty()) Score(unseen_);
    PrefetchNeighbours();
  }

 private:
  void Score(absl::Span<const uint32_t> keys) {
    ScoreKeys(query_, view_.keys, keys, scores_);
    beam_.Offer(keys, scores_);
  }
  void PrefetchNeighbours() {
    const GraphBeam::Scored* const next = beam_.next();
    if (next == nullptr) return;
    PrefetchBytes(view_.graph.row(next->key), view_.graph.degree() * sizeof(uint32_t));
  }

  const GraphView& view_;
  const absl::Span<const float> query_;
  GraphBeam& beam_;
  float* const scores_;
  absl::Span<const uint32_t> unseen_;
};

// Scores what is not in the graph for all rows at once, and offers it to their beams.
void ScanTail(const GraphView& view, absl::Span<const float> queries, size_t rows,
              GraphScratch& scratch) {
  const size_t end = view.keys.size();
  scratch.scores.resize(std::max(scratch.scores.size(), 2 * kTailRun * rows));
  scratch.tail_keys.resize(kTailRun);
  float* const scores = scratch.scores.data();
  float* const of_row = scores + kTailRun * rows;
  for (size_t key = view.graph.size(); key < end;) {
    const size_t count = std::min({kTailRun, view.keys.Run(key), end - key});
    ScoreRun(queries, view.keys.head_dim(), view.keys.key(key), view.keys.dtype(), count, scores);
    for (size_t i = 0; i < count; ++i) scratch.tail_keys[i] = static_cast<uint32_t>(key + i);
    for (size_t row = 0; row < rows; ++row) {
      for (size_t i = 0; i < count; ++i) of_row[i] = scores[i * rows + row];
      scratch.beams[row].Offer(absl::MakeConstSpan(scratch.tail_keys).subspan(0, count), of_row);
    }
    key += count;
  }
}

void SearchRows(const GraphView& view, absl::Span<const float> queries, size_t width,
                GraphScratch& scratch) {
  const size_t head_dim = view.keys.head_dim();
  const size_t rows = queries.size() / head_dim;
  const size_t entry_count = view.entries.Find(queries, scratch.scores, scratch.entry_keys);
  const size_t batch = std::max(entry_count, view.graph.degree());
  scratch.scores.resize(std::max(scratch.scores.size(), batch));
  absl::InlinedVector<RowSearch, kRowsAtOnce> searches;
  for (size_t row = 0; row < rows; ++row) {
    searches.emplace_back(view, queries.subspan(row * head_dim, head_dim), scratch.beams[row],
                          scratch.scores.data());
    searches[row].Enter(
        width, absl::MakeConstSpan(scratch.entry_keys).subspan(row * entry_count, entry_count));
  }
  for (bool more = true; more;) {
    more = false;
    for (RowSearch& search : searches) more |= search.Ask();
    for (RowSearch& search : searches) search.Step();
  }
}

}  // namespace

size_t GraphScratch::memory_bytes() const {
  size_t bytes = beams.capacity() * sizeof(GraphBeam) + scores.capacity() * sizeof(float) +
                 (entry_keys.capacity() + tail_keys.capacity()) * sizeof(uint32_t);
  for (const GraphBeam& beam : beams) bytes += beam.memory_bytes();
  return bytes;
}

void SearchGraph(const GraphView& view, absl::Span<const float> queries, size_t k, size_t width,
                 GraphScratch& scratch, KeySearchResult& result) {
  const size_t head_dim = view.keys.head_dim();
  const size_t rows = queries.size() / head_dim;
  result.keys.assign(rows * k, KeySearchResult::kNoKey);
  result.scores.assign(rows * k, -std::numeric_limits<float>::infinity());
  result.scored_keys = (view.keys.size() - view.graph.size()) * rows;
  result.scored_centroids = view.entries.centroid_count() * rows;
  scratch.beams.resize(std::max(scratch.beams.size(), kRowsAtOnce));
  for (size_t first = 0; first < rows; first += kRowsAtOnce) {
    const size_t count = std::min(kRowsAtOnce, rows - first);
    const auto batch = queries.subspan(first * head_dim, count * head_dim);
    SearchRows(view, batch, width, scratch);
    ScanTail(view, batch, count, scratch);
    for (size_t row = 0; row < count; ++row) {
      const GraphBeam& beam = scratch.beams[row];
      result.scored_keys += beam.seen_count();
      const size_t found = std::min(k, beam.best().size());
      for (size_t i = 0; i < found; ++i) {
        result.keys[(first + row) * k + i] = beam.best()[i].key;
        result.scores[(first + row) * k + i] = beam.best()[i].score;
      }
    }
  }
}

}  // namespace terrace
