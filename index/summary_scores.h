#ifndef TERRACE_INDEX_SUMMARY_SCORES_H_
#define TERRACE_INDEX_SUMMARY_SCORES_H_

#include <cstddef>
#include <cstdint>

namespace terrace {

// Vectors of one summary lie in groups of so many, each group as [dimensions, kVectorGroup] fp16:
// one register holds the same element of all, and no sum over the lanes of a register is needed.
// What does not fill a group follows row by row, [dimensions] each.
inline constexpr size_t kVectorGroup = 8;

// Where element `dimension` of vector `vector` out of `count` lies in a summary, in elements.
constexpr size_t SummaryElement(size_t vector, size_t dimension, size_t count, size_t dimensions) {
  const size_t group = vector / kVectorGroup;
  if ((group + 1) * kVectorGroup > count) return vector * dimensions + dimension;
  return (group * dimensions + dimension) * kVectorGroup + vector % kVectorGroup;
}

// best[row] = max over the `count` vectors of query . vector, by SIMD chosen at run time. `queries`
// is fp32 [rows, dimensions], dimensions a multiple of 8; count > 0. `next` are the vectors of the
// next call, which are brought into the cache meanwhile; any address does.
void BestInnerProducts(const float* queries, size_t rows, size_t dimensions,
                       const uint16_t* vectors, size_t count, const uint16_t* next, float* best);

}  // namespace terrace

#endif  // TERRACE_INDEX_SUMMARY_SCORES_H_
