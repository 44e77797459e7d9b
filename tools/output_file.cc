#include "tools/output_file.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>

#include "absl/strings/str_cat.h"
#include "nlohmann/json.hpp"

namespace terrace {

OutputFile::OutputFile(absl::string_view flag, const std::string& path,
                       const std::vector<std::string>& used)
    : flag_(flag), path_(path) {
  if (path.empty()) return;
  constexpr int kFlags = O_WRONLY | O_CREAT | O_CLOEXEC;
  constexpr mode_t kMode = 0666;
  int fd = ::open(path.c_str(), kFlags | O_EXCL, kMode);
  created_ = fd >= 0;
  if (fd < 0 && errno == EEXIST) fd = ::open(path.c_str(), kFlags, kMode);
  if (fd >= 0) file_ = ::fdopen(fd, "w");
  if (file_ == nullptr) {
    status_ = Error("cannot open");
    if (fd >= 0) ::close(fd);
    return;
  }
  // Only now, because a tier that was not there yet may be what was just made.
  status_ = CheckNotUsed(flag, path, used);
  if (!status_.ok()) Close();
}

OutputFile::~OutputFile() { Close(); }

void OutputFile::Close() {
  if (file_ == nullptr) return;
  std::fclose(file_);
  file_ = nullptr;
  if (created_) ::unlink(path_.c_str());
}

absl::Status OutputFile::Write(absl::string_view text) {
  return WriteParts([text](Sink sink) { return sink(text); });
}

absl::Status OutputFile::WriteParts(absl::FunctionRef<absl::Status(Sink)> write) {
  if (file_ == nullptr) return absl::OkStatus();
  // EINVAL: a pipe or a device, which has no length.
  if (::ftruncate(::fileno(file_), 0) != 0 && errno != EINVAL) return Error("cannot truncate");
  errno = 0;
  absl::Status status = write([this](absl::string_view text) {
    const bool written = std::fwrite(text.data(), 1, text.size(), file_) == text.size();
    return written ? absl::OkStatus() : Error("cannot write");
  });
  const bool closed = std::fclose(file_) == 0;
  file_ = nullptr;
  return closed || !status.ok() ? status : Error("cannot write");
}

absl::Status OutputFile::Error(absl::string_view what) const {
  return absl::ErrnoToStatus(errno, absl::StrCat(flag_, " ", path_, ": ", what));
}

absl::Status CheckNotUsed(absl::string_view flag, const std::string& path,
                          const std::vector<std::string>& used) {
  struct stat output = {};
  if (path.empty() || ::stat(path.c_str(), &output) != 0) return absl::OkStatus();
  // What is written to a device such as /dev/null or a terminal takes nothing away.
  if (!S_ISREG(output.st_mode) && !S_ISBLK(output.st_mode)) return absl::OkStatus();
  for (const std::string& other : used) {
    struct stat found = {};
    if (other.empty() || ::stat(other.c_str(), &found) != 0) continue;
    if (found.st_dev != output.st_dev || found.st_ino != output.st_ino) continue;
    return absl::InvalidArgumentError(absl::StrCat(flag, " ", path, ": is the same file as ", other,
                                                   ", which would be overwritten"));
  }
  return absl::OkStatus();
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
