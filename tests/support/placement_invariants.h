#ifndef TERRACE_TESTS_SUPPORT_PLACEMENT_INVARIANTS_H_
#define TERRACE_TESTS_SUPPORT_PLACEMENT_INVARIANTS_H_

#include <string>

#include "absl/types/span.h"
#include "tiers/placement.h"

namespace terrace {

// What is wrong with the book-keeping of `placement`, as a sentence; empty when every copy, slot,
// page, group and count agrees with every other. `ids`: all blocks it may know.
std::string FindInconsistency(Placement& placement, absl::Span<const BlockId> ids);

}  // namespace terrace

#endif  // TERRACE_TESTS_SUPPORT_PLACEMENT_INVARIANTS_H_
