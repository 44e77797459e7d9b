#ifndef TERRACE_BENCH_PEERS_REPORT_H_
#define TERRACE_BENCH_PEERS_REPORT_H_

#include <cstddef>
#include <string>
#include <vector>

#include "absl/types/span.h"
#include "bench/peers/runner.h"

namespace terrace::peers {

// Every round of one store.
struct StoreRounds {
  std::string name;
  std::vector<StoreResult> rounds;
  std::string error;  // of the round that failed; its store has no further ones
};

struct ReportInput {
  absl::Span<const Phase> phases;
  absl::Span<const StoreRounds> stores;
  size_t block_bytes = 0;
};

// Whether every block that any store served was right, and none was missing or failed.
bool AllVerified(absl::Span<const StoreRounds> stores);

// A row for each phase and store, medians over the rounds, and how the first store compares with
// the best of the others in each phase.
std::string FormatTable(const ReportInput& input);
std::string FormatJson(const ReportInput& input);

}  // namespace terrace::peers

#endif  // TERRACE_BENCH_PEERS_REPORT_H_
