#ifndef TERRACE_RUNTIME_TOP_K_H_
#define TERRACE_RUNTIME_TOP_K_H_

#include <cstddef>
#include <cstdint>

namespace terrace {

// The most that a device chooses from one array.
inline constexpr unsigned kMaxTopK = 4096;

// Writes where the `k` largest of `count` scores are, the largest first, and among equals the
// first. Zeros of both signs are equal, and a NaN is below everything; NaNs are equal. `best` is
// [k]. REQUIRES: k is at most count, and count is below 2^32. Allocates. Thread-safe.
void LargestScores(const float* scores, size_t count, size_t k, uint32_t* best);

}  // namespace terrace

#endif  // TERRACE_RUNTIME_TOP_K_H_
