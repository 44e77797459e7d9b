#include "io/opened_file.h"

#include <fcntl.h>
#include <linux/fs.h>
#include <sys/file.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include <cerrno>
#include <system_error>
#include <utility>

#include "absl/cleanup/cleanup.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "io/aligned_buffer.h"

namespace terrace {
namespace {

constexpr mode_t kPrivateMode = S_IRUSR | S_IWUSR;

std::string ErrorText(int error) { return std::generic_category().message(error); }

absl::StatusCode CodeOf(int error) {
  switch (error) {
    case ENOENT:
      return absl::StatusCode::kNotFound;
    case EACCES:
    case EPERM:
    case EROFS:
      return absl::StatusCode::kPermissionDenied;
    case ENOSPC:
    case EDQUOT:
    case EMFILE:
    case ENFILE:
    case ENOMEM:
      return absl::StatusCode::kResourceExhausted;
    case EBUSY:
    case ETXTBSY:
    case EAGAIN:
      return absl::StatusCode::kUnavailable;
    case EIO:
      return absl::StatusCode::kDataLoss;
    case ENOTDIR:
    case EISDIR:
    case ELOOP:
    case ENAMETOOLONG:
    case EFBIG:
    case EINVAL:
    case ENXIO:
      return absl::StatusCode::kInvalidArgument;
    default:
      return absl::StatusCode::kInternal;
  }
}

// Opens the path, making the file when it is absent and `create` asks for it.
absl::StatusOr<OpenedFile> Open(const std::string& path, bool create, bool read_only) {
  // O_NONBLOCK keeps a FIFO from blocking us; ClearFlags takes it back.
  const int flags = (read_only ? O_RDONLY : O_RDWR) | O_CLOEXEC | O_NONBLOCK;
  OpenedFile file;
  file.path = path;
  if (create) {
    file.fd = UniqueFd(::open(path.c_str(), flags | O_CREAT | O_EXCL, kPrivateMode));
    file.created = file.fd.valid();
    if (!file.created && errno != EEXIST) {
      return FileError(path, "cannot create", errno);
    }
  }
  if (!file.created) file.fd = UniqueFd(::open(path.c_str(), flags));
  if (!file.fd.valid()) return FileError(path, "cannot open", errno);
  return file;
}

// A killed process keeps its lock until the kernel has torn down its ring in the background, which
// takes tens of milliseconds; whoever restarts it should not be turned away for that.
absl::Status Lock(const std::string& path, bool read_only, int fd) {
  constexpr int kTries = 25;
  constexpr absl::Duration kPause = absl::Milliseconds(10);
  const int operation = (read_only ? LOCK_SH : LOCK_EX) | LOCK_NB;
  for (int tried = 1; ::flock(fd, operation) != 0; ++tried) {
    if (errno != EWOULDBLOCK) return FileError(path, "cannot lock", errno);
    if (tried == kTries) {
      return absl::UnavailableError(absl::StrCat(path, ": locked by another process"));
    }
    absl::SleepFor(kPause);
  }
  return absl::OkStatus();
}

void Identify(const struct stat& found, OpenedFile& file) {
  // A block device is the same by any node that leads to it.
  const bool block_device = S_ISBLK(found.st_mode);
  file.volume = block_device ? found.st_rdev : found.st_dev;
  file.number = block_device ? 0 : found.st_ino;
}

absl::Status Identify(OpenedFile& file) {
  struct stat found = {};
  if (::fstat(file.fd.get(), &found) != 0) return FileError(file.path, "cannot stat", errno);
  Identify(found, file);
  return absl::OkStatus();
}

// Whether the path leads to the file still, and not to nothing or to another one.
bool IsAtPath(const OpenedFile& file) {
  struct stat found = {};
  if (::stat(file.path.c_str(), &found) != 0) return false;
  OpenedFile at_path;
  Identify(found, at_path);
  return at_path.volume == file.volume && at_path.number == file.number;
}

// Fills in what `file` is. Called with the lock held, so that it stays true.
absl::Status Describe(OpenedFile& file) {
  struct stat found = {};
  if (::fstat(file.fd.get(), &found) != 0) return FileError(file.path, "cannot stat", errno);
  if (S_ISBLK(found.st_mode)) {
    if (::ioctl(file.fd.get(), BLKGETSIZE64, &file.size_bytes) != 0) {
      return FileError(file.path, "cannot get the size of the block device", errno);
    }
    file.size_bytes = file.size_bytes / kPageBytes * kPageBytes;
    return absl::OkStatus();
  }
  if (!S_ISREG(found.st_mode)) {
    return absl::InvalidArgumentError(
        absl::StrCat(file.path, ": is ", S_ISDIR(found.st_mode) ? "a directory" : "something else",
                     ", not a regular file or a block device"));
  }
  file.regular = true;
  file.size_bytes = static_cast<uint64_t>(found.st_size);
  file.allocated_bytes = static_cast<uint64_t>(found.st_blocks) * 512;
  return absl::OkStatus();
}

// Why the kernel does not do direct I/O on whole pages of this file, or an empty string.
std::string DirectIoObstacle(int fd) {
#ifdef STATX_DIOALIGN
  struct statx found = {};
  if (::statx(fd, "", AT_EMPTY_PATH, STATX_DIOALIGN, &found) == 0 &&
      (found.stx_mask & STATX_DIOALIGN) != 0) {
    if (found.stx_dio_offset_align == 0) return "the file does not support direct I/O";
    const uint32_t align = std::max(found.stx_dio_offset_align, found.stx_dio_mem_align);
    if (align > kPageBytes) return absl::StrCat("direct I/O needs ", align, "-byte alignment");
  }
#else
  static_cast<void>(fd);
#endif
  return "";
}

absl::Status DiskFull(const std::string& path, uint64_t needed_bytes, uint64_t available_bytes) {
  return absl::ResourceExhaustedError(absl::StrCat(path, ": not enough disk space: ", needed_bytes,
                                                   " bytes needed, ", available_bytes,
                                                   " available"));
}

absl::Status Allocate(const OpenedFile& file, int fd, uint64_t size_bytes, bool truncate) {
  const uint64_t kept_bytes = truncate ? 0 : file.size_bytes;
  const uint64_t needed_bytes = size_bytes - kept_bytes;
  // Asking first spares everybody else a disk that is full for the moment before we give up.
  struct statvfs disk = {};
  uint64_t available_bytes = 0;
  const bool known = ::fstatvfs(fd, &disk) == 0 && disk.f_blocks > 0;
  if (known) {
    const uint64_t freed_bytes = truncate ? file.allocated_bytes : 0;
    available_bytes = static_cast<uint64_t>(disk.f_bavail) * disk.f_frsize + freed_bytes;
    if (needed_bytes > available_bytes) return DiskFull(file.path, needed_bytes, available_bytes);
  }
  if (truncate && ::ftruncate(fd, 0) != 0) return FileError(file.path, "cannot truncate", errno);

  int error = 0;
  do {
    error =
        ::fallocate(fd, 0, static_cast<off_t>(kept_bytes), static_cast<off_t>(needed_bytes)) == 0
            ? 0
            : errno;
  } while (error == EINTR);
  if (error == EOPNOTSUPP || error == ENOSYS) {
    error = ::ftruncate(fd, static_cast<off_t>(size_bytes)) == 0 ? 0 : errno;
  }
  if (error == 0) return absl::OkStatus();
  // A partial allocation may have grown the file. If this fails too, the first error says more.
  static_cast<void>(::ftruncate(fd, static_cast<off_t>(kept_bytes)));
  if (error == ENOSPC && known) return DiskFull(file.path, needed_bytes, available_bytes);
  return FileError(file.path, absl::StrCat("cannot reserve ", needed_bytes, " bytes"), error);
}

// Makes the file's length, and the name of a new one, survive power loss.
absl::Status Persist(const std::string& path, int fd, bool is_new) {
  if (::fsync(fd) != 0) return FileError(path, "cannot sync", errno);
  if (!is_new) return absl::OkStatus();
  const size_t slash = path.rfind('/');
  const std::string directory = slash == std::string::npos ? "." : path.substr(0, slash + 1);
  const UniqueFd directory_fd(::open(directory.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  if (!directory_fd.valid()) return FileError(directory, "cannot open", errno);
  // Some filesystems have no such thing as a directory to sync.
  if (::fsync(directory_fd.get()) != 0 && errno != EINVAL) {
    return FileError(directory, "cannot sync", errno);
  }
  return absl::OkStatus();
}

}  // namespace

absl::Status FileError(const std::string& path, absl::string_view action, int error) {
  return absl::Status(CodeOf(error), absl::StrCat(path, ": ", action, ": ", ErrorText(error)));
}

absl::StatusOr<OpenedFile> OpenAndLock(const std::string& path, bool create, bool read_only,
                                       absl::Span<const OpenedFile> others) {
  constexpr int kTries = 25;
  for (int tried = 0; tried < kTries; ++tried) {
    absl::StatusOr<OpenedFile> file = Open(path, create, read_only);
    if (!file.ok()) return file;
    if (absl::Status status = Identify(*file); !status.ok()) return status;
    for (const OpenedFile& other : others) {
      if (other.volume != file->volume || other.number != file->number) continue;
      return absl::InvalidArgumentError(absl::StrCat(path, ": is the same file as ", other.path));
    }
    // Whoever is faster with the lock owns a new file, so only a locked one may be removed.
    if (absl::Status status = Lock(path, read_only, file->fd.get()); !status.ok()) return status;
    // A lock on what nobody finds there keeps nobody out. The maker of a file removes it, for one,
    // when it could not fill it.
    if (!IsAtPath(*file)) continue;
    if (absl::Status status = Describe(*file); !status.ok()) {
      if (file->created) ::unlink(path.c_str());
      return status;
    }
    return file;
  }
  return absl::UnavailableError(
      absl::StrCat(path, ": was removed or replaced each time it was opened"));
}

absl::StatusOr<uint64_t> DecideSize(const OpenedFile& file, uint64_t wanted_bytes,
                                    const SizeRules& rules) {
  const auto invalid = [&file](auto&&... text) {
    return absl::InvalidArgumentError(absl::StrCat(file.path, ": size_bytes: ", text...));
  };
  if (rules.truncate && !file.regular) {
    return absl::InvalidArgumentError(
        absl::StrCat(file.path, ": truncate: a block device cannot be truncated"));
  }
  if (wanted_bytes == 0) {
    const uint64_t size_bytes = PageAlignUp(file.size_bytes);
    if (size_bytes == 0) return invalid("an empty file needs a size");
    return size_bytes;
  }
  const bool may_shrink = rules.truncate || rules.cut_tail || !file.regular;
  if (file.size_bytes > wanted_bytes && !may_shrink) {
    return invalid("the file has ", file.size_bytes, " bytes, more than ", wanted_bytes);
  }
  if (file.size_bytes < wanted_bytes && (rules.read_only || !file.regular)) {
    return invalid("the file has ", file.size_bytes, " bytes, fewer than ", wanted_bytes,
                   ", and cannot be extended");
  }
  return wanted_bytes;
}

std::string SwitchOnDirectIo(int fd) {
  const std::string obstacle = DirectIoObstacle(fd);
  if (!obstacle.empty() || ::fcntl(fd, F_SETFL, O_DIRECT) == 0) return obstacle;
  return absl::StrCat("the filesystem refuses O_DIRECT: ", ErrorText(errno));
}

absl::Status ClearFlags(const std::string& path, int fd) {
  return ::fcntl(fd, F_SETFL, 0) == 0 ? absl::OkStatus()
                                      : FileError(path, "cannot set the flags", errno);
}

absl::Status MakePrivate(const OpenedFile& file, int fd) {
  if (!file.regular) return absl::OkStatus();
  struct stat found = {};
  if (::fstat(fd, &found) != 0) return FileError(file.path, "cannot stat", errno);
  if (found.st_uid != ::geteuid() || (found.st_mode & (S_IRWXG | S_IRWXO)) == 0) {
    return absl::OkStatus();
  }
  return ::fchmod(fd, kPrivateMode) == 0
             ? absl::OkStatus()
             : FileError(file.path, "cannot make it private to its owner", errno);
}

absl::Status Reserve(const OpenedFile& file, int fd, uint64_t size_bytes, bool truncate) {
  absl::Status status = Allocate(file, fd, size_bytes, truncate);
  if (!status.ok()) return status;
  // An empty file may be one that another process has just made, and lost the lock on to us.
  status = Persist(file.path, fd, file.created || file.size_bytes == 0);
  if (!status.ok()) UndoReserve(file, fd, truncate);
  return status;
}

absl::Status CutTail(const OpenedFile& file, int fd, uint64_t size_bytes) {
  if (::ftruncate(fd, static_cast<off_t>(size_bytes)) != 0) {
    return FileError(file.path, "cannot truncate", errno);
  }
  return Persist(file.path, fd, /*is_new=*/false);
}

void UndoReserve(const OpenedFile& file, int fd, bool truncate) {
  // If it fails, the first error says more.
  static_cast<void>(::ftruncate(fd, truncate ? 0 : static_cast<off_t>(file.size_bytes)));
}

}  // namespace terrace
