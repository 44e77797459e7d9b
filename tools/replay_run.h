#ifndef TERRACE_TOOLS_REPLAY_RUN_H_
#define TERRACE_TOOLS_REPLAY_RUN_H_

#include <cstdint>
#include <string>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "tiers/tier_options.h"
#include "tools/replay.h"
#include "tools/replay_report.h"
#include "tools/trace.h"

namespace terrace {

// What the flags of `terrace replay` come to.
struct ReplaySetup {
  // The namespace that blocks are put in to be encrypted.
  static constexpr uint64_t kSpace = 1;

  TierManagerOptions tiers;
  ReplayOptions replay;
  TraceReadOptions trace;
  std::string trace_path;
  uint64_t tokens_per_block = 0;
  std::string model;       // for the report
  bool in_memory = false;  // the NVMe tier
  bool checksums = true;   // false only in memory
  std::string key_file;    // 32 bytes; empty: no encryption
  absl::Duration soak;     // zero: one pass
};

// Opens the tiers and replays the trace through them; with `soak`, again and again until the time
// is up, closing and reopening the tiers in between. Errors are those of the trace, the tiers, the
// log files and the key file.
absl::StatusOr<ReplayReport> RunReplay(const ReplaySetup& setup);

}  // namespace terrace

#endif  // TERRACE_TOOLS_REPLAY_RUN_H_
