#ifndef TERRACE_TOOLS_SSD_REPORT_H_
#define TERRACE_TOOLS_SSD_REPORT_H_

#include <cstdint>
#include <string>
#include <vector>

#include "absl/time/time.h"
#include "io/block_device.h"
#include "io/device_profile.h"
#include "nlohmann/json_fwd.hpp"
#include "tools/ssd_workload.h"

namespace terrace {

// Everything that one `terrace ssd` found out.
struct SsdReport {
  std::vector<SsdRow> rows;
  DeviceInfo device;
  std::string source;      // what the file lies on, "/dev/nvme0n1p2"
  std::string filesystem;  // "ext4"
  std::string kernel;      // "Linux 6.18.0 x86_64"
  std::string warning;     // why the figures may mislead, or empty
  uint64_t size_bytes = 0;
  size_t planned_rows = 0;

  uint64_t errors() const;
  // Whether a signal ended it before all rows were complete.
  bool interrupted() const { return rows.size() < planned_rows; }
};

nlohmann::ordered_json SsdJson(const SsdReport& report);
// For people: where it was measured, the table, what weakens it, errors if any, and the advice.
std::string SsdText(const SsdReport& report);
// What it recommends for KV blocks, in words. Says what is missing when it measured too little.
std::string SsdAdvice(const DeviceProfile& profile);

DeviceProfile SsdProfile(const SsdReport& report);

}  // namespace terrace

#endif  // TERRACE_TOOLS_SSD_REPORT_H_
