#include "tools/output_file.h"

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>

#include "absl/strings/str_cat.h"
#include "nlohmann/json.hpp"

namespace terrace {

OutputFile::OutputFile(absl::string_view flag, const std::string& path) : flag_(flag), path_(path) {
  if (path.empty()) return;
  constexpr int kFlags = O_WRONLY | O_CREAT | O_CLOEXEC;
  constexpr mode_t kMode = 0666;
  int fd = ::open(path.c_str(), kFlags | O_EXCL, kMode);
  created_ = fd >= 0;
  if (fd < 0 && errno == EEXIST) fd = ::open(path.c_str(), kFlags, kMode);
  if (fd >= 0) file_ = ::fdopen(fd, "w");
  if (file_ != nullptr) return;
  status_ = Error("cannot open");
  if (fd >= 0) ::close(fd);
}

OutputFile::~OutputFile() {
  if (file_ == nullptr) return;
  std::fclose(file_);
  if (created_) ::unlink(path_.c_str());
}

absl::Status OutputFile::Write(absl::string_view text) {
  if (file_ == nullptr) return absl::OkStatus();
  // EINVAL: a pipe or a device, which has no length.
  if (::ftruncate(::fileno(file_), 0) != 0 && errno != EINVAL) return Error("cannot truncate");
  errno = 0;
  const bool written = std::fwrite(text.data(), 1, text.size(), file_) == text.size();
  const bool closed = std::fclose(file_) == 0;
  file_ = nullptr;
  return written && closed ? absl::OkStatus() : Error("cannot write");
}

absl::Status OutputFile::Error(absl::string_view what) const {
  return absl::ErrnoToStatus(errno, absl::StrCat(flag_, " ", path_, ": ", what));
}

std::string JsonText(const nlohmann::ordered_json& json) {
  // Paths in messages need not be UTF-8, which JSON must be.
  return json.dump(2, ' ', /*ensure_ascii=*/false,
                   nlohmann::ordered_json::error_handler_t::replace) +
         "\n";
}

absl::Status PrintText(const std::string& text) {
  errno = 0;
  const bool printed = std::fputs(text.c_str(), stdout) >= 0 && std::fflush(stdout) == 0;
  if (printed) return absl::OkStatus();
  return absl::ErrnoToStatus(errno, "standard output: cannot write");
}

}  // namespace terrace
