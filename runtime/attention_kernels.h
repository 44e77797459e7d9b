#ifndef TERRACE_RUNTIME_ATTENTION_KERNELS_H_
#define TERRACE_RUNTIME_ATTENTION_KERNELS_H_

#include <cstddef>

#include "absl/types/span.h"
#include "runtime/kv_run.h"

namespace terrace {

// The vectorised loops below AttentionAccumulator, dispatched to the best instruction set of the
// processor. They do not allocate and are thread-safe on disjoint state.

// Rows are worked on in blocks of this many: as many accumulators as registers allow.
inline constexpr size_t kAttentionRowBlock = 4;

// Tokens are worked on in tiles of this many: a tile of fp16 keys and one of values, 8 KiB each at
// head_dim 128, stay in the first-level cache together.
inline constexpr size_t kAttentionTileTokens = 32;

// A softmax under way, for rows padded to whole blocks.
struct SoftmaxState {
  float* max = nullptr;  // [padded rows], the largest score; -infinity before any token
  float* sum = nullptr;  // [padded rows], of exp(score - max)
  float* out = nullptr;  // [padded rows, head_dim], sum of exp(score - max) * value
};

// Query rows, padded to whole blocks by rows of zeros.
struct AttentionRows {
  size_t rows = 0;  // without the padding
  size_t head_dim = 0;
  const float* queries = nullptr;  // [padded rows, head_dim], scaled; aligned to 64 bytes
};

// What each row may see of a run: its tokens below `limits[row]` - `skipped`, if any; all of them
// where `limits` is empty. A piece of a run keeps the limits of the whole and skips what is before.
struct Visibility {
  absl::Span<const size_t> limits;  // empty or [rows]
  size_t skipped = 0;
};

// Floats of scratch that the kernels need, aligned to 64 bytes: a tile of keys and one of values.
constexpr size_t AttentionScratchFloats(size_t head_dim) {
  return 2 * kAttentionTileTokens * head_dim;
}

// Adds the tokens of a run to the state, and asks memory for the first tokens of the run that will
// be `next`, which may have none. Both have their strides spelled out.
void AttendRun(const AttentionRows& rows, const KvRun& run, const Visibility& visible,
               const KvRun& next, const SoftmaxState& state, float* scratch);

// mass[t] += sum over rows of exp(score - lse[row]); `lse` is [rows], `mass` [run.tokens].
void AddRunColumnMass(const AttentionRows& rows, const KvRun& run, const Visibility& visible,
                      absl::Span<const float> lse, absl::Span<float> mass, float* scratch);

}  // namespace terrace

#endif  // TERRACE_RUNTIME_ATTENTION_KERNELS_H_
