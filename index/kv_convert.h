#ifndef TERRACE_INDEX_KV_CONVERT_H_
#define TERRACE_INDEX_KV_CONVERT_H_

#include <cstddef>
#include <optional>

#include "index/kv_dtype.h"

namespace terrace {

// Conversions of keys and values between the dtypes that they are stored in. Both functions are
// thread-safe. Pointers are aligned to their elements; the two ranges do not overlap.

// Converts [count] elements, rounding to nearest, ties to even; subnormals are kept.
//
// Returns the index of the first element that is not finite in `to_dtype`: NaN, infinity, or beyond
// its range. What `to` then holds from that index on is unspecified. nullopt: all are finite.
std::optional<size_t> EncodeKv(const void* from, KvDtype from_dtype, KvDtype to_dtype, size_t count,
                               void* to);

// Converts [count] elements to fp32, which represents each of them exactly.
void DecodeKv(const void* from, KvDtype from_dtype, size_t count, float* to);

}  // namespace terrace

#endif  // TERRACE_INDEX_KV_CONVERT_H_
