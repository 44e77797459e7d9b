#include "tools/engine/json_file.h"

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "nlohmann/json.hpp"
#include "tools/engine/input_file.h"

namespace terrace {
namespace {

constexpr uint64_t kMaxBytes = uint64_t{64} << 20;

}  // namespace

absl::StatusOr<nlohmann::json> ReadJsonObject(const std::string& path) {
  const absl::StatusOr<std::string> text = ReadWholeFile(path, kMaxBytes);
  if (!text.ok()) return text.status();
  // Without exceptions this parser would not say what is wrong, so they are caught where they rise.
  try {
    nlohmann::json json = nlohmann::json::parse(*text);
    if (json.is_object()) return json;
    return absl::InvalidArgumentError(
        absl::StrCat(path, ": holds JSON of type ", json.type_name(), ", expected an object"));
  } catch (const nlohmann::json::parse_error& error) {
    return absl::InvalidArgumentError(
        absl::StrCat(path, ": not valid JSON at byte ", error.byte, " of ", text->size()));
  } catch (const nlohmann::json::exception& error) {
    return absl::InvalidArgumentError(
        absl::StrCat(path, ": not valid JSON: ", absl::CHexEscape(error.what())));
  }
}

}  // namespace terrace
