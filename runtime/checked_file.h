#ifndef TERRACE_RUNTIME_CHECKED_FILE_H_
#define TERRACE_RUNTIME_CHECKED_FILE_H_

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <type_traits>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"

namespace terrace {

struct SectionHash;  // of what a section held so far

// Writes a file that appears under its name whole or not at all: to a name of its own beside it,
// synced, then renamed, and the directory synced. Sections end in a checksum (XXH3-64). The first
// error is kept, and Commit returns it. Mode 0600. Thread-compatible.
class CheckedFileWriter {
 public:
  explicit CheckedFileWriter(const std::string& path);
  // Removes what was not committed.
  ~CheckedFileWriter();
  CheckedFileWriter(const CheckedFileWriter&) = delete;
  CheckedFileWriter& operator=(const CheckedFileWriter&) = delete;

  void Write(const void* bytes, size_t size);
  template <typename T>
  void Write(const T& value) {
    static_assert(std::is_trivially_copyable_v<T> && !std::is_pointer_v<T>);
    Write(&value, sizeof(value));
  }
  // Writes the checksum of everything since the last section, and starts the next.
  void EndSection();
  // Errors name path, what failed and errno's text: kResourceExhausted for a full disk or quota,
  // kUnavailable otherwise.
  absl::Status Commit();

 private:
  void WriteOut();
  void Fail(const char* what);

  const std::string path_;
  const std::string temporary_;
  int fd_ = -1;
  bool committed_ = false;
  absl::Status status_;
  std::vector<std::byte> buffer_;  // not written yet
  std::unique_ptr<SectionHash> hash_;
};

// Reads such a file. What was read may be used once EndSection said that its checksum is right.
// Errors name the path: kNotFound, kDataLoss for a wrong checksum or a file that ends too early.
class CheckedFileReader {
 public:
  static absl::StatusOr<std::unique_ptr<CheckedFileReader>> Open(const std::string& path);
  ~CheckedFileReader();

  absl::Status Read(void* bytes, size_t size);
  template <typename T>
  absl::Status Read(T& value) {
    static_assert(std::is_trivially_copyable_v<T> && !std::is_pointer_v<T>);
    return Read(&value, sizeof(value));
  }
  // Reads and forgets.
  absl::Status Skip(uint64_t size);
  absl::Status EndSection();
  // Bytes of the file that were not read yet: no count in it can be larger.
  uint64_t left() const { return left_; }
  absl::Status Damaged(absl::string_view what) const;

 private:
  CheckedFileReader(const std::string& path, int fd, uint64_t size);
  absl::Status ReadRaw(void* bytes, size_t size);

  const std::string path_;
  const int fd_;
  uint64_t left_;
  std::vector<std::byte> buffer_;
  size_t begin_ = 0;  // of what is in the buffer
  size_t end_ = 0;
  std::unique_ptr<SectionHash> hash_;
};

}  // namespace terrace

#endif  // TERRACE_RUNTIME_CHECKED_FILE_H_
