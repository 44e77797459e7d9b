#ifndef TERRACE_IO_DEVICE_FILE_H_
#define TERRACE_IO_DEVICE_FILE_H_

#include <cstdint>
#include <string>

#include "absl/status/status.h"
#include "absl/types/span.h"
#include "io/stripe_layout.h"
#include "io/unique_fd.h"

namespace terrace {

// One file of a device that is open: what the engines keep of it. Constant after the device was
// made, and then thread-safe.
struct DeviceFile {
  std::string path;
  UniqueFd fd;
  bool regular = false;  // else a block device
  // What tells two files apart, as in OpenedFile.
  uint64_t volume = 0;
  uint64_t number = 0;
  uint64_t needed_bytes = 0;  // the size that a regular file must keep
};

// BlockDevice::CheckFile for a device of these files.
absl::Status CheckFiles(absl::Span<const DeviceFile> files);

// BlockDevice::Discard for a device of these files. REQUIRES: the range lies on whole pages within
// the device.
absl::Status DiscardRange(absl::Span<const DeviceFile> files, const StripeLayout& layout,
                          uint64_t offset, uint64_t bytes);

}  // namespace terrace

#endif  // TERRACE_IO_DEVICE_FILE_H_
