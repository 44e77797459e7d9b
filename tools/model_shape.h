#ifndef TERRACE_TOOLS_MODEL_SHAPE_H_
#define TERRACE_TOOLS_MODEL_SHAPE_H_

#include <cstdint>
#include <string>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"

namespace terrace {

// What decides the KV bytes of a well-known model. Keys and values are fp16.
struct KvShape {
  absl::string_view name;
  uint32_t layers = 0;
  uint32_t kv_heads = 0;
  uint32_t head_dim = 0;
};

// All known shapes, in the order that help texts list them.
absl::Span<const KvShape> KvShapes();

// kInvalidArgument naming the known shapes.
absl::StatusOr<KvShape> FindKvShape(absl::string_view name);

// K and V of `tokens_per_block` tokens over all layers and heads, in bytes.
uint64_t BytesPerBlock(const KvShape& shape, uint32_t tokens_per_block);

// A positive fraction, at most 1: how much smaller than the model a run is.
struct Scale {
  uint64_t numerator = 1;
  uint64_t denominator = 1;
};

// "1/1024" or "1". kInvalidArgument naming the text.
absl::StatusOr<Scale> ParseScale(absl::string_view text);
std::string FormatScale(const Scale& scale);

// BytesPerBlock times `scale`. kInvalidArgument, with the product, unless that is a whole number of
// 4 KiB pages and at least one.
absl::StatusOr<uint64_t> ScaledBytesPerBlock(const KvShape& shape, uint32_t tokens_per_block,
                                             const Scale& scale);

}  // namespace terrace

#endif  // TERRACE_TOOLS_MODEL_SHAPE_H_
