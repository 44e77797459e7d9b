#include "tools/block_generator.h"

#include <algorithm>
#include <array>
#include <cstring>

#include "absl/base/attributes.h"

namespace terrace {
namespace {

// Sixteen independent xorshift64 generators (Marsaglia, "Xorshift RNGs", 2003; the triple 13, 7,
// 17) take turns to write 8 bytes each. Shifts and exclusive-or of 64-bit lanes are among the few
// operations that every SIMD instruction set has, SSE2 included, and that many lanes hide the
// latency of the six dependent operations of one step.
constexpr size_t kLanes = 16;
constexpr size_t kStepBytes = kLanes * sizeof(uint64_t);

// Two lanes; the compiler's vector types, since its vectoriser gives up on this loop at -O2.
using Pair = uint64_t __attribute__((vector_size(16)));

constexpr uint64_t kGolden = 0x9e3779b97f4a7c15;

// The output function of splitmix64.
uint64_t Mix(uint64_t z) {
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9;
  z = (z ^ (z >> 27)) * 0x94d049bb133111eb;
  return z ^ (z >> 31);
}

class BlockStream {
 public:
  BlockStream(uint64_t seed, uint64_t id) {
    const uint64_t base = Mix(Mix(seed + kGolden) ^ id);
    for (size_t lane = 0; lane < kLanes; ++lane) {
      const uint64_t state = Mix(base + (lane + 1) * kGolden);
      // Zero is xorshift's one fixed point.
      pairs_[lane / 2][lane % 2] = state != 0 ? state : kGolden;
    }
  }

  // Writes the next `bytes` of the block. REQUIRES: a multiple of kStepBytes, but for the last
  // call.
  void Write(std::byte* out, size_t bytes) {
    std::array<Pair, kLanes / 2> pairs = pairs_;
    const std::byte* const last_step = out + bytes / kStepBytes * kStepBytes;
    for (; out != last_step; out += kStepBytes) {
      Step(pairs);
      std::memcpy(out, pairs.data(), kStepBytes);
    }
    pairs_ = pairs;
    if (bytes % kStepBytes != 0) {
      Step(pairs);
      std::memcpy(out, pairs.data(), bytes % kStepBytes);
    }
  }

 private:
  ABSL_ATTRIBUTE_ALWAYS_INLINE static void Step(std::array<Pair, kLanes / 2>& pairs) {
    for (Pair& pair : pairs) {
      pair ^= pair << 13;
      pair ^= pair >> 7;
      pair ^= pair << 17;
    }
  }

  std::array<Pair, kLanes / 2> pairs_;
};

}  // namespace

void GenerateBlock(uint64_t seed, uint64_t id, absl::Span<std::byte> block) {
  BlockStream(seed, id).Write(block.data(), block.size());
}

std::optional<size_t> FirstWrongByte(uint64_t seed, uint64_t id,
                                     absl::Span<const std::byte> block) {
  constexpr size_t kPieceBytes = 2048;  // stays in the first-level cache beside the block
  static_assert(kPieceBytes % kStepBytes == 0);
  alignas(64) std::array<std::byte, kPieceBytes> expected;
  BlockStream stream(seed, id);
  for (size_t offset = 0; offset < block.size(); offset += kPieceBytes) {
    const size_t bytes = std::min(kPieceBytes, block.size() - offset);
    const std::byte* const actual = block.data() + offset;
    stream.Write(expected.data(), bytes);
    if (std::memcmp(expected.data(), actual, bytes) == 0) continue;
    const auto wrong = std::mismatch(actual, actual + bytes, expected.data());
    return offset + static_cast<size_t>(wrong.first - actual);
  }
  return std::nullopt;
}

}  // namespace terrace
