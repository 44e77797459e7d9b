#ifndef TERRACE_TOOLS_INDEX_EVAL_INDEX_SWEEP_H_
#define TERRACE_TOOLS_INDEX_EVAL_INDEX_SWEEP_H_

#include <atomic>
#include <cstddef>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "index/key_index.h"
#include "index/segment_clusters.h"
#include "tools/index_eval/cluster_attention.h"
#include "tools/index_eval/exact_reference.h"

namespace terrace {

// A kind of index with some options.
struct IndexKind {
  std::string name;  // of this variant
  std::string kind;  // "ivf", as on the command line
  std::function<absl::StatusOr<std::unique_ptr<KeyIndex>>()> make;
  // Where its attention at a budget is measured too: of "cluster".
  std::optional<ClusteringOptions> clustering;
};

struct SweepOptions {
  size_t k = 100;
  size_t threads = 0;           // of Build; 0 for as many as processors
  std::vector<size_t> efforts;  // empty: those of KeyIndex::Efforts
  // An index is tried with no more effort once it has this recall on every head.
  double enough_recall = 1;
};

struct Latency {
  double p50_us = 0;
  double p99_us = 0;
};

// One index with one effort, over all heads.
struct EffortResult {
  size_t effort = 0;
  std::vector<FoundFigures> heads;
  Latency group_search;  // all rows of a group in one search, by one thread
};

struct IndexResult {
  std::string name;
  std::string kind;
  std::vector<double> build_seconds;  // [heads]
  std::vector<double> bytes_per_key;  // [heads], beyond the keys
  std::vector<EffortResult> efforts;
  std::vector<ClusterAttention> attention;  // [heads], or empty
};

struct SweepResult {
  size_t k = 0;
  size_t threads = 0;
  std::vector<std::string> heads;  // their names
  std::vector<size_t> head_keys;   // [heads]
  size_t head_dim = 0;
  size_t group = 0;
  size_t steps = 0;
  size_t samples = 0;
  std::vector<double> best_masses;  // [heads], of ExactReference
  // Exact scans by one thread, the group in one pass, and row by row.
  Latency scan_group;
  Latency scan_rows;
  std::vector<IndexResult> indexes;
};

// Builds each kind of index on every head and searches with each effort. Searches take the heads in
// turn, step by step, so that with several heads no cache holds them. `progress` gets one line at a
// time. kCancelled once `stop` is set; errors of the indexes, naming index and head.
// REQUIRES: heads of one shape.
absl::StatusOr<SweepResult> RunIndexSweep(absl::Span<const EvalHead> heads,
                                          absl::Span<const IndexKind> kinds,
                                          const SweepOptions& options,
                                          const std::atomic<bool>& stop,
                                          absl::FunctionRef<void(absl::string_view)> progress);

}  // namespace terrace

#endif  // TERRACE_TOOLS_INDEX_EVAL_INDEX_SWEEP_H_
