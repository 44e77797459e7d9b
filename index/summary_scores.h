#ifndef TERRACE_INDEX_SUMMARY_SCORES_H_
#define TERRACE_INDEX_SUMMARY_SCORES_H_

#include <cstddef>
#include <cstdint>

#include "absl/container/inlined_vector.h"
#include "absl/types/span.h"

namespace terrace {

// The vectors of one summary: `count` rows of 8-bit elements, padded to a multiple of 16 with
// zeros, and behind them a scale for each. An element is worth element * scale.
struct SummaryLayout {
  size_t count = 0;
  size_t dimensions = 0;

  size_t padded_dimensions() const { return (dimensions + 15) / 16 * 16; }
  size_t scales_at() const { return count * padded_dimensions(); }
  size_t bytes() const { return scales_at() + count * sizeof(float); }

  const int8_t* vectors(const std::byte* summary) const {
    return reinterpret_cast<const int8_t*>(summary);
  }
  const float* scales(const std::byte* summary) const {
    return reinterpret_cast<const float*>(summary + scales_at());
  }
  // Stores a vector of [dimensions] finite elements: the first `up` of them are rounded up, the
  // next `down` down, and the others to the nearest.
  void Store(size_t vector, absl::Span<const float> elements, size_t up, size_t down,
             std::byte* summary) const;
};

// Queries in 16 bits, of which the error is far below that of 8-bit vectors: products and their
// sums are exact integers.
class SummaryQueries {
 public:
  // `queries` is [rows, layout.dimensions] and finite.
  SummaryQueries(const SummaryLayout& layout, absl::Span<const float> queries);

  // best[row] = max over the vectors of query . vector, by SIMD chosen at run time. `next` is a
  // summary of the same layout, which is brought into the cache meanwhile; any address does.
  void Score(const std::byte* summary, const std::byte* next, float* best) const;
  // scores[row * stride + vector] = query . vector, of every vector of a summary, which has as many
  // dimensions and perhaps another count.
  void ScoreEach(const SummaryLayout& layout, const std::byte* summary, size_t stride,
                 float* scores) const;
  size_t rows() const { return scales_.size(); }
  // [rows, padded_dimensions], and what an element of each row is worth, [rows]. A score is the
  // exact integer product of a row and a vector, as float, times both scales.
  absl::Span<const int16_t> elements() const { return queries_; }
  absl::Span<const float> scales() const { return scales_; }

 private:
  const SummaryLayout layout_;
  absl::InlinedVector<int16_t, 2048> queries_;  // [rows, padded_dimensions]
  absl::InlinedVector<float, 64> scales_;       // [rows]
};

}  // namespace terrace

#endif  // TERRACE_INDEX_SUMMARY_SCORES_H_
