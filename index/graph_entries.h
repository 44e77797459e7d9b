#ifndef TERRACE_INDEX_GRAPH_ENTRIES_H_
#define TERRACE_INDEX_GRAPH_ENTRIES_H_

#include <cstddef>
#include <cstdint>
#include <vector>

#include "absl/types/span.h"
#include "index/compute_pool.h"
#include "index/key_panels.h"

namespace terrace {

// Where a search enters a graph: the best keys of the sample queries' centroids that are nearest to
// the query. Such a search starts among good keys, whereas one from a fixed key spends much of its
// scores on the way there. Constant after construction, so thread-safe.
class GraphEntries {
 public:
  GraphEntries() = default;
  // `samples` is [n, head_dim], not empty, of norms that are 1.
  GraphEntries(absl::Span<const float> samples, const KeyPanels& keys, ComputePool& pool);

  // What Save needs: [centroids, head_dim] and [centroids, keys_each].
  const std::vector<float>& centroids() const { return centroids_; }
  const std::vector<uint32_t>& keys() const { return keys_; }
  // From those of another.
  GraphEntries(size_t head_dim, std::vector<float> centroids, std::vector<uint32_t> keys);

  size_t centroid_count() const { return head_dim_ == 0 ? 0 : centroids_.size() / head_dim_; }
  size_t memory_bytes() const;
  // Keys to enter at for each row of `queries`, which is [rows, head_dim]: `found` becomes
  // [rows, returned number], with keys that may repeat. `scores` is for use between calls.
  size_t Find(absl::Span<const float> queries, std::vector<float>& scores,
              std::vector<uint32_t>& found) const;

 private:
  size_t head_dim_ = 0;
  size_t keys_each_ = 0;
  std::vector<float> centroids_;  // [centroids, head_dim], of norms that are 1
  std::vector<uint32_t> keys_;    // [centroids, keys_each], best first
};

}  // namespace terrace

#endif  // TERRACE_INDEX_GRAPH_ENTRIES_H_
