#include "tools/index_eval/index_comparison.h"

#include <utility>

#include "absl/strings/string_view.h"

namespace terrace {
namespace {

// What `index` needs on a head for this recall, by the first effort that reaches it and the one
// before; just that effort unless `interpolate`.
std::optional<RecallCost> CostOf(const IndexResult& index, size_t head, double recall,
                                 bool interpolate) {
  const FoundFigures* before = nullptr;
  for (const EffortResult& effort : index.efforts) {
    const FoundFigures& now = effort.heads[head];
    if (now.recall < recall) {
      before = &now;
      continue;
    }
    RecallCost cost = {index.name, now.recall, now.scanned_share, now.distances};
    if (interpolate && before != nullptr) {
      const double part = (recall - before->recall) / (now.recall - before->recall);
      const auto between = [&](double a, double b) { return a + part * (b - a); };
      cost.recall = recall;
      cost.scanned_share = between(before->scanned_share, now.scanned_share);
      cost.distances = between(before->distances, now.distances);
    }
    return cost;
  }
  return std::nullopt;
}

// The cheapest of all variants of a kind.
std::optional<RecallCost> Cheapest(const SweepResult& result, absl::string_view kind, size_t head,
                                   double recall, bool interpolate, double RecallCost::*price) {
  std::optional<RecallCost> cheapest;
  for (const IndexResult& index : result.indexes) {
    if (index.kind != kind) continue;
    std::optional<RecallCost> cost = CostOf(index, head, recall, interpolate);
    if (cost.has_value() && (!cheapest.has_value() || (*cost).*price < (*cheapest).*price)) {
      cheapest = std::move(cost);
    }
  }
  return cheapest;
}

}  // namespace

std::vector<HeadComparison> CompareOnHeads(const SweepResult& result) {
  std::vector<HeadComparison> comparisons;
  for (size_t head = 0; head < result.heads.size(); ++head) {
    HeadComparison comparison;
    comparison.ivf = Cheapest(result, "ivf", head, kTargetRecall, true, &RecallCost::scanned_share);
    comparison.graph =
        Cheapest(result, "graph", head, kTargetRecall, false, &RecallCost::distances);
    if (comparison.graph.has_value()) {
      comparison.hnsw =
          Cheapest(result, "hnsw", head, comparison.graph->recall, true, &RecallCost::distances);
    }
    comparisons.push_back(std::move(comparison));
  }
  return comparisons;
}

}  // namespace terrace
