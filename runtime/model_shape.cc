#include "runtime/model_shape.h"

#include "absl/base/casts.h"
#include "absl/strings/str_cat.h"
#include "xxhash.h"

namespace terrace {
namespace {

absl::Status InRange(absl::string_view field, uint64_t value, uint64_t limit) {
  if (value >= 1 && value <= limit) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat("shape.", field, ": ", value, " is not from 1 to ", limit));
}

}  // namespace

const char* KeyStateName(KeyState state) {
  return state == KeyState::kBeforeRope ? "before RoPE" : "after RoPE";
}

uint64_t ModelShape::Fingerprint(size_t tokens_per_block) const {
  // As text, so that neither padding nor the order of bytes decides.
  std::string text = absl::StrCat(layers, "/", query_heads, "/", kv_heads, "/", head_dim, "/",
                                  static_cast<int>(dtype), "/", static_cast<int>(key_state), "/",
                                  model_id, "/", tokens_per_block);
  absl::StrAppend(&text, "/", absl::Hex(absl::bit_cast<uint64_t>(rope.theta)), "/",
                  static_cast<int>(rope.scaling));
  if (rope.scaling != RopeOptions::Scaling::kNone) {
    for (const double value : {rope.factor, rope.low_frequency_factor, rope.high_frequency_factor,
                               rope.original_context}) {
      absl::StrAppend(&text, "/", absl::Hex(absl::bit_cast<uint64_t>(value)));
    }
  }
  return XXH3_64bits(text.data(), text.size());
}

std::string ModelShape::ToString() const {
  return absl::StrCat(layers, " layers x ", kv_heads, " KV heads (group ",
                      kv_heads == 0 ? 0 : group(), ") x ", head_dim, ", ", KvDtypeName(dtype),
                      ", keys ", KeyStateName(key_state));
}

absl::Status ModelShape::Validate() const {
  if (absl::Status status = InRange("layers", layers, kMaxLayers); !status.ok()) return status;
  if (absl::Status status = InRange("query_heads", query_heads, kMaxHeads); !status.ok()) {
    return status;
  }
  if (absl::Status status = InRange("kv_heads", kv_heads, kMaxHeads); !status.ok()) return status;
  if (query_heads % kv_heads != 0) {
    return absl::InvalidArgumentError(absl::StrCat(
        "shape.kv_heads: ", kv_heads, " does not divide the ", query_heads, " query heads"));
  }
  if (absl::Status status = InRange("head_dim", head_dim, kMaxHeadDim); !status.ok()) {
    return status;
  }
  if (head_dim % 8 != 0) {
    return absl::InvalidArgumentError(
        absl::StrCat("shape.head_dim: ", head_dim, " is not a multiple of 8"));
  }
  return rope.Validate();
}

}  // namespace terrace
