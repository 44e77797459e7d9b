#ifndef TERRACE_INDEX_KEY_SCORES_H_
#define TERRACE_INDEX_KEY_SCORES_H_

#include <cstddef>
#include <cstdint>

#include "absl/types/span.h"
#include "index/key_panels.h"
#include "index/kv_dtype.h"

namespace terrace {

// Inner products of keys with the queries of a group, by SIMD chosen at run time: a key is read and
// converted once for up to four rows. Sums are fp32. `queries` is [rows, head_dim], head_dim a
// multiple of 8; `scores` is [keys, rows]. Thread-safe.

// Of `count` keys that lie one after the other.
void ScoreRun(absl::Span<const float> queries, size_t head_dim, const void* keys, KvDtype dtype,
              size_t count, float* scores);
// Of the keys with these ids, the next of which are brought into the cache meanwhile.
void ScoreKeys(absl::Span<const float> queries, const KeyPanels& keys,
               absl::Span<const uint32_t> ids, float* scores);
// Of two keys.
float ScorePair(const void* a, const void* b, KvDtype dtype, size_t head_dim);

}  // namespace terrace

#endif  // TERRACE_INDEX_KEY_SCORES_H_
