#ifndef TERRACE_TOOLS_REPLAY_REPORT_H_
#define TERRACE_TOOLS_REPLAY_REPORT_H_

#include <cstdint>
#include <string>

#include "nlohmann/json_fwd.hpp"
#include "tiers/tier_options.h"
#include "tools/replay.h"

namespace terrace {

// What the kernel counted for this process (/proc/self/io, /proc/self/status); 0 where it does not
// say.
struct ProcessUsage {
  uint64_t read_bytes = 0;   // from storage
  uint64_t write_bytes = 0;  // to storage
  uint64_t peak_memory_bytes = 0;
  double cpu_seconds = 0;  // of all threads, kernel included

  static ProcessUsage Now();
};

struct ReplayReport {
  ReplayResult result;
  TierStats tiers;
  ProcessUsage usage;  // of the replay alone, but for the peak
  uint64_t skipped_lines = 0;
  TierManagerOptions options;  // what the tiers were opened with
  uint64_t tokens_per_block = 0;
  std::string model;  // "llama-3.1-8b at scale 1/1024", or empty
  // With --soak, after the first pass. `tiers` are those of the last pass.
  struct Soak {
    uint64_t passes = 0;          // 0 without --soak
    uint64_t lost_blocks = 0;     // in all passes
    uint64_t missing_blocks = 0;  // held by NVMe before a reopening and not after it
    double slowest_open_seconds = 0;
  } soak;
};

nlohmann::ordered_json ReplayJson(const ReplayReport& report);
// The table that people read, and one sentence that says what it means.
std::string ReplayText(const ReplayReport& report);

// One line for a terminal: requests done, hits by tier, GB/s, time left.
std::string ReplayProgressText(const ReplayResult& so_far, uint64_t total_requests,
                               uint64_t block_bytes);

}  // namespace terrace

#endif  // TERRACE_TOOLS_REPLAY_REPORT_H_
