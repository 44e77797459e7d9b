#include "tools/key_file.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <cstddef>

#include "absl/strings/str_cat.h"
#include "absl/types/span.h"
#include "io/unique_fd.h"

namespace terrace {

absl::StatusOr<CipherKey> ReadKeyFile(const std::string& path) {
  const auto error = [&path](absl::string_view what) {
    return absl::ErrnoToStatus(errno, absl::StrCat("--key-file: ", path, ": ", what));
  };
  // O_NONBLOCK, because a FIFO would wait for a writer.
  const UniqueFd fd(::open(path.c_str(), O_RDONLY | O_NONBLOCK | O_CLOEXEC));
  if (!fd.valid()) return error("cannot open");
  struct stat found = {};
  if (::fstat(fd.get(), &found) != 0) return error("cannot stat");
  if (!S_ISREG(found.st_mode)) {
    return absl::InvalidArgumentError(absl::StrCat(
        "--key-file: ", path, ": is ", S_ISDIR(found.st_mode) ? "a directory" : "something else",
        ", not a regular file"));
  }
  // One byte more than a key has tells a file that is longer.
  std::array<std::byte, CipherKey::kBytes + 1> bytes;
  size_t count = 0;
  while (count < bytes.size()) {
    const ssize_t result = ::read(fd.get(), bytes.data() + count, bytes.size() - count);
    if (result < 0 && errno == EINTR) continue;
    if (result < 0) return error("cannot read");
    if (result == 0) break;
    count += static_cast<size_t>(result);
  }
  if (count > CipherKey::kBytes) {
    return absl::InvalidArgumentError(absl::StrCat("--key-file: ", path, ": has more than the ",
                                                   CipherKey::kBytes, " bytes of a key"));
  }
  absl::StatusOr<CipherKey> key = CipherKey::Create(absl::MakeConstSpan(bytes.data(), count));
  if (key.ok()) return key;
  return absl::Status(key.status().code(),
                      absl::StrCat("--key-file: ", path, ": ", key.status().message()));
}

}  // namespace terrace
