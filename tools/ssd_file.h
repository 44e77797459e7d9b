#ifndef TERRACE_TOOLS_SSD_FILE_H_
#define TERRACE_TOOLS_SSD_FILE_H_

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "io/block_device.h"

namespace terrace {

struct SsdFileOptions {
  std::string dir;   // make a file in this directory, or
  std::string file;  // use this existing file or block device
  // Of the file to make; of an existing one, the part to use, 0 for all of it.
  uint64_t size_bytes = 0;
  bool writes = false;  // whether the run writes to it
  bool force = false;   // write even to what is not ours
  IoEngine engine = IoEngine::kAuto;
  size_t depth = 64;
};

// What the benchmark runs on.
struct SsdFile {
  std::unique_ptr<BlockDevice> device;
  uint64_t size_bytes = 0;  // that may be used, from the start of the device
  bool owned = false;       // made by us, so it must be filled before it is read
  std::string source;       // what the filesystem lies on, as in /proc/self/mountinfo
  std::string filesystem;   // "ext4", or "none" on a block device
  std::string warning;      // why the figures may mislead, or empty
};

// Opens what the options name. A file made here has all its space reserved and no name any more
// when this returns, so that it is gone however the program ends. kPermissionDenied for writing to
// an existing file or a block device in use without `force`; kResourceExhausted with needed and
// available bytes when the disk is too full; else as OpenFileDevice.
absl::StatusOr<SsdFile> OpenSsdFile(const SsdFileOptions& options);

// Writes incompressible bytes over the whole size and syncs. `memory` is the buffer to use, page
// aligned. kCancelled once `stop` is set; `progress` is called now and then with the bytes written.
absl::Status FillSsdFile(SsdFile& file, absl::Span<std::byte> memory, uint64_t seed,
                         const std::atomic<bool>& stop,
                         const std::function<void(uint64_t bytes)>& progress);

// Who uses the block device `device` ("259:0"): a phrase that names the mount point, the partition
// or the holder, or nothing. `mountinfo` is the text of /proc/self/mountinfo, `sysfs` is /sys.
std::optional<std::string> FindDeviceUser(absl::string_view device, absl::string_view mountinfo,
                                          const std::string& sysfs);

}  // namespace terrace

#endif  // TERRACE_TOOLS_SSD_FILE_H_
