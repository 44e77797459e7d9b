#ifndef TERRACE_INDEX_KV_DTYPE_H_
#define TERRACE_INDEX_KV_DTYPE_H_

#include <cstddef>
#include <cstdint>

namespace terrace {

// How the elements of keys and values lie in memory: little-endian IEEE 754 binary32 and binary16,
// or the upper half of binary32.
enum class KvDtype : uint8_t { kFloat32, kFloat16, kBfloat16 };

constexpr size_t KvDtypeBytes(KvDtype dtype) { return dtype == KvDtype::kFloat32 ? 4 : 2; }

// "fp32", "fp16", "bf16".
constexpr const char* KvDtypeName(KvDtype dtype) {
  switch (dtype) {
    case KvDtype::kFloat32:
      return "fp32";
    case KvDtype::kFloat16:
      return "fp16";
    case KvDtype::kBfloat16:
      return "bf16";
  }
  return "unknown";
}

}  // namespace terrace

#endif  // TERRACE_INDEX_KV_DTYPE_H_
