#ifndef TERRACE_INDEX_QUERY_SPACE_H_
#define TERRACE_INDEX_QUERY_SPACE_H_

#include <cstddef>
#include <vector>

#include "absl/types/span.h"
#include "index/key_panels.h"

namespace terrace {

// The directions in which queries tell keys apart. Queries are not distributed like keys: most of
// the variance of keys is across directions that no query has, so that keys which are near each
// other need not have like inner products with a query, and the other way round. With
// C = E[q q^T] over sample queries, the distance of keys in this space is
// |C^(1/2) (a - b)|^2 = E[(q . a - q . b)^2], the difference that a query sees. C^(1/2) is kept as
// eigenvectors times the roots of their eigenvalues, without those that hardly contribute to inner
// products, so the space has fewer dimensions than keys.
//
// Constant after construction, so thread-safe; copies are cheap enough.
class QuerySpace {
 public:
  // The keys' own space, for want of queries.
  explicit QuerySpace(size_t head_dim);
  // `samples` is [n, head_dim], n > 0, and finite. `keys` are some of those that will be projected
  // and finite.
  QuerySpace(absl::Span<const float> samples, const KeyPanels& keys);
  // From matrix() of another.
  QuerySpace(size_t head_dim, std::vector<float> matrix);

  size_t head_dim() const { return head_dim_; }
  size_t dimensions() const { return dimensions_; }  // at most head_dim
  // [dimensions, head_dim]; empty in the keys' own space.
  absl::Span<const float> matrix() const { return matrix_; }

  // Writes the keys of [first, first + count) in this space: [count, dimensions].
  void Project(const KeyPanels& keys, size_t first, size_t count, float* out) const;
  // Writes the w of each query with q . k = w . Project(k), up to what of q is outside of the
  // space: [dimensions, rows]. `queries` is [rows, head_dim].
  void Represent(absl::Span<const float> queries, float* out) const;
  size_t memory_bytes() const { return (matrix_.size() + weights_.size()) * sizeof(float); }

 private:
  void SetWeights();

  size_t head_dim_;
  size_t dimensions_;
  std::vector<float> matrix_;   // [dimensions, head_dim], rows orthogonal
  std::vector<float> weights_;  // [dimensions], one over the squared length of a row
};

}  // namespace terrace

#endif  // TERRACE_INDEX_QUERY_SPACE_H_
