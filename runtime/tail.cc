#include "runtime/tail.h"

#include <algorithm>
#include <cstring>

#include "index/kv_convert.h"
#include "io/aligned_buffer.h"
#include "io/check.h"

namespace terrace {
namespace {

constexpr size_t kAlignment = 64;  // of every panel, a cache line

size_t Aligned(size_t bytes) { return (bytes + kAlignment - 1) / kAlignment * kAlignment; }

}  // namespace

size_t TailLayout::head_bytes() const {
  const size_t panel = Aligned(capacity_tokens * row_bytes());
  return 2 * Aligned(sink_tokens * row_bytes()) + (has_rotated() ? 3 : 2) * panel +
         Aligned(capacity_tokens * sizeof(float));
}

TailLayout TailLayoutOf(const RuntimeOptions& options) {
  return {.shape = options.shape,
          .capacity_tokens =
              options.window_tokens + options.tokens_per_block + options.max_append_tokens,
          .sink_tokens = options.sink_tokens};
}

size_t TailBytes(const RuntimeOptions& options) {
  return PageAlignUp(TailLayoutOf(options).bytes() + options.shape.kv_heads * options.BlockBytes());
}

Tail::Tail(const TailLayout& layout, const Rope& rope)
    : layout_(layout),
      rope_(rope),
      layers_(layout.shape.layers),
      row_(layout.shape.head_dim),
      cosines_(layout.shape.head_dim / 2),
      sines_(layout.shape.head_dim / 2) {}

void Tail::Attach(std::byte* memory) {
  memory_ = memory;
  for (Layer& layer : layers_) layer.mirrored = layer.mirrored_sinks = 0;
}

Tail::Panels Tail::PanelsOf(size_t layer, size_t kv_head) const {
  TERRACE_CHECK(attached());
  const size_t sinks = Aligned(layout_.sink_tokens * layout_.row_bytes());
  const size_t panel = Aligned(layout_.capacity_tokens * layout_.row_bytes());
  Panels panels;
  panels.sink_keys = memory_ + (layer * layout_.shape.kv_heads + kv_head) * layout_.head_bytes();
  panels.sink_values = panels.sink_keys + sinks;
  panels.keys = panels.sink_values + sinks;
  panels.values = panels.keys + panel;
  std::byte* const after = panels.values + panel;
  panels.rotated = layout_.has_rotated() ? after : nullptr;
  panels.masses = reinterpret_cast<float*>(after + (layout_.has_rotated() ? panel : 0));
  return panels;
}

size_t Tail::room(size_t layer) const {
  return layout_.capacity_tokens - static_cast<size_t>(tokens(layer) - first(layer));
}

std::optional<Tail::BadElement> Tail::Append(size_t layer, const void* keys, const void* values,
                                             KvDtype dtype, size_t tokens) {
  TERRACE_CHECK(tokens <= room(layer));
  Layer& state = layers_[layer];
  const size_t heads = layout_.shape.kv_heads;
  const size_t head_dim = layout_.shape.head_dim;
  const auto at = static_cast<size_t>(state.tokens - state.first);
  for (size_t head = 0; head < heads; ++head) {
    const Panels panels = PanelsOf(layer, head);
    for (size_t token = 0; token < tokens; ++token) {
      const size_t element = (token * heads + head) * head_dim;
      const size_t row = (at + token) * layout_.row_bytes();
      for (const bool in_keys : {true, false}) {
        const auto* from = static_cast<const std::byte*>(in_keys ? keys : values);
        const std::optional<size_t> bad =
            EncodeKv(from + element * KvDtypeBytes(dtype), dtype, layout_.shape.dtype, head_dim,
                     (in_keys ? panels.keys : panels.values) + row);
        if (bad.has_value()) return BadElement{in_keys, element + *bad};
      }
    }
  }
  state.mirrored_sinks = std::min(state.mirrored_sinks, state.tokens);
  for (size_t head = 0; head < heads; ++head) {
    const Panels panels = PanelsOf(layer, head);
    FillRotated(panels, at, state.tokens, tokens);
    CopySinks(panels, at, state.tokens, tokens);
    std::fill_n(panels.masses + at, tokens, 0.0f);
  }
  state.tokens += static_cast<int64_t>(tokens);
  return std::nullopt;
}

// From the stored keys, so that keys which come back from a block are rotated to the same bytes.
void Tail::FillRotated(const Panels& panels, size_t at, int64_t position, size_t tokens) {
  if (panels.rotated == nullptr) return;
  const KvDtype dtype = layout_.shape.dtype;
  for (size_t token = 0; token < tokens; ++token) {
    const size_t row = (at + token) * layout_.row_bytes();
    DecodeKv(panels.keys + row, dtype, row_.size(), row_.data());
    rope_.Angles(position + static_cast<int64_t>(token), absl::MakeSpan(cosines_),
                 absl::MakeSpan(sines_));
    Rope::Rotate(cosines_, sines_, absl::MakeSpan(row_));
    // A rotation grows an element by at most sqrt(2); the largest of fp16 would become infinite.
    if (dtype == KvDtype::kFloat16) {
      constexpr float kLargestHalf = 65504;
      for (float& value : row_) value = std::clamp(value, -kLargestHalf, kLargestHalf);
    }
    EncodeKv(row_.data(), KvDtype::kFloat32, dtype, row_.size(), panels.rotated + row);
  }
}

void Tail::CopySinks(const Panels& panels, size_t at, int64_t position, size_t tokens) {
  const auto sinks = static_cast<int64_t>(layout_.sink_tokens);
  if (position >= sinks) return;
  const auto count = std::min(tokens, static_cast<size_t>(sinks - position));
  const size_t from = at * layout_.row_bytes();
  const size_t to = static_cast<size_t>(position) * layout_.row_bytes();
  std::memcpy(panels.sink_keys + to, panels.keys + from, count * layout_.row_bytes());
  std::memcpy(panels.sink_values + to, panels.values + from, count * layout_.row_bytes());
}

void Tail::PopFront(size_t layer, size_t tokens) {
  Layer& state = layers_[layer];
  const auto held = static_cast<size_t>(state.tokens - state.first);
  TERRACE_CHECK(tokens <= held);
  const size_t row = layout_.row_bytes();
  const size_t left = held - tokens;
  for (size_t head = 0; head < layout_.shape.kv_heads; ++head) {
    const Panels panels = PanelsOf(layer, head);
    for (std::byte* panel : {panels.keys, panels.values, panels.rotated}) {
      if (panel != nullptr) std::memmove(panel, panel + tokens * row, left * row);
    }
    std::memmove(panels.masses, panels.masses + tokens, left * sizeof(float));
  }
  state.first += static_cast<int64_t>(tokens);
  state.mirrored = 0;
}

void Tail::OpenFront(size_t layer, size_t tokens) {
  Layer& state = layers_[layer];
  const auto held = static_cast<size_t>(state.tokens - state.first);
  TERRACE_CHECK(held + tokens <= layout_.capacity_tokens &&
                static_cast<int64_t>(tokens) <= state.first);
  const size_t row = layout_.row_bytes();
  for (size_t head = 0; head < layout_.shape.kv_heads; ++head) {
    const Panels panels = PanelsOf(layer, head);
    for (std::byte* panel : {panels.keys, panels.values, panels.rotated}) {
      if (panel != nullptr) std::memmove(panel + tokens * row, panel, held * row);
    }
    std::memmove(panels.masses + tokens, panels.masses, held * sizeof(float));
  }
  state.first -= static_cast<int64_t>(tokens);
  state.mirrored = 0;
}

void Tail::Truncate(size_t layer, int64_t tokens) {
  Layer& state = layers_[layer];
  state.tokens = tokens;
  state.mirrored = std::min(state.mirrored, tokens);
}

void Tail::FillFront(size_t layer, size_t kv_head, size_t at, const std::byte* keys,
                     const std::byte* values, size_t tokens) {
  const Panels panels = PanelsOf(layer, kv_head);
  const size_t row = layout_.row_bytes();
  const int64_t position = layers_[layer].first + static_cast<int64_t>(at);
  layers_[layer].mirrored = 0;
  layers_[layer].mirrored_sinks = std::min(layers_[layer].mirrored_sinks, position);
  std::memcpy(panels.keys + at * row, keys, tokens * row);
  std::memcpy(panels.values + at * row, values, tokens * row);
  FillRotated(panels, at, position, tokens);
  CopySinks(panels, at, position, tokens);
  std::fill_n(panels.masses + at, tokens, 0.0f);
}

void Tail::CopyFrom(const Tail& other, int64_t tokens) {
  const size_t row = layout_.row_bytes();
  for (size_t layer = 0; layer < layers_.size(); ++layer) {
    Layer& state = layers_[layer];
    state = other.layers_[layer];
    TERRACE_CHECK(tokens <= state.tokens);
    state.first = std::min(state.first, tokens);
    state.tokens = tokens;
    state.mirrored = state.mirrored_sinks = 0;
    const auto held = static_cast<size_t>(state.tokens - state.first);
    const auto sinks = std::min<size_t>(layout_.sink_tokens, static_cast<size_t>(state.tokens));
    for (size_t head = 0; head < layout_.shape.kv_heads; ++head) {
      const Panels to = PanelsOf(layer, head);
      const Panels from = other.PanelsOf(layer, head);
      std::memcpy(to.sink_keys, from.sink_keys, sinks * row);
      std::memcpy(to.sink_values, from.sink_values, sinks * row);
      std::memcpy(to.keys, from.keys, held * row);
      std::memcpy(to.values, from.values, held * row);
      if (to.rotated != nullptr) std::memcpy(to.rotated, from.rotated, held * row);
      std::memcpy(to.masses, from.masses, held * sizeof(float));
    }
  }
}

KvRun Tail::Run(size_t layer, size_t kv_head, int64_t from, int64_t to) const {
  const Layer& state = layers_[layer];
  TERRACE_CHECK(state.first <= from && from <= to && to <= state.tokens);
  const Panels panels = PanelsOf(layer, kv_head);
  const size_t at = static_cast<size_t>(from - state.first) * layout_.row_bytes();
  return {.keys = panels.keys + at,
          .values = panels.values + at,
          .tokens = static_cast<size_t>(to - from),
          .dtype = layout_.shape.dtype};
}

KvRun Tail::RotatedRun(size_t layer, size_t kv_head, int64_t from, int64_t to) const {
  KvRun run = Run(layer, kv_head, from, to);
  const Panels panels = PanelsOf(layer, kv_head);
  if (panels.rotated != nullptr) {
    run.keys = panels.rotated + (static_cast<const std::byte*>(run.keys) - panels.keys);
  }
  return run;
}

KvRun Tail::Sinks(size_t layer, size_t kv_head, size_t tokens) const {
  TERRACE_CHECK(tokens <= layout_.sink_tokens);
  const Panels panels = PanelsOf(layer, kv_head);
  return {.keys = panels.sink_keys,
          .values = panels.sink_values,
          .tokens = tokens,
          .dtype = layout_.shape.dtype};
}

void Tail::FillSinks(size_t layer, size_t kv_head, const std::byte* keys, const std::byte* values) {
  const Panels panels = PanelsOf(layer, kv_head);
  layers_[layer].mirrored_sinks = 0;
  std::memcpy(panels.sink_keys, keys, layout_.sink_tokens * layout_.row_bytes());
  std::memcpy(panels.sink_values, values, layout_.sink_tokens * layout_.row_bytes());
}

void Tail::ListChanges(size_t layer, std::vector<Range>& changes) const {
  const Layer& state = layers_[layer];
  const int64_t sinks = std::min(static_cast<int64_t>(layout_.sink_tokens), state.tokens);
  const int64_t begin = std::max(state.mirrored, state.first);
  const auto add = [&](const std::byte* panel, int64_t from, int64_t to) {
    if (panel == nullptr || from >= to) return;
    const size_t row = layout_.row_bytes();
    const size_t offset = static_cast<size_t>(panel - memory_) + static_cast<size_t>(from) * row;
    changes.push_back({.offset = offset, .bytes = static_cast<size_t>(to - from) * row});
  };
  for (size_t head = 0; head < layout_.shape.kv_heads; ++head) {
    const Panels panels = PanelsOf(layer, head);
    add(panels.sink_keys, state.mirrored_sinks, sinks);
    add(panels.sink_values, state.mirrored_sinks, sinks);
    for (const std::byte* panel : {panels.keys, panels.values, panels.rotated}) {
      add(panel, begin - state.first, state.tokens - state.first);
    }
  }
}

void Tail::SetMirrored(size_t layer) {
  Layer& state = layers_[layer];
  state.mirrored = state.tokens;
  state.mirrored_sinks = std::min(static_cast<int64_t>(layout_.sink_tokens), state.tokens);
}

absl::Span<float> Tail::Masses(size_t layer, size_t kv_head, int64_t from, int64_t to) const {
  const Layer& state = layers_[layer];
  TERRACE_CHECK(state.first <= from && from <= to && to <= state.tokens);
  return {PanelsOf(layer, kv_head).masses + (from - state.first), static_cast<size_t>(to - from)};
}

}  // namespace terrace
