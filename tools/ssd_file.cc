#include "tools/ssd_file.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <sstream>
#include <utility>
#include <vector>

#include "absl/cleanup/cleanup.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"
#include "io/aligned_buffer.h"
#include "tools/byte_size.h"
#include "tools/ssd_workload.h"

namespace terrace {
namespace {

std::string ReadText(const std::string& path) {
  std::ifstream file(path);
  std::ostringstream text;
  text << file.rdbuf();
  return text.str();
}

std::string DeviceNumber(dev_t device) { return absl::StrCat(major(device), ":", minor(device)); }

// One line of /proc/self/mountinfo, see proc(5).
struct Mount {
  uint64_t id = 0;
  std::string device;  // "259:1"
  std::string point;
  std::string filesystem;
  std::string source;
};

std::vector<Mount> ParseMounts(absl::string_view mountinfo) {
  std::vector<Mount> mounts;
  for (absl::string_view line : absl::StrSplit(mountinfo, '\n')) {
    const std::vector<std::string> fields = absl::StrSplit(line, ' ');
    const auto dash = std::find(fields.begin(), fields.end(), "-");
    if (fields.size() < 6 || fields.end() - dash < 3) continue;
    uint64_t id = 0;
    if (!absl::SimpleAtoi(fields[0], &id)) continue;
    mounts.push_back({id, fields[2], fields[4], dash[1], dash[2]});
  }
  return mounts;
}

// The mount that a file was reached through. The device number of the file does not tell: btrfs and
// overlay have some of their own, which are in no list.
std::optional<uint64_t> MountId(const std::string& path) {
  struct statx found = {};
  if (::statx(AT_FDCWD, path.c_str(), 0, STATX_MNT_ID, &found) != 0) return std::nullopt;
  if ((found.stx_mask & STATX_MNT_ID) == 0) return std::nullopt;
  return found.stx_mnt_id;
}

void DescribePlace(const std::string& path, const struct stat& info, SsdFile& file) {
  if (S_ISBLK(info.st_mode)) {
    file.source = path;
    file.filesystem = "none";
    return;
  }
  file.source = "unknown";
  file.filesystem = "unknown";
  const std::optional<uint64_t> id = MountId(path);
  for (const Mount& mount : ParseMounts(ReadText("/proc/self/mountinfo"))) {
    if (mount.id != id) continue;
    file.filesystem = mount.filesystem;
    file.source = mount.source;
  }
  if (file.filesystem == "tmpfs" || file.filesystem == "ramfs") {
    file.warning = file.filesystem + " is memory: these are no figures of a disk";
  } else if (file.filesystem == "overlay") {
    file.warning = "overlay passes requests on to another filesystem, which it does not name";
  }
}

absl::Status CheckSpace(const SsdFileOptions& options) {
  struct statvfs space = {};
  if (::statvfs(options.dir.c_str(), &space) != 0) {
    return absl::ErrnoToStatus(errno, absl::StrCat("--dir ", options.dir));
  }
  const uint64_t available = uint64_t{space.f_bavail} * space.f_frsize;
  if (options.size_bytes <= available) return absl::OkStatus();
  return absl::ResourceExhaustedError(absl::StrCat(
      "--size: needed ", options.size_bytes, " bytes (", FormatByteSize(options.size_bytes),
      "), available ", available, " bytes (", FormatByteSize(available), ") in ", options.dir));
}

// The file has its own new directory for as long as it has a name, so that no file of others is
// opened by mistake. Both are removed on every way out.
absl::StatusOr<SsdFile> MakeFile(const SsdFileOptions& options) {
  if (absl::Status status = CheckSpace(options); !status.ok()) return status;
  std::string dir = options.dir + "/terrace-ssd-XXXXXX";
  if (::mkdtemp(dir.data()) == nullptr) {
    return absl::ErrnoToStatus(errno, absl::StrCat("--dir ", options.dir, ": cannot write there"));
  }
  FileDeviceOptions device;
  device.path = dir + "/file";
  device.size_bytes = options.size_bytes;
  device.create = true;
  device.engine = options.engine;
  device.depth = options.depth;
  const absl::Cleanup remove = [&] {
    ::unlink(device.path.c_str());
    ::rmdir(dir.c_str());
  };
  absl::StatusOr<std::unique_ptr<BlockDevice>> opened = OpenFileDevice(device);
  if (!opened.ok()) return opened.status();
  SsdFile file;
  struct stat info = {};
  if (::stat(device.path.c_str(), &info) == 0) DescribePlace(device.path, info, file);
  file.device = *std::move(opened);
  file.size_bytes = options.size_bytes;
  file.owned = true;
  return file;
}

absl::Status CheckKind(const SsdFileOptions& options, const struct stat& info) {
  const auto invalid = [&options](auto&&... text) {
    return absl::InvalidArgumentError(absl::StrCat("--file ", options.file, ": ", text...));
  };
  if (S_ISDIR(info.st_mode)) return invalid("is a directory; --dir makes a file in one");
  if (!S_ISREG(info.st_mode) && !S_ISBLK(info.st_mode)) {
    return invalid("is neither a regular file nor a block device");
  }
  if (S_ISREG(info.st_mode) && static_cast<uint64_t>(info.st_size) < kPageBytes) {
    return invalid("has ", info.st_size, " bytes, less than one page of ", kPageBytes);
  }
  return absl::OkStatus();
}

absl::Status CheckMayWrite(const SsdFileOptions& options, const struct stat& info) {
  if (!options.writes || options.force) return absl::OkStatus();
  std::string reason = "it is not a file made by this run";
  if (S_ISBLK(info.st_mode)) {
    const std::optional<std::string> user =
        FindDeviceUser(DeviceNumber(info.st_rdev), ReadText("/proc/self/mountinfo"), "/sys");
    if (user.has_value()) reason = "it is in use: " + *user;
  }
  return absl::PermissionDeniedError(
      absl::StrCat("--file ", options.file, ": a write op would overwrite it, and ", reason,
                   "; --force writes nevertheless, and what it holds is lost"));
}

absl::StatusOr<SsdFile> OpenExisting(const SsdFileOptions& options) {
  struct stat info = {};
  if (::stat(options.file.c_str(), &info) != 0) {
    return absl::ErrnoToStatus(errno, absl::StrCat("--file ", options.file));
  }
  if (absl::Status status = CheckKind(options, info); !status.ok()) return status;
  if (absl::Status status = CheckMayWrite(options, info); !status.ok()) return status;
  FileDeviceOptions device;
  device.path = options.file;
  device.read_only = !options.writes;
  device.engine = options.engine;
  device.depth = options.depth;
  SsdFile file;
  absl::StatusOr<std::unique_ptr<BlockDevice>> opened = OpenFileDevice(device);
  if (!opened.ok()) return opened.status();
  file.device = *std::move(opened);
  DescribePlace(options.file, info, file);
  // A last page that is not whole stays unused.
  uint64_t size = file.device->info().size_bytes;
  if (S_ISREG(info.st_mode)) size = static_cast<uint64_t>(info.st_size) / kPageBytes * kPageBytes;
  if (options.size_bytes > size) {
    return absl::InvalidArgumentError(absl::StrCat("--size: ", options.size_bytes,
                                                   " bytes is more than --file ", options.file,
                                                   " has, ", size, " bytes"));
  }
  file.size_bytes = options.size_bytes == 0 ? size : options.size_bytes;
  constexpr uint64_t kSectorBytes = 512;  // the unit of st_blocks
  if (S_ISREG(info.st_mode) &&
      static_cast<uint64_t>(info.st_blocks) * kSectorBytes < static_cast<uint64_t>(info.st_size)) {
    file.warning = absl::StrCat(options.file, " has holes or is compressed: reading them needs no ",
                                "disk, so the figures are too good");
  }
  return file;
}

}  // namespace

absl::StatusOr<SsdFile> OpenSsdFile(const SsdFileOptions& options) {
  return options.dir.empty() ? OpenExisting(options) : MakeFile(options);
}

absl::Status FillSsdFile(SsdFile& file, absl::Span<std::byte> memory, uint64_t seed,
                         const std::atomic<bool>& stop,
                         const std::function<void(uint64_t bytes)>& progress) {
  constexpr uint64_t kWriteBytes = uint64_t{1} << 20;
  constexpr size_t kDepth = 16;
  std::vector<IoRequest> requests(kDepth);
  std::vector<iovec> buffers(kDepth);
  std::vector<IoRequest*> batch;
  const uint64_t step =
      std::min<uint64_t>(kWriteBytes, memory.size() / kDepth / kPageBytes * kPageBytes);
  uint64_t offset = 0;
  while (offset < file.size_bytes) {
    if (stop.load(std::memory_order_relaxed)) return absl::CancelledError("interrupted");
    batch.clear();
    for (size_t i = 0; i < kDepth && offset < file.size_bytes; ++i) {
      const uint64_t length = std::min(step, file.size_bytes - offset);
      const absl::Span<std::byte> part = memory.subspan(i * step, length);
      FillRandom(part, seed + offset);
      buffers[i] = {part.data(), part.size()};
      requests[i].op = IoOp::kWrite;
      requests[i].offset = offset;
      requests[i].buffers = absl::MakeConstSpan(&buffers[i], 1);
      batch.push_back(&requests[i]);
      offset += length;
    }
    if (absl::Status status = RunBatch(*file.device, batch); !status.ok()) return status;
    progress(offset);
  }
  IoRequest sync;
  sync.op = IoOp::kSync;
  IoRequest* one = &sync;
  return RunBatch(*file.device, absl::MakeConstSpan(&one, 1));
}

std::optional<std::string> FindDeviceUser(absl::string_view device, absl::string_view mountinfo,
                                          const std::string& sysfs) {
  for (const Mount& mount : ParseMounts(mountinfo)) {
    if (mount.device == device) return absl::StrCat("mounted at ", mount.point);
  }
  const std::string folder = absl::StrCat(sysfs, "/dev/block/", device);
  std::error_code ignored;
  for (const auto& holder : std::filesystem::directory_iterator(folder + "/holders", ignored)) {
    return absl::StrCat("held by ", holder.path().filename().string());
  }
  for (const auto& entry : std::filesystem::directory_iterator(folder, ignored)) {
    const std::string name = entry.path().filename().string();
    if (!std::filesystem::exists(entry.path() / "partition", ignored)) continue;
    const std::string number = ReadText((entry.path() / "dev").string());
    const std::optional<std::string> user =
        FindDeviceUser(absl::StripAsciiWhitespace(number), mountinfo, sysfs);
    if (user.has_value()) return absl::StrCat("partition ", name, " is ", *user);
  }
  return std::nullopt;
}

}  // namespace terrace
