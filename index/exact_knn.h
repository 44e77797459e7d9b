#ifndef TERRACE_INDEX_EXACT_KNN_H_
#define TERRACE_INDEX_EXACT_KNN_H_

#include <cstddef>
#include <cstdint>
#include <vector>

#include "absl/types/span.h"
#include "index/compute_pool.h"
#include "index/key_panels.h"

namespace terrace {

// The keys with the largest inner products with each query, found by computing all of them: a
// matrix product in fp32, blocked so that what it reads again stays in the caches. `queries` is
// [rows, head_dim], head_dim a multiple of 8. Returns [rows, min(k, keys.size())], best first; of
// equal ones the smaller key first. The result does not depend on the threads of `pool`. Where
// scores overflow, keys are any.
std::vector<uint32_t> ExactNeighbours(absl::Span<const float> queries, const KeyPanels& keys,
                                      size_t k, ComputePool& pool);

}  // namespace terrace

#endif  // TERRACE_INDEX_EXACT_KNN_H_
