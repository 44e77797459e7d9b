#include "io/device_file.h"

#include <fcntl.h>
#include <linux/fs.h>
#include <sys/ioctl.h>
#include <sys/stat.h>

#include <algorithm>
#include <cerrno>
#include <vector>

#include "absl/strings/str_cat.h"
#include "io/opened_file.h"

namespace terrace {
namespace {

absl::Status Lost(const DeviceFile& file, absl::string_view what) {
  return absl::DataLossError(absl::StrCat(file.path, ": was ", what));
}

// Whether the path still leads to the file; `found` is what it leads to.
bool IsSame(const DeviceFile& file, const struct stat& found) {
  if (!file.regular) return S_ISBLK(found.st_mode) && found.st_rdev == file.volume;
  return S_ISREG(found.st_mode) && found.st_dev == file.volume && found.st_ino == file.number;
}

absl::Status CheckOne(const DeviceFile& file) {
  struct stat opened = {};
  if (::fstat(file.fd.get(), &opened) != 0) return FileError(file.path, "cannot stat", errno);
  struct stat named = {};
  if (::stat(file.path.c_str(), &named) != 0) {
    if (errno != ENOENT && errno != ENOTDIR) return FileError(file.path, "cannot stat", errno);
    return Lost(file, opened.st_nlink == 0 ? "deleted while in use"
                                           : "renamed while in use (no file has that name)");
  }
  if (!IsSame(file, named)) {
    return Lost(file, "replaced while in use (another file has that name)");
  }
  const auto size_bytes = static_cast<uint64_t>(opened.st_size);
  if (!file.regular || size_bytes >= file.needed_bytes) return absl::OkStatus();
  return Lost(file, absl::StrCat("truncated to ", size_bytes, " bytes while in use, ",
                                 file.needed_bytes, " are needed"));
}

// A range of one file.
struct Range {
  uint64_t offset = 0;
  uint64_t bytes = 0;
};

// Returns 0 or an errno.
int Punch(const DeviceFile& file, const Range& range) {
  if (!file.regular) {
    uint64_t argument[2] = {range.offset, range.bytes};
    return ::ioctl(file.fd.get(), BLKDISCARD, argument) == 0 ? 0 : errno;
  }
  int error = 0;
  do {
    error = ::fallocate(file.fd.get(), FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
                        static_cast<off_t>(range.offset), static_cast<off_t>(range.bytes)) == 0
                ? 0
                : errno;
  } while (error == EINTR);
  return error;
}

absl::Status DiscardOne(const DeviceFile& file, const Range& range) {
  const int error = Punch(file, range);
  if (error == 0) return absl::OkStatus();
  const absl::Status status = FileError(
      file.path,
      absl::StrCat("discard of ", range.bytes, " bytes at offset ", range.offset, " in this file"),
      error);
  const bool cannot = error == EOPNOTSUPP || error == ENOSYS || error == ENOTTY;
  return cannot ? absl::UnimplementedError(status.message()) : status;
}

}  // namespace

absl::Status CheckFiles(absl::Span<const DeviceFile> files) {
  for (const DeviceFile& file : files) {
    if (absl::Status status = CheckOne(file); !status.ok()) return status;
  }
  return absl::OkStatus();
}

absl::Status DiscardRange(absl::Span<const DeviceFile> files, const StripeLayout& layout,
                          uint64_t offset, uint64_t bytes) {
  // What a range has in one file is one piece: its stripes there follow each other.
  std::vector<Range> ranges(files.size());
  for (uint64_t done = 0; done < bytes;) {
    const StripeLayout::Extent place = layout.Locate(offset + done);
    const uint64_t part_bytes = std::min(place.bytes, bytes - done);
    Range& range = ranges[place.file];
    if (range.bytes == 0) range.offset = place.offset;
    range.bytes += part_bytes;
    done += part_bytes;
  }
  for (size_t i = 0; i < files.size(); ++i) {
    if (ranges[i].bytes == 0) continue;
    if (absl::Status status = DiscardOne(files[i], ranges[i]); !status.ok()) return status;
  }
  return absl::OkStatus();
}

}  // namespace terrace
