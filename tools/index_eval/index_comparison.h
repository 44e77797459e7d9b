#ifndef TERRACE_TOOLS_INDEX_EVAL_INDEX_COMPARISON_H_
#define TERRACE_TOOLS_INDEX_EVAL_INDEX_COMPARISON_H_

#include <optional>
#include <string>
#include <vector>

#include "tools/index_eval/index_sweep.h"

namespace terrace {

// The recall at which indexes are compared.
inline constexpr double kTargetRecall = 0.95;
// Queries are out of the distribution of the keys if IVF, however it is tuned, must scan so many of
// the keys for kTargetRecall. RetrievalAttention (arXiv 2409.10516, section 2) finds 0.3 to 0.5 for
// queries of models, and 0.01 to 0.05 where keys are searched for instead.
inline constexpr double kOutOfDistributionShare = 0.2;

// What one index needs for a recall on one head.
struct RecallCost {
  std::string index;
  double recall = 0;
  double scanned_share = 0;
  double distances = 0;
};

// The cheapest variants of each kind on one head; nullopt where none reached the recall, with the
// efforts that were tried.
struct HeadComparison {
  // The variant that scans least for kTargetRecall, at the recall itself: between efforts, costs
  // are interpolated by recall.
  std::optional<RecallCost> ivf;
  // The variant and effort with the fewest distances of those that reach kTargetRecall.
  std::optional<RecallCost> graph;
  // The variant with the fewest distances for as much recall as that of `graph`, interpolated.
  std::optional<RecallCost> hnsw;
};

// [heads]
std::vector<HeadComparison> CompareOnHeads(const SweepResult& result);

}  // namespace terrace

#endif  // TERRACE_TOOLS_INDEX_EVAL_INDEX_COMPARISON_H_
