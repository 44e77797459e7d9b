#ifndef TERRACE_TOOLS_ENGINE_JSON_FILE_H_
#define TERRACE_TOOLS_ENGINE_JSON_FILE_H_

#include <string>

#include "absl/status/statusor.h"
#include "nlohmann/json_fwd.hpp"

namespace terrace {

// The JSON object in a file of at most 64 MiB. Errors name the path: those of opening and reading,
// and kInvalidArgument, with the byte where it is known, for what is not a JSON object.
absl::StatusOr<nlohmann::json> ReadJsonObject(const std::string& path);

}  // namespace terrace

#endif  // TERRACE_TOOLS_ENGINE_JSON_FILE_H_
