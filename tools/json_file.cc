#include "tools/json_file.h"

#include <cerrno>

#include "absl/strings/str_cat.h"
#include "nlohmann/json.hpp"

namespace terrace {

JsonFile::JsonFile(const std::string& path) : path_(path) {
  if (path.empty()) return;
  errno = 0;
  file_ = std::fopen(path.c_str(), "we");
  if (file_ == nullptr) status_ = absl::ErrnoToStatus(errno, absl::StrCat("--json ", path));
}

JsonFile::~JsonFile() {
  if (file_ != nullptr) std::fclose(file_);
}

absl::Status JsonFile::Write(const nlohmann::ordered_json& json) {
  if (file_ == nullptr) return absl::OkStatus();
  // Paths in messages need not be UTF-8, which JSON must be.
  const std::string text =
      json.dump(2, ' ', /*ensure_ascii=*/false, nlohmann::ordered_json::error_handler_t::replace) +
      "\n";
  const bool written = std::fwrite(text.data(), 1, text.size(), file_) == text.size();
  const bool closed = std::fclose(file_) == 0;
  file_ = nullptr;
  if (written && closed) return absl::OkStatus();
  return absl::ErrnoToStatus(errno, absl::StrCat("--json ", path_, ": cannot write"));
}

absl::Status PrintText(const std::string& text) {
  errno = 0;
  const bool printed = std::fputs(text.c_str(), stdout) >= 0 && std::fflush(stdout) == 0;
  if (printed) return absl::OkStatus();
  return absl::ErrnoToStatus(errno, "standard output: cannot write");
}

}  // namespace terrace
