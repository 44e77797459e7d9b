#ifndef TERRACE_INDEX_SUMMARY_SCORES_H_
#define TERRACE_INDEX_SUMMARY_SCORES_H_

#include <cstddef>
#include <cstdint>

namespace terrace {

// Vectors of one summary lie in groups of so many, each group as [dimensions, kVectorGroup]: one
// register holds the same element of all, and no sum over the lanes of a register is needed. What
// does not fill a group follows row by row, [dimensions] each.
inline constexpr size_t kVectorGroup = 8;

// Where element `dimension` of vector `vector` out of `count` lies in a summary, in elements.
constexpr size_t SummaryElement(size_t vector, size_t dimension, size_t count, size_t dimensions) {
  const size_t group = vector / kVectorGroup;
  if ((group + 1) * kVectorGroup > count) return vector * dimensions + dimension;
  return (group * dimensions + dimension) * kVectorGroup + vector % kVectorGroup;
}

// The queries of a lookup: fp32 [rows, dimensions], dimensions a multiple of 8.
struct SummaryQueries {
  const float* queries = nullptr;
  size_t rows = 0;
  size_t dimensions = 0;
};

// best[row] = max over the `count` > 0 vectors of query . vector, by SIMD chosen at run time.
// `next` are the vectors of the next call, which are brought into the cache meanwhile; any address
// does.
void BestHalfProducts(const SummaryQueries& queries, const uint16_t* vectors, size_t count,
                      const uint16_t* next, float* best);
// The same for vectors of 8 bits, each to be multiplied by its scale: [count].
void BestByteProducts(const SummaryQueries& queries, const int8_t* vectors, const float* scales,
                      size_t count, const int8_t* next, float* best);

}  // namespace terrace

#endif  // TERRACE_INDEX_SUMMARY_SCORES_H_
