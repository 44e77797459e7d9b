#include <cerrno>
#include <cmath>
#include <fstream>
#include <limits>
#include <set>
#include <utility>

#include "absl/strings/escaping.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "nlohmann/json.hpp"
#include "runtime/head_profile.h"

namespace terrace {
namespace {

using Json = nlohmann::ordered_json;

constexpr char kFormat[] = "terrace head profile";
constexpr uint64_t kVersion = 1;
constexpr size_t kMaxBytes = size_t{64} << 20;
constexpr uint64_t kMostTokens = uint64_t{1} << 62;

// Takes the members of one JSON object, and keeps the first error. After one, what it returns means
// nothing.
class Members {
 public:
  // `prefix` stands before the names in messages: "heads[3].". What is no object has no members.
  Members(const Json& object, std::string prefix) : object_(object), prefix_(std::move(prefix)) {}

  // An empty object where it is missing.
  const Json& Object(const char* name) {
    static const Json& empty = *new Json(Json::object());
    const Json* const found = Find(name);
    if (found != nullptr && found->is_object()) return *found;
    Fail(name, "an object");
    return empty;
  }
  std::string Text(const char* name) {
    const Json* const found = Find(name);
    if (found != nullptr && found->is_string()) return found->get<std::string>();
    Fail(name, "text");
    return "";
  }
  uint64_t Integer(const char* name, uint64_t least, uint64_t most) {
    const Json* const found = Find(name);
    if (found != nullptr && found->is_number_unsigned()) {
      const auto value = found->get<uint64_t>();
      if (value >= least && value <= most) return value;
    }
    Fail(name, absl::StrCat("an integer from ", least, " to ", most));
    return least;
  }
  uint32_t Integer32(const char* name, uint32_t least, uint32_t most) {
    return static_cast<uint32_t>(Integer(name, least, most));
  }
  double Share(const char* name) {
    const Json* const found = Find(name);
    if (found != nullptr && found->is_number()) {
      const auto value = found->get<double>();
      if (value >= 0 && value <= 1) return value;  // NaN is neither
    }
    Fail(name, "a number from 0 to 1");
    return 0;
  }
  // 16 hexadecimal digits, because other readers of JSON round large numbers.
  uint64_t Hash(const char* name) {
    const std::string text = Text(name);
    uint64_t value = 0;
    if (text.size() != 16 || !absl::SimpleHexAtoi(text, &value)) {
      Fail(name, "16 hexadecimal digits");
    }
    return value;
  }
  const Json& List(const char* name) {
    static const Json& empty = *new Json(Json::array());
    const Json* const found = Find(name);
    if (found != nullptr && found->is_array()) return *found;
    Fail(name, "a list");
    return empty;
  }

  void Fail(absl::string_view name, absl::string_view expected) {
    status_.Update(
        absl::InvalidArgumentError(absl::StrCat(prefix_, name, ": missing or not ", expected)));
  }
  // Also an error: a member that nobody asked for.
  absl::Status Finish() {
    if (!status_.ok()) return status_;
    for (const auto& [name, value] : object_.items()) {
      if (asked_.contains(name)) continue;
      return absl::InvalidArgumentError(
          absl::StrCat(prefix_, absl::CHexEscape(name), ": is no member of this version"));
    }
    return absl::OkStatus();
  }
  const absl::Status& status() const { return status_; }

 private:
  const Json* Find(const char* name) {
    asked_.insert(name);
    const auto found = object_.find(name);
    return found == object_.end() ? nullptr : &*found;
  }

  const Json& object_;
  const std::string prefix_;
  std::set<std::string> asked_;
  absl::Status status_;
};

absl::StatusOr<Json> ParseJson(absl::string_view text) {
  // Without exceptions this parser would not say what is wrong, so they are caught where they rise.
  try {
    return Json::parse(text.begin(), text.end());
  } catch (const Json::parse_error& error) {
    return absl::InvalidArgumentError(
        absl::StrCat("not valid JSON at byte ", error.byte, " of ", text.size()));
  } catch (const Json::exception& error) {
    return absl::InvalidArgumentError(
        absl::StrCat("not valid JSON: ", absl::CHexEscape(error.what())));
  }
}

absl::Status CheckFormat(Members& top) {
  const std::string format = top.Text("format");
  const uint64_t version = top.Integer("version", 0, std::numeric_limits<uint64_t>::max());
  if (!top.status().ok()) return top.status();
  if (format != kFormat) {
    return absl::InvalidArgumentError(
        absl::StrCat("format: is \"", absl::CHexEscape(format), "\", expected \"", kFormat, "\""));
  }
  if (version != kVersion) {
    return absl::InvalidArgumentError(
        absl::StrCat("version: is ", version, ", this program reads ", kVersion));
  }
  return absl::OkStatus();
}

absl::Status TakeModel(const Json& object, HeadProfile& profile) {
  Members model(object, "model.");
  profile.layers = model.Integer32("layers", 1, ModelShape::kMaxLayers);
  profile.query_heads = model.Integer32("query_heads", 1, ModelShape::kMaxHeads);
  profile.kv_heads = model.Integer32("kv_heads", 1, ModelShape::kMaxHeads);
  profile.head_dim = model.Integer32("head_dim", 1, ModelShape::kMaxHeadDim);
  profile.model_id = model.Hash("fingerprint");
  if (model.status().ok() && profile.query_heads % profile.kv_heads != 0) {
    model.Fail("kv_heads", absl::StrCat("a divisor of the ", profile.query_heads, " query heads"));
  }
  return model.Finish();
}

absl::Status TakeHeads(const Json& list, HeadProfile& profile) {
  const size_t count = size_t{profile.layers} * profile.kv_heads;
  if (list.size() != count) {
    return absl::InvalidArgumentError(absl::StrCat("heads: there are ", list.size(),
                                                   ", expected one for each of ", profile.layers,
                                                   " layers x ", profile.kv_heads, " KV heads"));
  }
  profile.heads.resize(count);
  std::vector<bool> seen(count);
  for (size_t i = 0; i < count; ++i) {
    Members members(list[i], absl::StrCat("heads[", i, "]."));
    const size_t layer = members.Integer("layer", 0, profile.layers - 1);
    const size_t kv_head = members.Integer("kv_head", 0, profile.kv_heads - 1);
    const HeadProfile::Head head = {.mean_outside = members.Share("mean_outside"),
                                    .max_outside = members.Share("max_outside")};
    if (absl::Status status = members.Finish(); !status.ok()) return status;
    const size_t at = layer * profile.kv_heads + kv_head;
    if (seen[at]) {
      return absl::InvalidArgumentError(
          absl::StrCat("heads[", i, "]: layer ", layer, ", KV head ", kv_head, " is there twice"));
    }
    seen[at] = true;
    profile.heads[at] = head;
  }
  return absl::OkStatus();
}

}  // namespace

std::string HeadProfileText(const HeadProfile& profile) {
  Json heads = Json::array();
  for (size_t layer = 0; layer < profile.layers; ++layer) {
    for (size_t kv_head = 0; kv_head < profile.kv_heads; ++kv_head) {
      const HeadProfile::Head& head = profile.head(layer, kv_head);
      heads.push_back({{"layer", layer},
                       {"kv_head", kv_head},
                       {"mean_outside", head.mean_outside},
                       {"max_outside", head.max_outside}});
    }
  }
  const Json json = {{"format", kFormat},
                     {"version", kVersion},
                     {"method", profile.method},
                     {"model",
                      {{"layers", profile.layers},
                       {"query_heads", profile.query_heads},
                       {"kv_heads", profile.kv_heads},
                       {"head_dim", profile.head_dim},
                       {"fingerprint", absl::StrFormat("%016x", profile.model_id)}}},
                     {"sink_tokens", profile.sink_tokens},
                     {"window_tokens", profile.window_tokens},
                     {"texts", profile.texts},
                     {"tokens", profile.tokens},
                     {"queries", profile.queries},
                     {"heads", heads}};
  return json.dump(2, ' ', /*ensure_ascii=*/false, Json::error_handler_t::replace) + "\n";
}

absl::StatusOr<HeadProfile> ParseHeadProfile(absl::string_view text) {
  const absl::StatusOr<Json> json = ParseJson(text);
  if (!json.ok()) return json.status();
  Members top(*json, "");
  if (absl::Status status = CheckFormat(top); !status.ok()) return status;
  HeadProfile profile;
  profile.method = top.Text("method");
  profile.sink_tokens = top.Integer("sink_tokens", 0, kMostTokens);
  profile.window_tokens = top.Integer("window_tokens", 1, kMostTokens);
  profile.texts = top.Integer("texts", 1, kMostTokens);
  profile.tokens = top.Integer("tokens", 1, kMostTokens);
  profile.queries = top.Integer("queries", 1, kMostTokens);
  const Json& model = top.Object("model");
  const Json& heads = top.List("heads");
  if (absl::Status status = top.Finish(); !status.ok()) return status;
  if (absl::Status status = TakeModel(model, profile); !status.ok()) return status;
  if (absl::Status status = TakeHeads(heads, profile); !status.ok()) return status;
  return profile;
}

absl::StatusOr<HeadProfile> ReadHeadProfile(const std::string& path) {
  errno = 0;
  std::ifstream file(path, std::ios::binary);
  if (!file) return absl::ErrnoToStatus(errno, absl::StrCat(path, ": cannot open"));
  std::string text;
  char buffer[16 << 10];
  while (file && text.size() <= kMaxBytes) {
    file.read(buffer, sizeof(buffer));
    text.append(buffer, static_cast<size_t>(file.gcount()));
  }
  if (file.bad()) return absl::ErrnoToStatus(errno, absl::StrCat(path, ": cannot read"));
  if (text.size() > kMaxBytes) {
    return absl::InvalidArgumentError(
        absl::StrCat(path, ": has more than the limit of ", kMaxBytes, " bytes"));
  }
  absl::StatusOr<HeadProfile> profile = ParseHeadProfile(text);
  if (profile.ok()) return profile;
  return absl::Status(profile.status().code(),
                      absl::StrCat(path, ": ", profile.status().message()));
}

}  // namespace terrace
