#ifndef TERRACE_TOOLS_ENGINE_HALF_H_
#define TERRACE_TOOLS_ENGINE_HALF_H_

#include <cstddef>
#include <cstdint>

#include "index/kv_dtype.h"

namespace terrace {

// Decodes `count` little-endian elements of `dtype` at `from`, which need not be aligned: [count].
void DecodeFloats(const void* from, KvDtype dtype, size_t count, float* to);

// The reverse, rounding to the nearest, ties to even; what is too large becomes infinity.
void EncodeFloats(const float* from, size_t count, KvDtype dtype, void* to);

}  // namespace terrace

#endif  // TERRACE_TOOLS_ENGINE_HALF_H_
