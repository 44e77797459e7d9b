#ifndef TERRACE_INDEX_PREFETCH_H_
#define TERRACE_INDEX_PREFETCH_H_

#include <cstddef>

#include "hwy/base.h"
#include "hwy/cache_control.h"

namespace terrace {

// Asks for `bytes` bytes at `from`, which the processor does not see coming. Always inlined: a
// function that does nothing else has no effects for the compiler, which drops calls of it.
HWY_INLINE void PrefetchBytes(const void* from, size_t bytes) {
  constexpr size_t kLineBytes = 64;
  for (size_t i = 0; i < bytes; i += kLineBytes) {
    hwy::Prefetch(static_cast<const std::byte*>(from) + i);
  }
}

}  // namespace terrace

#endif  // TERRACE_INDEX_PREFETCH_H_
