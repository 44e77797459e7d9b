#ifndef TERRACE_RUNTIME_KV_RUN_H_
#define TERRACE_RUNTIME_KV_RUN_H_

#include <cstddef>

#include "index/kv_dtype.h"

namespace terrace {

// Keys and values of consecutive tokens of one KV head. Borrowed: whoever passes a run keeps the
// bytes until the call returns. Pointers and strides are multiples of an element.
struct KvRun {
  const void* keys = nullptr;    // [tokens, head_dim] of dtype, rows key_stride apart
  const void* values = nullptr;  // [tokens, head_dim] of dtype, rows value_stride apart
  size_t tokens = 0;
  KvDtype dtype = KvDtype::kFloat16;
  // Bytes from one row to the next; 0: rows are packed. The `paired` layout, K_i next to V_i, has
  // strides of two rows.
  size_t key_stride = 0;
  size_t value_stride = 0;

  // The same tokens with both strides spelled out.
  KvRun WithStrides(size_t head_dim) const {
    KvRun run = *this;
    const size_t row = head_dim * KvDtypeBytes(dtype);
    if (run.key_stride == 0) run.key_stride = row;
    if (run.value_stride == 0) run.value_stride = row;
    return run;
  }

  // Tokens [first, first + count). REQUIRES: strides are spelled out.
  KvRun Slice(size_t first, size_t count) const {
    KvRun run = *this;
    run.keys = static_cast<const std::byte*>(keys) + first * key_stride;
    run.values = static_cast<const std::byte*>(values) + first * value_stride;
    run.tokens = count;
    return run;
  }
};

}  // namespace terrace

#endif  // TERRACE_RUNTIME_KV_RUN_H_
