#include <fcntl.h>
#include <linux/fs.h>
#include <sys/file.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include <cerrno>
#include <limits>
#include <system_error>
#include <utility>

#include "absl/cleanup/cleanup.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "io/aligned_buffer.h"
#include "io/block_device.h"
#include "io/thread_device.h"
#include "io/unique_fd.h"
#include "io/uring_device.h"

namespace terrace {
namespace {

constexpr size_t kMaxDepth = 4096;
constexpr uint64_t kMaxSizeBytes = std::numeric_limits<off_t>::max();

// The file as it was found, before anything about it is changed.
struct OpenedFile {
  UniqueFd fd;
  bool created = false;
  bool regular = false;     // else a block device
  uint64_t size_bytes = 0;  // may be a fraction of a page
  uint64_t allocated_bytes = 0;
};

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

absl::Status ErrnoStatus(const std::string& path, absl::string_view action, int error) {
  return absl::Status(CodeOf(error), absl::StrCat(path, ": ", action, ": ", ErrorText(error)));
}

absl::Status Validate(const FileDeviceOptions& options) {
  const auto invalid = [](auto&&... text) {
    return absl::InvalidArgumentError(absl::StrCat(text...));
  };
  if (options.path.empty()) return invalid("path: is empty");
  if (options.path.find('\0') != std::string::npos) return invalid("path: holds a zero byte");
  if (!IsPageAligned(options.size_bytes) || options.size_bytes > kMaxSizeBytes) {
    return invalid("size_bytes: ", options.size_bytes, " is not a file size that is a multiple of ",
                   kPageBytes);
  }
  if (options.truncate && options.size_bytes == 0) {
    return invalid("size_bytes: a truncated file needs a size");
  }
  if (options.read_only && options.create) return invalid("read_only: excludes create");
  if (options.read_only && options.truncate) return invalid("read_only: excludes truncate");
  if (options.engine == IoEngine::kMemory) return invalid("engine: memory cannot open a file");
  if (options.depth == 0 || options.depth > kMaxDepth) {
    return invalid("depth: ", options.depth, " is not between 1 and ", kMaxDepth);
  }
  return absl::OkStatus();
}

// Opens the path, making the file when it is absent and `create` asks for it.
absl::StatusOr<OpenedFile> Open(const FileDeviceOptions& options) {
  // O_NONBLOCK keeps a FIFO from blocking us; SetUpDirectIo takes it back.
  const int flags = (options.read_only ? O_RDONLY : O_RDWR) | O_CLOEXEC | O_NONBLOCK;
  OpenedFile file;
  if (options.create) {
    file.fd = UniqueFd(::open(options.path.c_str(), flags | O_CREAT | O_EXCL, 0600));
    file.created = file.fd.valid();
    if (!file.created && errno != EEXIST) {
      return ErrnoStatus(options.path, "cannot create", errno);
    }
  }
  if (!file.created) file.fd = UniqueFd(::open(options.path.c_str(), flags));
  if (!file.fd.valid()) return ErrnoStatus(options.path, "cannot open", errno);
  return file;
}

// A killed process keeps its lock until the kernel has torn down its ring in the background, which
// takes tens of milliseconds; whoever restarts it should not be turned away for that.
absl::Status Lock(const FileDeviceOptions& options, int fd) {
  constexpr int kTries = 25;
  constexpr absl::Duration kPause = absl::Milliseconds(10);
  const int operation = (options.read_only ? LOCK_SH : LOCK_EX) | LOCK_NB;
  for (int tried = 1; ::flock(fd, operation) != 0; ++tried) {
    if (errno != EWOULDBLOCK) return ErrnoStatus(options.path, "cannot lock", errno);
    if (tried == kTries) {
      return absl::UnavailableError(absl::StrCat(options.path, ": locked by another process"));
    }
    absl::SleepFor(kPause);
  }
  return absl::OkStatus();
}

// Fills in what `file` is. Called with the lock held, so that it stays true.
absl::Status Describe(const std::string& path, OpenedFile& file) {
  struct stat found = {};
  if (::fstat(file.fd.get(), &found) != 0) return ErrnoStatus(path, "cannot stat", errno);
  if (S_ISBLK(found.st_mode)) {
    if (::ioctl(file.fd.get(), BLKGETSIZE64, &file.size_bytes) != 0) {
      return ErrnoStatus(path, "cannot get the size of the block device", errno);
    }
    file.size_bytes = file.size_bytes / kPageBytes * kPageBytes;
    return absl::OkStatus();
  }
  if (!S_ISREG(found.st_mode)) {
    return absl::InvalidArgumentError(
        absl::StrCat(path, ": is ", S_ISDIR(found.st_mode) ? "a directory" : "something else",
                     ", not a regular file or a block device"));
  }
  // Its maker, another process, removes a file that it could not fill.
  if (found.st_nlink == 0) {
    return absl::UnavailableError(absl::StrCat(path, ": was removed while being opened"));
  }
  file.regular = true;
  file.size_bytes = static_cast<uint64_t>(found.st_size);
  file.allocated_bytes = static_cast<uint64_t>(found.st_blocks) * 512;
  return absl::OkStatus();
}

// The size of the device to be, if `options` allow it for the file that was found.
absl::StatusOr<uint64_t> DecideSize(const FileDeviceOptions& options, const OpenedFile& file) {
  const auto invalid = [&options](auto&&... text) {
    return absl::InvalidArgumentError(absl::StrCat(options.path, ": size_bytes: ", text...));
  };
  if (options.truncate && !file.regular) {
    return absl::InvalidArgumentError(
        absl::StrCat(options.path, ": truncate: a block device cannot be truncated"));
  }
  if (options.size_bytes == 0) {
    const uint64_t size_bytes = PageAlignUp(file.size_bytes);
    if (size_bytes == 0) return invalid("an empty file needs a size");
    return size_bytes;
  }
  if (file.size_bytes > options.size_bytes && !options.truncate) {
    return invalid("the file has ", file.size_bytes, " bytes, more than ", options.size_bytes);
  }
  if (file.size_bytes < options.size_bytes && (options.read_only || !file.regular)) {
    return invalid("the file has ", file.size_bytes, " bytes, fewer than ", options.size_bytes,
                   ", and cannot be extended");
  }
  return options.size_bytes;
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

// Switches the page cache off if that is wanted and works, and says so in `info`.
absl::Status SetUpDirectIo(const FileDeviceOptions& options, int fd, DeviceInfo& info) {
  info.direct_reason = options.direct_io ? DirectIoObstacle(fd) : "not asked for";
  if (info.direct_reason.empty()) {
    info.direct_io = ::fcntl(fd, F_SETFL, O_DIRECT) == 0;
    info.direct_reason = info.direct_io
                             ? "the filesystem supports it"
                             : absl::StrCat("the filesystem refuses O_DIRECT: ", ErrorText(errno));
  }
  if (!info.direct_io && ::fcntl(fd, F_SETFL, 0) != 0) {
    return ErrnoStatus(options.path, "cannot set the flags", errno);
  }
  return absl::OkStatus();
}

// Takes over `fd` when it succeeds.
absl::StatusOr<std::unique_ptr<BlockDevice>> StartEngine(IoEngine wanted, UniqueFd& fd,
                                                         DeviceInfo info) {
  const std::string path = info.path;
  if (wanted == IoEngine::kThreads) {
    info.engine_reason = "asked for";
  } else {
    info.engine_reason = wanted == IoEngine::kAuto ? "the kernel supports it" : "asked for";
    absl::StatusOr<std::unique_ptr<BlockDevice>> device = UringDevice::Create(fd, info);
    if (device.ok()) return device;
    const absl::string_view obstacle = device.status().message();
    if (wanted == IoEngine::kIoUring) {
      return absl::UnavailableError(absl::StrCat(path, ": io_uring is not available: ", obstacle));
    }
    info.engine_reason = absl::StrCat("io_uring is not available: ", obstacle);
  }
  absl::StatusOr<std::unique_ptr<BlockDevice>> device = ThreadDevice::Create(fd, std::move(info));
  if (!device.ok()) {
    return absl::UnavailableError(absl::StrCat(path, ": ", device.status().message()));
  }
  return device;
}

absl::Status DiskFull(const std::string& path, uint64_t needed_bytes, uint64_t available_bytes) {
  return absl::ResourceExhaustedError(absl::StrCat(path, ": not enough disk space: ", needed_bytes,
                                                   " bytes needed, ", available_bytes,
                                                   " available"));
}

// Extends the file to `size_bytes` and takes the space for it from the disk, so that no later write
// can find the disk full. On failure the file has its former length again.
absl::Status Reserve(const std::string& path, const OpenedFile& file, int fd, uint64_t size_bytes,
                     bool truncate) {
  const uint64_t kept_bytes = truncate ? 0 : file.size_bytes;
  const uint64_t needed_bytes = size_bytes - kept_bytes;
  // Asking first spares everybody else a disk that is full for the moment before we give up.
  struct statvfs disk = {};
  uint64_t available_bytes = 0;
  const bool known = ::fstatvfs(fd, &disk) == 0 && disk.f_blocks > 0;
  if (known) {
    const uint64_t freed_bytes = truncate ? file.allocated_bytes : 0;
    available_bytes = static_cast<uint64_t>(disk.f_bavail) * disk.f_frsize + freed_bytes;
    if (needed_bytes > available_bytes) return DiskFull(path, needed_bytes, available_bytes);
  }
  if (truncate && ::ftruncate(fd, 0) != 0) return ErrnoStatus(path, "cannot truncate", errno);

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
  if (error == ENOSPC && known) return DiskFull(path, needed_bytes, available_bytes);
  return ErrnoStatus(path, absl::StrCat("cannot reserve ", needed_bytes, " bytes"), error);
}

// Makes the file's length, and the name of a new one, survive power loss.
absl::Status Persist(const std::string& path, int fd, bool created) {
  if (::fsync(fd) != 0) return ErrnoStatus(path, "cannot sync", errno);
  if (!created) return absl::OkStatus();
  const size_t slash = path.rfind('/');
  const std::string directory = slash == std::string::npos ? "." : path.substr(0, slash + 1);
  const UniqueFd directory_fd(::open(directory.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  if (!directory_fd.valid()) return ErrnoStatus(directory, "cannot open", errno);
  // Some filesystems have no such thing as a directory to sync.
  if (::fsync(directory_fd.get()) != 0 && errno != EINVAL) {
    return ErrnoStatus(directory, "cannot sync", errno);
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<std::unique_ptr<BlockDevice>> OpenFileDevice(const FileDeviceOptions& options) {
  if (absl::Status status = Validate(options); !status.ok()) return status;
  absl::StatusOr<OpenedFile> file = Open(options);
  if (!file.ok()) return file.status();
  // Whoever is faster with the lock owns a new file, so only a locked one may be removed, and it
  // stays locked until then: the device, which keeps the lock, must outlive the cleanup.
  if (absl::Status status = Lock(options, file->fd.get()); !status.ok()) return status;
  absl::StatusOr<std::unique_ptr<BlockDevice>> device;
  absl::Cleanup remove_created = [&options, created = file->created] {
    if (created) ::unlink(options.path.c_str());
  };

  if (absl::Status status = Describe(options.path, *file); !status.ok()) return status;
  absl::StatusOr<uint64_t> size_bytes = DecideSize(options, *file);
  if (!size_bytes.ok()) return size_bytes.status();
  DeviceInfo info;
  info.path = options.path;
  info.size_bytes = *size_bytes;
  info.depth = options.depth;
  const int fd = file->fd.get();
  if (absl::Status status = SetUpDirectIo(options, fd, info); !status.ok()) return status;
  device = StartEngine(options.engine, file->fd, std::move(info));
  if (!device.ok()) return device.status();

  // The contents of an existing file change last, when nothing but the disk can refuse any more.
  if (options.truncate || (options.size_bytes > 0 && file->size_bytes < *size_bytes)) {
    absl::Status status = Reserve(options.path, *file, fd, *size_bytes, options.truncate);
    if (status.ok()) status = Persist(options.path, fd, file->created);
    if (!status.ok()) return status;
  }
  std::move(remove_created).Cancel();
  return device;
}

}  // namespace terrace
