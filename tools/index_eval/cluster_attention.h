#ifndef TERRACE_TOOLS_INDEX_EVAL_CLUSTER_ATTENTION_H_
#define TERRACE_TOOLS_INDEX_EVAL_CLUSTER_ATTENTION_H_

#include <cstddef>
#include <vector>

#include "absl/status/statusor.h"
#include "index/compute_pool.h"
#include "index/segment_clusters.h"
#include "tools/index_eval/eval_heads.h"

namespace terrace {

// The shares of the keys that attention over clusters may read.
inline constexpr double kReadShares[] = {0.01, 0.02, 0.03, 0.05};

// Attention of one head that reads some of its keys, as means over steps, or over queries for
// errors.
struct ReadFigures {
  double read_share = 0;      // of the keys, read
  double mass = 0;            // attention mass of the keys read, the mean over the group
  double mass_of_oracle = 0;  // the same, of that of the best keys of the group
  double error = 0;           // of the output with the rest estimated, relative, Euclidean
  double error_without = 0;   // of the output without the rest
};

// The figures at one budget, by what the keys to read are chosen as.
struct BudgetFigures {
  double share = 0;            // of the keys, at most to be read
  ReadFigures whole_clusters;  // by ClusterTable::Rank
  ReadFigures single_keys;     // by ClusterTable::RankKeys
};

struct ClusterAttention {
  double build_seconds = 0;
  double bytes_per_key = 0;
  double kv_share = 0;                 // of the bytes of keys and values
  std::vector<BudgetFigures> budgets;  // for each of kReadShares
};

// Decodes the steps of a head with a ClusterTable of its keys and values (RetroInfer, arXiv
// 2505.02922, section 4): reads the clusters, or the keys, that rank highest, estimates the others,
// and compares with attention over all keys. Last keys that fill no cluster are always read, and
// count as read. All heads of the group read the same keys, so the oracle is the best set of keys
// by the sum of the group's attention: as many as the budget allows, or as are read if these are
// more, as where a cluster is larger than the budget.
//
// Errors of ClusterTable::Create and Add, and of AttentionAccumulator::Create.
absl::StatusOr<ClusterAttention> MeasureClusterAttention(const EvalHead& head,
                                                         const ClusteringOptions& options,
                                                         ComputePool& pool);

}  // namespace terrace

#endif  // TERRACE_TOOLS_INDEX_EVAL_CLUSTER_ATTENTION_H_
