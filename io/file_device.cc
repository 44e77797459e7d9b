#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <limits>
#include <utility>
#include <vector>

#include "absl/cleanup/cleanup.h"
#include "absl/strings/str_cat.h"
#include "io/aligned_buffer.h"
#include "io/block_device.h"
#include "io/device_file.h"
#include "io/opened_file.h"
#include "io/thread_device.h"
#include "io/uring_device.h"

namespace terrace {
namespace {

constexpr size_t kMaxDepth = 4096;
constexpr uint64_t kMaxSizeBytes = std::numeric_limits<off_t>::max();

std::vector<std::string> PathsOf(const FileDeviceOptions& options) {
  std::vector<std::string> paths = {options.path};
  paths.insert(paths.end(), options.more_paths.begin(), options.more_paths.end());
  return paths;
}

absl::Status CheckStripes(const FileDeviceOptions& options) {
  if (options.more_paths.empty()) return absl::OkStatus();
  if (options.stripe_bytes == 0 || !IsPageAligned(options.stripe_bytes) ||
      options.stripe_bytes > kMaxSizeBytes) {
    return absl::InvalidArgumentError(
        absl::StrCat("stripe_bytes: ", options.stripe_bytes, " is not a multiple of ", kPageBytes));
  }
  const uint64_t files = options.more_paths.size() + 1;
  if (options.size_bytes % files == 0 && options.size_bytes / files % options.stripe_bytes == 0) {
    return absl::OkStatus();
  }
  return absl::InvalidArgumentError(
      absl::StrCat("size_bytes: ", options.size_bytes, " is not the same number of stripes of ",
                   options.stripe_bytes, " bytes in each of ", files, " files"));
}

absl::Status Validate(const FileDeviceOptions& options) {
  const auto invalid = [](auto&&... text) {
    return absl::InvalidArgumentError(absl::StrCat(text...));
  };
  for (const std::string& path : PathsOf(options)) {
    if (path.empty()) return invalid("path: is empty");
    if (path.find('\0') != std::string::npos) return invalid("path: holds a zero byte");
  }
  if (absl::Status status = CheckStripes(options); !status.ok()) return status;
  if (!IsPageAligned(options.size_bytes) || options.size_bytes > kMaxSizeBytes) {
    return invalid("size_bytes: ", options.size_bytes, " is not a file size that is a multiple of ",
                   kPageBytes);
  }
  const bool may_truncate = options.truncate || options.decide_truncate || options.cut_tail;
  if (may_truncate && options.size_bytes == 0) {
    return invalid("size_bytes: a truncated file needs a size");
  }
  if ((options.decide_truncate || options.cut_tail) && !options.more_paths.empty()) {
    return invalid("more_paths: excludes decide_truncate and cut_tail");
  }
  if (options.read_only && options.create) return invalid("read_only: excludes create");
  if (options.read_only && may_truncate) return invalid("read_only: excludes truncate");
  if (options.engine == IoEngine::kMemory) return invalid("engine: memory cannot open a file");
  if (options.depth == 0 || options.depth > kMaxDepth) {
    return invalid("depth: ", options.depth, " is not between 1 and ", kMaxDepth);
  }
  return absl::OkStatus();
}

// A device that reads `file` as it is. It shares the open file, and so the lock.
absl::StatusOr<std::unique_ptr<BlockDevice>> OpenAsItIs(const OpenedFile& file) {
  UniqueFd fd(::fcntl(file.fd.get(), F_DUPFD_CLOEXEC, 0));
  if (!fd.valid()) return FileError(file.path, "cannot open a second time", errno);
  std::vector<DeviceFile> parts;
  parts.push_back({.path = file.path,
                   .fd = std::move(fd),
                   .regular = file.regular,
                   .volume = file.volume,
                   .number = file.number,
                   .needed_bytes = file.size_bytes});
  DeviceInfo info;
  info.path = file.path;
  info.layout = {.file_count = 1, .stripe_bytes = kPageBytes};
  info.size_bytes = PageAlignUp(file.size_bytes);
  info.depth = 1;
  absl::StatusOr<std::unique_ptr<BlockDevice>> device =
      ThreadDevice::Create(parts, std::move(info));
  if (device.ok()) return device;
  return absl::UnavailableError(absl::StrCat(file.path, ": ", device.status().message()));
}

// Whether to discard what the files hold.
absl::StatusOr<bool> DecideTruncate(const FileDeviceOptions& options,
                                    const std::vector<OpenedFile>& files) {
  if (!options.decide_truncate || files.front().size_bytes == 0) return options.truncate;
  absl::StatusOr<std::unique_ptr<BlockDevice>> found = OpenAsItIs(files.front());
  if (!found.ok()) return found.status();
  return options.decide_truncate(**found, files.front().size_bytes);
}

// The size of the device to be; every file has its share of it.
absl::StatusOr<uint64_t> DecideSizes(const FileDeviceOptions& options, bool truncate,
                                     const std::vector<OpenedFile>& files) {
  const bool striped = files.size() > 1;
  std::vector<uint64_t> sizes;
  for (const OpenedFile& file : files) {
    const absl::StatusOr<uint64_t> bytes = DecideSize(
        file, options.size_bytes / files.size(),
        {.truncate = truncate, .cut_tail = options.cut_tail, .read_only = options.read_only});
    if (!bytes.ok()) return bytes.status();
    // Disks are rarely whole stripes; what is left over is not used.
    const bool whole_stripes = striped && !file.regular;
    sizes.push_back(whole_stripes ? *bytes / options.stripe_bytes * options.stripe_bytes : *bytes);
  }
  const uint64_t share_bytes = *std::min_element(sizes.begin(), sizes.end());
  for (size_t i = 0; i < files.size() && striped; ++i) {
    const bool fits = sizes[i] == share_bytes || !files[i].regular;
    if (fits && share_bytes > 0 && share_bytes % options.stripe_bytes == 0) continue;
    return absl::InvalidArgumentError(absl::StrCat(
        files[i].path, ": size_bytes: the file has ", files[i].size_bytes, " bytes, which ",
        fits ? absl::StrCat("are not whole stripes of ", options.stripe_bytes)
             : absl::StrCat("differs from the ", share_bytes, " of the smallest file")));
  }
  if (share_bytes > kMaxSizeBytes / files.size()) {
    return absl::InvalidArgumentError(absl::StrCat(options.path, ": size_bytes: ", files.size(),
                                                   " files of ", share_bytes,
                                                   " bytes are more than a device can have"));
  }
  return share_bytes * files.size();
}

// Switches the page cache off if that is wanted and works for every file, and says so in `info`.
absl::Status SetUpDirectIo(bool wanted, const std::vector<OpenedFile>& files, DeviceInfo& info) {
  info.direct_reason = wanted ? "" : "not asked for";
  for (const OpenedFile& file : files) {
    if (!info.direct_reason.empty()) break;
    info.direct_reason = SwitchOnDirectIo(file.fd.get());
    if (info.direct_reason.empty() || files.size() == 1) continue;
    info.direct_reason = absl::StrCat(file.path, ": ", info.direct_reason);
  }
  info.direct_io = info.direct_reason.empty();
  if (info.direct_io) info.direct_reason = "the filesystem supports it";
  for (const OpenedFile& file : files) {
    if (info.direct_io) break;
    if (absl::Status status = ClearFlags(file.path, file.fd.get()); !status.ok()) return status;
  }
  return absl::OkStatus();
}

// What the device keeps of a file; takes its descriptor.
DeviceFile PartOf(OpenedFile& file, uint64_t needed_bytes) {
  return {.path = file.path,
          .fd = std::move(file.fd),
          .regular = file.regular,
          .volume = file.volume,
          .number = file.number,
          .needed_bytes = needed_bytes};
}

// Takes over `files` when it succeeds.
absl::StatusOr<std::unique_ptr<BlockDevice>> StartEngine(IoEngine wanted,
                                                         std::vector<DeviceFile>& files,
                                                         DeviceInfo info) {
  const std::string path = info.path;
  if (wanted == IoEngine::kThreads) {
    info.engine_reason = "asked for";
  } else {
    info.engine_reason = wanted == IoEngine::kAuto ? "the kernel supports it" : "asked for";
    absl::StatusOr<std::unique_ptr<BlockDevice>> device = UringDevice::Create(files, info);
    if (device.ok()) return device;
    const absl::string_view obstacle = device.status().message();
    if (wanted == IoEngine::kIoUring) {
      return absl::UnavailableError(absl::StrCat(path, ": io_uring is not available: ", obstacle));
    }
    info.engine_reason = absl::StrCat("io_uring is not available: ", obstacle);
  }
  absl::StatusOr<std::unique_ptr<BlockDevice>> device =
      ThreadDevice::Create(files, std::move(info));
  if (!device.ok()) {
    return absl::UnavailableError(absl::StrCat(path, ": ", device.status().message()));
  }
  return device;
}

// Gives the files the contents and the size that they are to have. Nothing but the disk can refuse
// any more; if it does, they have their former size again, or 0.
absl::Status ChangeContents(const FileDeviceOptions& options, bool truncate, uint64_t share_bytes,
                            const std::vector<OpenedFile>& files, const std::vector<int>& numbers) {
  for (size_t i = 0; i < files.size(); ++i) {
    const uint64_t has_bytes = files[i].size_bytes;
    absl::Status status;
    if (truncate || (options.size_bytes > 0 && has_bytes < share_bytes)) {
      status = Reserve(files[i], numbers[i], share_bytes, truncate);
    } else if (options.cut_tail && files[i].regular && has_bytes > share_bytes) {
      status = CutTail(files[i], numbers[i], share_bytes);
    }
    if (status.ok()) continue;
    for (size_t done = 0; done < i; ++done) UndoReserve(files[done], numbers[done], truncate);
    return status;
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<std::unique_ptr<BlockDevice>> OpenFileDevice(const FileDeviceOptions& options) {
  if (absl::Status status = Validate(options); !status.ok()) return status;
  // A file that was made stays locked until it is removed again: whoever has the descriptors, in
  // the end the device, must outlive the cleanup.
  std::vector<OpenedFile> files;
  std::vector<DeviceFile> parts;
  absl::StatusOr<std::unique_ptr<BlockDevice>> device;
  absl::Cleanup remove_created = [&files] {
    for (const OpenedFile& file : files) {
      if (file.created) ::unlink(file.path.c_str());
    }
  };
  for (const std::string& path : PathsOf(options)) {
    absl::StatusOr<OpenedFile> file = OpenAndLock(path, options.create, options.read_only, files);
    if (!file.ok()) return file.status();
    files.push_back(*std::move(file));
  }

  const absl::StatusOr<bool> truncate = DecideTruncate(options, files);
  if (!truncate.ok()) return truncate.status();
  const absl::StatusOr<uint64_t> size_bytes = DecideSizes(options, *truncate, files);
  if (!size_bytes.ok()) return size_bytes.status();
  DeviceInfo info;
  info.path = options.path;
  info.more_paths = options.more_paths;
  info.layout = {.file_count = files.size(), .stripe_bytes = options.stripe_bytes};
  info.size_bytes = *size_bytes;
  info.depth = options.depth;
  if (absl::Status status = SetUpDirectIo(options.direct_io, files, info); !status.ok()) {
    return status;
  }
  const uint64_t share_bytes = *size_bytes / files.size();
  std::vector<int> numbers;
  for (OpenedFile& file : files) {
    numbers.push_back(file.fd.get());
    // A size that was not asked for may end in a fraction of a page.
    parts.push_back(PartOf(file, options.size_bytes > 0 ? share_bytes : file.size_bytes));
  }
  device = StartEngine(options.engine, parts, std::move(info));
  if (!device.ok()) return device.status();

  for (size_t i = 0; i < files.size() && options.create; ++i) {
    if (absl::Status status = MakePrivate(files[i], numbers[i]); !status.ok()) return status;
  }
  absl::Status changed = ChangeContents(options, *truncate, share_bytes, files, numbers);
  if (!changed.ok()) return changed;
  std::move(remove_created).Cancel();
  return device;
}

}  // namespace terrace
