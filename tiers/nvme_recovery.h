#ifndef TERRACE_TIERS_NVME_RECOVERY_H_
#define TERRACE_TIERS_NVME_RECOVERY_H_

#include <cstdint>

#include "absl/functional/function_ref.h"
#include "absl/status/statusor.h"
#include "tiers/nvme_survey.h"
#include "tiers/placement.h"

namespace terrace {

// What reopening a tier found.
struct RecoveryReport {
  uint64_t blocks = 0;
  uint64_t sealed_segments = 0;    // taken from their footers
  uint64_t unsealed_segments = 0;  // walked, group by group
  uint64_t torn_groups = 0;        // not promised by any Flush, and not whole
  uint64_t damaged_pages = 0;      // promised, and of no group that could be read
  uint64_t damaged_manifests = 0;  // copies of a segment's record; the other one served, if whole
  uint64_t verified_bytes = 0;     // of groups that might have been torn
  uint64_t missing_bytes = 0;      // the file had been cut short; set by the manager
  double seconds = 0;
};

// Rebuilds the directory of an NVMe tier: reads the manifest and the footers, walks the segments
// that have none, and takes the newest copy of each block. Block bytes that were synced are not
// read: their checksums are checked when they are fetched.
//
// REQUIRES: `placement` is fresh and has an NVMe tier. Errors are those of reads that were not
// tried, or kResourceExhausted for memory.
absl::StatusOr<RecoveryReport> RecoverNvme(NvmeReader& reader,
                                           absl::FunctionRef<KeyNumber(const KeyName&)> key_index,
                                           Placement& placement);

}  // namespace terrace

#endif  // TERRACE_TIERS_NVME_RECOVERY_H_
