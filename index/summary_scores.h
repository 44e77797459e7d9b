#ifndef TERRACE_INDEX_SUMMARY_SCORES_H_
#define TERRACE_INDEX_SUMMARY_SCORES_H_

#include <cstddef>
#include <cstdint>

namespace terrace {

// The loops over summaries, by SIMD chosen at run time. Queries are fp32 [rows, head_dim]; vectors
// are fp16, row-major. head_dim is a multiple of 8.

// best[row] = max over the `count` vectors [count, head_dim] of query . vector.
void BestInnerProducts(const float* queries, size_t rows, size_t head_dim, const uint16_t* vectors,
                       size_t count, float* best);

// best[row] = max over the `count` boxes [count, 2, head_dim] (smallest, then largest elements) of
// the sum over channels of max(query * smallest, query * largest).
void BestBoxBounds(const float* queries, size_t rows, size_t head_dim, const uint16_t* boxes,
                   size_t count, float* best);

}  // namespace terrace

#endif  // TERRACE_INDEX_SUMMARY_SCORES_H_
