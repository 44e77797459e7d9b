#ifndef TERRACE_TIERS_NVME_RECOVERY_H_
#define TERRACE_TIERS_NVME_RECOVERY_H_

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/types/span.h"
#include "io/io_request.h"
#include "tiers/placement.h"

namespace terrace {

// Rebuilds the directory of an NVMe tier from its group headers, newest copy of a block first
// served. Walks all segments at once, a batch of header reads a step; a segment ends at the first
// header that is torn, stale, unreadable or of another epoch. Block bytes are not read: their
// checksums are checked when they are fetched. `run` carries out a batch of reads and waits for it.
//
// REQUIRES: `placement` is fresh and has an NVMe tier. Errors are those of a `run`
// that did not get to try.
absl::Status RecoverNvme(absl::FunctionRef<absl::Status(absl::Span<IoRequest* const>)> run,
                         Placement& placement);

}  // namespace terrace

#endif  // TERRACE_TIERS_NVME_RECOVERY_H_
