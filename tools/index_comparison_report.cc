#include "tools/index_comparison_report.h"

#include <algorithm>
#include <cmath>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "nlohmann/json.hpp"
#include "tools/table.h"

namespace terrace {
namespace {

constexpr char kNever[] = "-";

bool Has(const SweepResult& result, const char* kind) {
  return std::any_of(result.indexes.begin(), result.indexes.end(),
                     [&](const IndexResult& index) { return index.kind == kind; });
}

nlohmann::ordered_json Json(const std::optional<RecallCost>& cost) {
  if (!cost.has_value()) return nullptr;
  return {{"index", cost->index},
          {"recall", cost->recall},
          {"scanned_share", cost->scanned_share},
          {"distances", cost->distances}};
}

std::string Distances(const std::optional<RecallCost>& cost) {
  return cost.has_value() ? FormatCount(static_cast<uint64_t>(std::llround(cost->distances)))
                          : kNever;
}

std::string Name(const std::optional<RecallCost>& cost) {
  return cost.has_value() ? cost->index : kNever;
}

// Whether queries are out of distribution, which only IVF tells.
std::string OutOfDistribution(const HeadComparison& head) {
  if (!head.ivf.has_value()) return kNever;
  return head.ivf->scanned_share >= kOutOfDistributionShare ? "yes" : "no";
}

}  // namespace

nlohmann::ordered_json ComparisonJson(const HeadComparison& comparison) {
  return {{"ivf", Json(comparison.ivf)},
          {"graph", Json(comparison.graph)},
          {"hnsw", Json(comparison.hnsw)}};
}

std::string ComparisonTable(const SweepResult& result) {
  if (!Has(result, "ivf") && !(Has(result, "graph") && Has(result, "hnsw"))) return "";
  Table table({{"head", Align::kLeft},
               {"IVF scans"},
               {"variant", Align::kLeft},
               {"out of distribution", Align::kLeft},
               {"graph recall"},
               {"scans"},
               {"distances"},
               {"HNSW distances"},
               {"variant", Align::kLeft},
               {"graph / HNSW"}});
  const std::vector<HeadComparison> heads = CompareOnHeads(result);
  for (size_t i = 0; i < heads.size(); ++i) {
    const HeadComparison& head = heads[i];
    table.AddRow({result.heads[i], head.ivf ? FormatPercent(head.ivf->scanned_share) : kNever,
                  Name(head.ivf), OutOfDistribution(head),
                  head.graph ? absl::StrFormat("%.3f", head.graph->recall) : kNever,
                  head.graph ? FormatPercent(head.graph->scanned_share) : kNever,
                  Distances(head.graph), Distances(head.hnsw), Name(head.hnsw),
                  head.hnsw ? absl::StrFormat("%.3f", head.graph->distances / head.hnsw->distances)
                            : kNever});
  }
  return absl::StrCat(
      "\nFor a recall of ", absl::StrFormat("%g", kTargetRecall), ", by the cheapest variants\n",
      table.ToString(), "Queries are out of distribution where IVF scans ",
      absl::StrFormat("%g", 100 * kOutOfDistributionShare),
      " % of the keys or more. Graph at its first effort\nwith the recall, HNSW at that of graph; "
      "IVF and HNSW between efforts, linear in recall; ",
      kNever, " where\nno effort that was tried has it.\n");
}

}  // namespace terrace
