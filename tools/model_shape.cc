#include "tools/model_shape.h"

#include <limits>
#include <utility>
#include <vector>

#include "absl/strings/escaping.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"

namespace terrace {
namespace {

constexpr uint64_t kPageBytes = 4096;  // what the NVMe tier stores in
constexpr uint64_t kFp16Bytes = 2;

// From the models' published configurations: num_hidden_layers, num_key_value_heads, and
// hidden_size over num_attention_heads.
constexpr KvShape kShapes[] = {
    {.name = "llama-3.1-8b", .layers = 32, .kv_heads = 8, .head_dim = 128},
    {.name = "llama-3.1-70b", .layers = 80, .kv_heads = 8, .head_dim = 128},
    {.name = "mistral-7b", .layers = 32, .kv_heads = 8, .head_dim = 128},
    {.name = "qwen2.5-7b", .layers = 28, .kv_heads = 4, .head_dim = 128},
};

}  // namespace

absl::Span<const KvShape> KvShapes() { return kShapes; }

absl::StatusOr<KvShape> FindKvShape(absl::string_view name) {
  for (const KvShape& shape : kShapes) {
    if (shape.name == name) return shape;
  }
  const auto append_name = [](std::string* out, const KvShape& shape) {
    absl::StrAppend(out, shape.name);
  };
  return absl::InvalidArgumentError(absl::StrCat("no model shape \"", absl::CHexEscape(name),
                                                 "\"; known are ",
                                                 absl::StrJoin(kShapes, ", ", append_name)));
}

uint64_t BytesPerBlock(const KvShape& shape, uint32_t tokens_per_block) {
  return 2 * kFp16Bytes * shape.layers * shape.kv_heads * shape.head_dim * tokens_per_block;
}

absl::StatusOr<Scale> ParseScale(absl::string_view text) {
  const std::vector<absl::string_view> parts = absl::StrSplit(text, '/');
  Scale scale;
  // SimpleAtoi also takes signs and blanks, which a scale does not have.
  const bool plain = text.find_first_not_of("0123456789/") == absl::string_view::npos;
  if (!plain || parts.size() > 2 || !absl::SimpleAtoi(parts[0], &scale.numerator) ||
      (parts.size() == 2 && !absl::SimpleAtoi(parts[1], &scale.denominator))) {
    return absl::InvalidArgumentError(absl::StrCat("\"", absl::CHexEscape(text.substr(0, 40)),
                                                   "\" is not a scale; expected 1 or one like "
                                                   "1/1024"));
  }
  if (scale.numerator == 0 || scale.numerator > scale.denominator) {
    return absl::InvalidArgumentError(
        absl::StrCat("\"", text, "\" is not a scale above 0 and at most 1"));
  }
  return scale;
}

std::string FormatScale(const Scale& scale) {
  if (scale.denominator == 1) return absl::StrCat(scale.numerator);
  return absl::StrCat(scale.numerator, "/", scale.denominator);
}

absl::StatusOr<uint64_t> ScaledBytesPerBlock(const KvShape& shape, uint32_t tokens_per_block,
                                             const Scale& scale) {
  const uint64_t full_bytes = BytesPerBlock(shape, tokens_per_block);
  const std::string product =
      absl::StrCat(full_bytes, " bytes (", shape.name, ", ", tokens_per_block,
                   " tokens a block) times ", FormatScale(scale));
  if (full_bytes > std::numeric_limits<uint64_t>::max() / scale.numerator) {
    return absl::InvalidArgumentError(absl::StrCat(product, " is too large to compute"));
  }
  const uint64_t numerator_bytes = full_bytes * scale.numerator;
  const uint64_t bytes = numerator_bytes / scale.denominator;
  if (numerator_bytes % scale.denominator != 0 || bytes % kPageBytes != 0 || bytes == 0) {
    return absl::InvalidArgumentError(
        absl::StrCat(product, " is ", static_cast<double>(numerator_bytes) / scale.denominator,
                     " bytes, not a positive multiple of ", kPageBytes));
  }
  return bytes;
}

}  // namespace terrace
