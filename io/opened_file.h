#ifndef TERRACE_IO_OPENED_FILE_H_
#define TERRACE_IO_OPENED_FILE_H_

#include <cstdint>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "io/unique_fd.h"

namespace terrace {

// One file of a device on its way to be part of it: what OpenFileDevice does with each. Statuses
// name the path and the errno text. Thread-compatible.
struct OpenedFile {
  std::string path;
  UniqueFd fd;
  bool created = false;
  bool regular = false;     // else a block device
  uint64_t size_bytes = 0;  // as it was found; may be a fraction of a page
  uint64_t allocated_bytes = 0;
  // What tells two files apart, whatever their paths.
  uint64_t volume = 0;
  uint64_t number = 0;
};

// "path: action: errno text", with the code that opening a file gives this errno.
absl::Status FileError(const std::string& path, absl::string_view action, int error);

// Opens the file, locks it against other processes and looks at it; changes nothing, but makes it
// when it is absent and `create` asks for it. The path leads to the file once it is locked: what
// was removed or replaced meanwhile is opened anew. kInvalidArgument when it is one of `others`.
absl::StatusOr<OpenedFile> OpenAndLock(const std::string& path, bool create, bool read_only,
                                       absl::Span<const OpenedFile> others);

// As in FileDeviceOptions.
struct SizeRules {
  bool truncate = false;
  bool cut_tail = false;
  bool read_only = false;
};
// The size that the file is to have when it is to have `wanted_bytes`, or what it has when that is
// 0. kInvalidArgument when it cannot: it is larger and nothing of it must go, or smaller and cannot
// be extended. A block device may be larger: the rest of it is left alone.
absl::StatusOr<uint64_t> DecideSize(const OpenedFile& file, uint64_t wanted_bytes,
                                    const SizeRules& rules);

// Switches the page cache off; returns why that is not possible, or an empty string.
std::string SwitchOnDirectIo(int fd);
// Clears every flag, direct I/O included.
absl::Status ClearFlags(const std::string& path, int fd);

// Takes away what group and others may do with a regular file of ours: it holds what its users said
// to a model.
absl::Status MakePrivate(const OpenedFile& file, int fd);

// Extends the file to `size_bytes`, discarding what it has first if `truncate`, takes the space for
// it from the disk, so that no later write can find the disk full, and makes its length, and the
// name of a new one, survive power loss. On failure the file has its former length again, or 0.
absl::Status Reserve(const OpenedFile& file, int fd, uint64_t size_bytes, bool truncate);
// Cuts off what the file has behind `size_bytes`, and makes its length survive power loss.
absl::Status CutTail(const OpenedFile& file, int fd, uint64_t size_bytes);
// Undoes Reserve once another file of the device could not have its space.
void UndoReserve(const OpenedFile& file, int fd, bool truncate);

}  // namespace terrace

#endif  // TERRACE_IO_OPENED_FILE_H_
