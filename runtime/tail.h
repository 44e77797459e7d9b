#ifndef TERRACE_RUNTIME_TAIL_H_
#define TERRACE_RUNTIME_TAIL_H_

#include <cstddef>
#include <cstdint>
#include <optional>
#include <vector>

#include "absl/types/span.h"
#include "runtime/kv_run.h"
#include "runtime/model_shape.h"
#include "runtime/runtime_options.h"

namespace terrace {

// Where everything lies in the memory of one tail.
struct TailLayout {
  ModelShape shape;
  size_t capacity_tokens = 0;  // a layer
  size_t sink_tokens = 0;

  size_t row_bytes() const { return shape.head_dim * KvDtypeBytes(shape.dtype); }
  bool has_rotated() const { return shape.key_state == KeyState::kBeforeRope; }
  // Of one layer and KV head: sink keys, sink values, keys, values, rotated keys, masses.
  size_t head_bytes() const;
  size_t bytes() const { return head_bytes() * shape.layers * shape.kv_heads; }
};

// The layout of the tails of a runtime, and the bytes from one tail in its memory to the next: a
// block for each KV head lies behind each.
TailLayout TailLayoutOf(const RuntimeOptions& options);
size_t TailBytes(const RuntimeOptions& options);

// The keys and values of a context that no tier holds: the sinks, which stay, and for each layer
// the newest tokens, from `first` to `tokens`, as panels [tokens, head_dim] in the stored dtype,
// where attention reads them in place. Where keys come before RoPE, the newest have a copy after
// it.
//
// A view: the memory belongs to the runtime. It knows what changed of what attention reads, so that
// a mirror of the memory can follow. Thread-compatible.
class Tail {
 public:
  // Bytes of the memory.
  struct Range {
    size_t offset = 0;
    size_t bytes = 0;
  };

  // `rope` outlives the tail and is used only where the layout has rotated keys.
  Tail(const TailLayout& layout, const Rope& rope);

  // Takes the memory, [layout.bytes()] and aligned to 64, or nothing while the tail is parked. What
  // the layers hold stays as it is, so that a parked tail can come back with its bytes.
  void Attach(std::byte* memory);
  bool attached() const { return memory_ != nullptr; }
  const std::byte* memory() const { return memory_; }

  int64_t first(size_t layer) const { return layers_[layer].first; }
  int64_t tokens(size_t layer) const { return layers_[layer].tokens; }
  // Tokens that one more Append can bring.
  size_t room(size_t layer) const;

  // Appends [tokens, kv_heads, head_dim] rows of `dtype` to a layer. Returns the offset of the
  // first element that is not finite once stored, keys first and then values, and what was appended
  // is then gone again. REQUIRES: tokens <= room(layer).
  struct BadElement {
    bool in_keys = true;
    size_t offset = 0;  // in elements
  };
  std::optional<BadElement> Append(size_t layer, const void* keys, const void* values,
                                   KvDtype dtype, size_t tokens);
  // Forgets the oldest tokens of a layer.
  void PopFront(size_t layer, size_t tokens);
  // Starts a layer anew, with no token, at `first`.
  void Restart(size_t layer, int64_t first) { layers_[layer] = {.first = first, .tokens = first}; }
  // Makes room for `tokens` before the oldest of a layer, which FillFront then brings, KV head by
  // KV head: rows [at, at + tokens) of the room from panels in the stored dtype, as a block holds
  // them.
  void OpenFront(size_t layer, size_t tokens);
  void FillFront(size_t layer, size_t kv_head, size_t at, const std::byte* keys,
                 const std::byte* values, size_t tokens);
  // Forgets the tokens from `tokens` on. REQUIRES: first(layer) <= tokens <= tokens(layer).
  void Truncate(size_t layer, int64_t tokens);
  // Takes over what another tail of the same layout holds of the tokens below `tokens`.
  void CopyFrom(const Tail& other, int64_t tokens);

  // Tokens [from, to) of a layer and KV head, in the state in which they are stored, or after RoPE.
  // REQUIRES: first(layer) <= from <= to <= tokens(layer).
  KvRun Run(size_t layer, size_t kv_head, int64_t from, int64_t to) const;
  KvRun RotatedRun(size_t layer, size_t kv_head, int64_t from, int64_t to) const;
  // The first tokens of the context. REQUIRES: tokens <= sink_tokens.
  KvRun Sinks(size_t layer, size_t kv_head, size_t tokens) const;
  // Brings the sinks from the panels of the first block.
  void FillSinks(size_t layer, size_t kv_head, const std::byte* keys, const std::byte* values);
  // Attention that each of tokens [from, to) received so far.
  absl::Span<float> Masses(size_t layer, size_t kv_head, int64_t from, int64_t to) const;

  // Appends to `changes` where sinks, keys and values of a layer may differ from what they were at
  // the last SetMirrored, or everything that there is after Attach.
  void ListChanges(size_t layer, std::vector<Range>& changes) const;
  void SetMirrored(size_t layer);

  const TailLayout& layout() const { return layout_; }

 private:
  struct Layer {
    int64_t first = 0;
    int64_t tokens = 0;  // first + those in the panels
    // What a mirror has: tokens before `mirrored` in the panels, none where that is not above
    // `first`, and the first `mirrored_sinks` sinks.
    int64_t mirrored = 0;
    int64_t mirrored_sinks = 0;
  };
  // Of one layer and KV head.
  struct Panels {
    std::byte* sink_keys;
    std::byte* sink_values;
    std::byte* keys;
    std::byte* values;
    std::byte* rotated;  // null where there are none
    float* masses;
  };
  Panels PanelsOf(size_t layer, size_t kv_head) const;
  void FillRotated(const Panels& panels, size_t at, int64_t position, size_t tokens);
  void CopySinks(const Panels& panels, size_t at, int64_t position, size_t tokens);

  const TailLayout layout_;
  const Rope& rope_;
  std::vector<Layer> layers_;
  std::vector<float> row_;  // [tokens of a conversion, head_dim]
  std::vector<float> cosines_;
  std::vector<float> sines_;
  std::byte* memory_ = nullptr;
};

}  // namespace terrace

#endif  // TERRACE_RUNTIME_TAIL_H_
