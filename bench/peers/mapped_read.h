#ifndef TERRACE_BENCH_PEERS_MAPPED_READ_H_
#define TERRACE_BENCH_PEERS_MAPPED_READ_H_

#include <cstddef>
#include <vector>

#include "absl/types/span.h"

namespace terrace::peers {

// Brings parts of mapped files into memory, all at once: starts the reads of every part, then waits
// for each and maps its pages. Empty parts are skipped. Both are hints: a part that the kernel does
// not bring in is read by the page faults of whoever touches it. Thread-safe.
void ReadMapped(absl::Span<const absl::Span<const std::byte>> parts);

}  // namespace terrace::peers

#endif  // TERRACE_BENCH_PEERS_MAPPED_READ_H_
