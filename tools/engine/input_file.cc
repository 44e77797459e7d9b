#include "tools/engine/input_file.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <utility>

#include "absl/strings/str_cat.h"

namespace terrace {

InputFile::InputFile(std::string path, UniqueFd fd, uint64_t size_bytes)
    : path_(std::move(path)), fd_(std::move(fd)), size_bytes_(size_bytes) {}

absl::StatusOr<InputFile> InputFile::Open(const std::string& path) {
  // Opening a pipe would otherwise wait for its writer.
  UniqueFd fd(::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK));
  if (!fd.valid()) return absl::ErrnoToStatus(errno, absl::StrCat(path, ": cannot open"));
  struct stat found = {};
  if (::fstat(fd.get(), &found) != 0) {
    return absl::ErrnoToStatus(errno, absl::StrCat(path, ": cannot look at"));
  }
  if (S_ISDIR(found.st_mode)) {
    return absl::InvalidArgumentError(absl::StrCat(path, ": is a directory, expected a file"));
  }
  if (!S_ISREG(found.st_mode)) {
    return absl::InvalidArgumentError(absl::StrCat(path, ": is not a regular file"));
  }
  return InputFile(path, std::move(fd), static_cast<uint64_t>(found.st_size));
}

absl::Status InputFile::Read(uint64_t offset, absl::Span<char> bytes) const {
  const auto where = [&] {
    return absl::StrCat(path_, ": reading ", bytes.size(), " bytes at offset ", offset);
  };
  size_t done = 0;
  while (done < bytes.size()) {
    const ssize_t got = ::pread(fd_.get(), bytes.data() + done, bytes.size() - done,
                                static_cast<off_t>(offset + done));
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) return absl::ErrnoToStatus(errno, where());
    if (got == 0) {
      return absl::DataLossError(
          absl::StrCat(where(), ": the file ends after ", offset + done, " bytes"));
    }
    done += static_cast<size_t>(got);
  }
  return absl::OkStatus();
}

absl::StatusOr<std::string> ReadWholeFile(const std::string& path, uint64_t max_bytes) {
  const absl::StatusOr<InputFile> file = InputFile::Open(path);
  if (!file.ok()) return file.status();
  if (file->size_bytes() > max_bytes) {
    return absl::InvalidArgumentError(absl::StrCat(path, ": has ", file->size_bytes(),
                                                   " bytes, more than the limit of ", max_bytes));
  }
  std::string text(file->size_bytes(), '\0');
  if (absl::Status status = file->Read(0, absl::MakeSpan(text)); !status.ok()) return status;
  return text;
}

}  // namespace terrace
