#ifndef TERRACE_BENCH_MADE_UP_KV_H_
#define TERRACE_BENCH_MADE_UP_KV_H_

#include <cstddef>
#include <cstdint>
#include <random>
#include <vector>

#include "bench/measure.h"
#include "index/kv_convert.h"
#include "runtime/context.h"

namespace terrace {

// The shape that the benchmarks of contexts use: that of an 8B model's layer.
inline constexpr size_t kBenchKvHeads = 8;
inline constexpr size_t kBenchQueryHeads = 32;
inline constexpr size_t kBenchHeadDim = 128;
inline constexpr size_t kBenchChunk = 512;

// Keys and values for a context: chunks of normal numbers in fp16, from one pool at changing
// places.
class MadeUpKv {
 public:
  MadeUpKv() : halves_(kElements + kBenchChunk * kBenchKvHeads * kBenchHeadDim) {
    std::mt19937_64 random(7);
    std::normal_distribution<float> normal;
    std::vector<float> floats(halves_.size());
    for (float& element : floats) element = normal(random);
    EncodeKv(floats.data(), KvDtype::kFloat32, KvDtype::kFloat16, floats.size(), halves_.data());
  }

  // Appends whole chunks to every layer until the context has `tokens`.
  void Fill(Context& context, size_t layers, uint64_t tokens) const {
    for (uint64_t chunk = 0; chunk * kBenchChunk < tokens; ++chunk) {
      for (size_t layer = 0; layer < layers; ++layer) {
        const uint64_t number = 2 * (chunk * layers + layer);
        OrDie(context.Append(layer, {.keys = Chunk(number),
                                     .values = Chunk(number + 1),
                                     .tokens = kBenchChunk,
                                     .dtype = KvDtype::kFloat16}));
      }
    }
  }

 private:
  static constexpr size_t kElements = size_t{4} << 20;

  const uint16_t* Chunk(uint64_t number) const {
    return halves_.data() + number * 7919 * kBenchHeadDim % kElements;
  }

  std::vector<uint16_t> halves_;
};

}  // namespace terrace

#endif  // TERRACE_BENCH_MADE_UP_KV_H_
