#ifndef TERRACE_IO_DEVICE_PROFILE_H_
#define TERRACE_IO_DEVICE_PROFILE_H_

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace terrace {

// What `terrace ssd` measured of one device, and what follows from it. A profile without rows is
// one of a device that nobody measured: its advice is conservative. Thread-compatible.
struct DeviceProfile {
  // One measurement: one kind of request, size and depth.
  struct Row {
    std::string op;  // "randread", "seqread", "randwrite", "seqwrite", or "mixed:70"
    uint64_t block_bytes = 0;
    size_t depth = 0;  // requests in flight
    double bytes_per_second = 0;
    double iops = 0;  // requests a second
    double p50_us = 0;
    double p99_us = 0;
    double p999_us = 0;
  };

  static constexpr uint64_t kDefaultGapBytes = uint64_t{16} << 10;
  static constexpr uint64_t kMaxGapBytes = uint64_t{128} << 10;
  static constexpr size_t kDefaultDepth = 64;
  static constexpr uint64_t kDefaultRequestBytes = uint64_t{128} << 10;

  std::string device;
  std::vector<Row> rows;

  // The most bytes between two wanted ranges that are cheaper to read along than to leave out with
  // a second request; a multiple of 4 KiB, at most kMaxGapBytes. It is a * b of the least squares
  // fit "seconds a request = a + bytes / b" through the best random reads of each block size.
  // kDefaultGapBytes when fewer than two block sizes were measured.
  uint64_t CoalescingGapBytes() const;

  // The smallest depth that reaches 95 % of the best random read bandwidth with blocks of this
  // size, or of the measured size nearest to it. kDefaultDepth when none was measured.
  size_t AdvisedDepth(uint64_t block_bytes) const;

  // The smallest block size that reaches 90 % of the best random read bandwidth.
  // kDefaultRequestBytes when none was measured.
  uint64_t AdvisedRequestBytes() const;

  // The best random read bandwidth in bytes a second; 0 when none was measured.
  double BestReadBytesPerSecond() const;
};

// Reads a profile that WriteDeviceProfile wrote. kNotFound without such a file; kInvalidArgument
// naming the file and the field when its content is bad.
absl::StatusOr<DeviceProfile> ReadDeviceProfile(const std::string& path);

// Replaces the file at `path` by an atomic rename, so that a reader sees the old or the new one.
// Errors name the path and the errno text.
absl::Status WriteDeviceProfile(const DeviceProfile& profile, const std::string& path);

}  // namespace terrace

#endif  // TERRACE_IO_DEVICE_PROFILE_H_
