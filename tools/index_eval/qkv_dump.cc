#include "tools/index_eval/qkv_dump.h"

#include <algorithm>
#include <cmath>
#include <optional>
#include <utility>

#include "absl/strings/str_cat.h"
#include "index/kv_convert.h"

namespace terrace {
namespace {

constexpr char kPromptTokens[] = "prompt_tokens";

std::string QueryName(size_t layer, size_t head) {
  return absl::StrCat("layers.", layer, ".query_heads.", head, ".query");
}
std::string KeyName(size_t layer, size_t head) {
  return absl::StrCat("layers.", layer, ".kv_heads.", head, ".key");
}
std::string ValueName(size_t layer, size_t head) {
  return absl::StrCat("layers.", layer, ".kv_heads.", head, ".value");
}

}  // namespace

absl::StatusOr<QkvDump> QkvDump::Open(const std::string& path) {
  absl::StatusOr<SafetensorsFile> file = SafetensorsFile::Open(path);
  if (!file.ok()) return file.status();
  QkvDump dump(*std::move(file));
  absl::Status status = dump.Check();
  if (status.ok()) status = dump.ReadPromptTokens();
  if (!status.ok()) return status;
  return dump;
}

absl::Status QkvDump::Check() {
  const auto bad = [&](const auto&... what) {
    return absl::InvalidArgumentError(absl::StrCat(file_.path(), ": ", what...));
  };
  const TensorInfo* const first = file_.Find(KeyName(0, 0));
  if (first == nullptr) return bad("has no tensor \"", KeyName(0, 0), "\"; no dump of Q, K and V?");
  if (first->shape.size() != 2 || first->elements == 0) {
    return bad("tensor \"", first->name, "\": shape ", ShapeText(first->shape),
               " is not tokens times head_dim");
  }
  tokens_ = first->shape[0];
  head_dim_ = first->shape[1];
  while (file_.Find(KeyName(layers_, 0)) != nullptr) ++layers_;
  while (file_.Find(KeyName(0, kv_heads_)) != nullptr) ++kv_heads_;
  size_t query_heads = 0;
  while (file_.Find(QueryName(0, query_heads)) != nullptr) ++query_heads;
  if (query_heads == 0 || query_heads % kv_heads_ != 0) {
    return bad("has ", query_heads, " query heads, not a multiple of its ", kv_heads_, " KV heads");
  }
  group_ = query_heads / kv_heads_;

  size_t expected = 1;
  for (size_t layer = 0; layer < layers_; ++layer) {
    std::vector<std::string> names;
    for (size_t head = 0; head < query_heads; ++head) names.push_back(QueryName(layer, head));
    for (size_t head = 0; head < kv_heads_; ++head) {
      names.push_back(KeyName(layer, head));
      names.push_back(ValueName(layer, head));
    }
    for (const std::string& name : names) {
      const TensorInfo* const tensor = file_.Find(name);
      if (tensor == nullptr) return bad("has no tensor \"", name, "\"");
      if (tensor->shape != first->shape) {
        return bad("tensor \"", name, "\": shape ", ShapeText(tensor->shape), " is not ",
                   ShapeText(first->shape), " as that of \"", first->name, "\"");
      }
      if (!LoadableDtype(tensor->dtype).has_value()) {
        return bad("tensor \"", name, "\": dtype ", tensor->dtype, " is not F32, F16 or BF16");
      }
    }
    expected += names.size();
  }
  if (file_.Find(kPromptTokens) == nullptr) return bad("has no tensor \"", kPromptTokens, "\"");
  if (file_.tensors().size() != expected) {
    return bad("has ", file_.tensors().size(), " tensors, but ", layers_, " layers of ",
               query_heads, " query and ", kv_heads_, " KV heads make ", expected);
  }
  return absl::OkStatus();
}

absl::Status QkvDump::ReadPromptTokens() {
  const TensorInfo& tensor = *file_.Find(kPromptTokens);
  if (tensor.elements != 1) {
    return absl::InvalidArgumentError(absl::StrCat(file_.path(), ": tensor \"", kPromptTokens,
                                                   "\" has ", tensor.elements,
                                                   " numbers, expected 1"));
  }
  float value = 0;
  if (absl::Status status = file_.Read(tensor, {&value, 1}); !status.ok()) return status;
  // NaN fails both comparisons.
  if (!(value >= 0 && value <= static_cast<float>(tokens_)) || value != std::floor(value)) {
    return absl::InvalidArgumentError(absl::StrCat(file_.path(), ": tensor \"", kPromptTokens,
                                                   "\" is ", value, ", expected 0 to ", tokens_));
  }
  prompt_tokens_ = static_cast<size_t>(value);
  return absl::OkStatus();
}

absl::Status QkvDump::ReadRows(const std::string& name, std::vector<float>& rows) const {
  rows.resize(tokens_ * head_dim_);
  const TensorInfo& tensor = *file_.Find(name);
  if (absl::Status status = file_.Read(tensor, absl::MakeSpan(rows)); !status.ok()) return status;
  const auto bad =
      std::find_if(rows.begin(), rows.end(), [](float x) { return !std::isfinite(x); });
  if (bad == rows.end()) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat(file_.path(), ": tensor \"", name, "\": token ",
                                                 (bad - rows.begin()) / head_dim_, " has ", *bad));
}

absl::StatusOr<QkvHead> QkvDump::Read(size_t layer, size_t kv_head) const {
  QkvHead head;
  std::vector<float> rows;
  for (const auto& [name, to] : {std::pair(KeyName(layer, kv_head), &head.keys),
                                 std::pair(ValueName(layer, kv_head), &head.values)}) {
    if (absl::Status status = ReadRows(name, rows); !status.ok()) return status;
    to->resize(rows.size());
    const std::optional<size_t> bad =
        EncodeKv(rows.data(), KvDtype::kFloat32, KvDtype::kFloat16, rows.size(), to->data());
    if (bad.has_value()) {
      return absl::InvalidArgumentError(absl::StrCat(file_.path(), ": tensor \"", name,
                                                     "\": token ", *bad / head_dim_, " has ",
                                                     rows[*bad], ", too large for fp16"));
    }
  }
  head.queries.resize(tokens_ * group_ * head_dim_);
  for (size_t member = 0; member < group_; ++member) {
    const absl::Status status = ReadRows(QueryName(layer, kv_head * group_ + member), rows);
    if (!status.ok()) return status;
    for (size_t token = 0; token < tokens_; ++token) {
      std::copy_n(rows.data() + token * head_dim_, head_dim_,
                  head.queries.data() + (token * group_ + member) * head_dim_);
    }
  }
  return head;
}

}  // namespace terrace
