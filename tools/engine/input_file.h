#ifndef TERRACE_TOOLS_ENGINE_INPUT_FILE_H_
#define TERRACE_TOOLS_ENGINE_INPUT_FILE_H_

#include <cstdint>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "io/unique_fd.h"

namespace terrace {

// A regular file that is only read. It is read by offset and not mapped, because a file that
// somebody truncates meanwhile is then an error instead of a signal. Thread-safe.
class InputFile {
 public:
  // Errors name the path: the errno's code when it cannot be opened, kInvalidArgument for what is
  // no regular file, such as a directory.
  static absl::StatusOr<InputFile> Open(const std::string& path);

  const std::string& path() const { return path_; }
  uint64_t size_bytes() const { return size_bytes_; }  // when it was opened

  // Fills `bytes` from `offset` on. kDataLoss when the file ends before that; other errors have the
  // errno's code. They name path, offset and length.
  absl::Status Read(uint64_t offset, absl::Span<char> bytes) const;

 private:
  InputFile(std::string path, UniqueFd fd, uint64_t size_bytes);

  std::string path_;
  UniqueFd fd_;
  uint64_t size_bytes_;
};

// The whole content of a file. kInvalidArgument when it has more than `max_bytes`.
absl::StatusOr<std::string> ReadWholeFile(const std::string& path, uint64_t max_bytes);

}  // namespace terrace

#endif  // TERRACE_TOOLS_ENGINE_INPUT_FILE_H_
