#ifndef TERRACE_TOOLS_JSON_FILE_H_
#define TERRACE_TOOLS_JSON_FILE_H_

#include <cstdio>
#include <string>

#include "absl/status/status.h"
#include "nlohmann/json_fwd.hpp"

namespace terrace {

// The file behind --json. It is opened before the run, so that a bad path is known before the work
// is done. Thread-compatible.
class JsonFile {
 public:
  // An empty path is no file: Write then does nothing.
  explicit JsonFile(const std::string& path);
  ~JsonFile();
  JsonFile(const JsonFile&) = delete;
  JsonFile& operator=(const JsonFile&) = delete;

  // Of opening.
  const absl::Status& status() const { return status_; }

  // Writes all of it and closes the file. Errors name the path. Call once.
  absl::Status Write(const nlohmann::ordered_json& json);

 private:
  const std::string path_;
  std::FILE* file_ = nullptr;
  absl::Status status_;
};

// Writes to standard output, to the end.
absl::Status PrintText(const std::string& text);

}  // namespace terrace

#endif  // TERRACE_TOOLS_JSON_FILE_H_
