#ifndef TERRACE_INDEX_KEY_GRAPH_H_
#define TERRACE_INDEX_KEY_GRAPH_H_

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <utility>
#include <vector>

#include "absl/types/span.h"

namespace terrace {

// A directed graph over keys, of at most `degree` neighbours each, in rows of one size. Threads may
// read it at the same time and, while nobody reads them, set the neighbours of different keys.
class KeyGraph {
 public:
  explicit KeyGraph(size_t degree) : degree_(degree) {}

  size_t degree() const { return degree_; }
  size_t size() const { return neighbours_.size() / degree_; }
  size_t memory_bytes() const { return neighbours_.capacity() * sizeof(uint32_t); }

  // New keys have no neighbours.
  void Resize(size_t keys) {
    // Exactly, as a vector that grows by itself takes up to twice as much.
    neighbours_.reserve(keys * degree_);
    neighbours_.resize(keys * degree_, kNone);
  }
  absl::Span<const uint32_t> neighbours(uint32_t key) const {
    const uint32_t* const row = neighbours_.data() + key * degree_;
    return {row, static_cast<size_t>(std::find(row, row + degree_, kNone) - row)};
  }
  // [keys, degree], and its replacement by that of another. False if a link leads to no key.
  const std::vector<uint32_t>& links() const { return neighbours_; }
  bool SetLinks(std::vector<uint32_t> links) {
    const size_t keys = links.size() / degree_;
    for (const uint32_t to : links) {
      if (to != kNone && to >= keys) return false;
    }
    neighbours_ = std::move(links);
    return true;
  }
  const uint32_t* row(uint32_t key) const { return neighbours_.data() + key * degree_; }
  // At most degree().
  void Set(uint32_t key, absl::Span<const uint32_t> neighbours) {
    uint32_t* const row = neighbours_.data() + key * degree_;
    std::fill(std::copy(neighbours.begin(), neighbours.end(), row), row + degree_, kNone);
  }

 private:
  static constexpr uint32_t kNone = 0xffffffff;  // more than any key

  size_t degree_;
  std::vector<uint32_t> neighbours_;  // [keys, degree], kNone behind the last neighbour of each
};

}  // namespace terrace

#endif  // TERRACE_INDEX_KEY_GRAPH_H_
