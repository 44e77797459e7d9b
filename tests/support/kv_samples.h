#ifndef TERRACE_TESTS_SUPPORT_KV_SAMPLES_H_
#define TERRACE_TESTS_SUPPORT_KV_SAMPLES_H_

#include <cstddef>
#include <cstdint>
#include <random>
#include <vector>

#include "absl/types/span.h"
#include "index/kv_convert.h"
#include "io/check.h"
#include "runtime/kv_run.h"

namespace terrace {

// Normally distributed numbers, the same for the same seed.
inline std::vector<float> NormalFloats(size_t count, uint64_t seed, float deviation = 1) {
  std::mt19937_64 random(seed);
  std::normal_distribution<float> normal(0, deviation);
  std::vector<float> floats(count);
  for (float& value : floats) value = normal(random);
  return floats;
}

// Keys and values of one KV head that own their bytes, packed or with the `paired` layout.
class KvSample {
 public:
  KvSample(absl::Span<const float> keys, absl::Span<const float> values, size_t head_dim,
           KvDtype dtype, bool paired = false)
      : bytes_((keys.size() + values.size()) * KvDtypeBytes(dtype)) {
    const size_t row = head_dim * KvDtypeBytes(dtype);
    run_.tokens = keys.size() / head_dim;
    run_.dtype = dtype;
    run_.keys = bytes_.data();
    run_.values = bytes_.data() + (paired ? row : run_.tokens * row);
    run_.key_stride = run_.value_stride = paired ? 2 * row : row;
    for (size_t token = 0; token < run_.tokens; ++token) {
      const KvRun to = run_.Slice(token, 1);
      Encode(keys.data() + token * head_dim, head_dim, to.keys);
      Encode(values.data() + token * head_dim, head_dim, to.values);
    }
  }

  // Random keys and values of deviation 1.
  static KvSample Random(size_t tokens, size_t head_dim, KvDtype dtype, uint64_t seed,
                         bool paired = false) {
    return KvSample(NormalFloats(tokens * head_dim, seed), NormalFloats(tokens * head_dim, ~seed),
                    head_dim, dtype, paired);
  }

  // Valid while the sample lives, also after a move.
  const KvRun& run() const { return run_; }

 private:
  void Encode(const float* from, size_t count, const void* to) {
    TERRACE_CHECK(
        !EncodeKv(from, KvDtype::kFloat32, run_.dtype, count, const_cast<void*>(to)).has_value());
  }

  std::vector<std::byte> bytes_;
  KvRun run_;
};

}  // namespace terrace

#endif  // TERRACE_TESTS_SUPPORT_KV_SAMPLES_H_
