#ifndef TERRACE_TOOLS_INDEX_COMPARISON_REPORT_H_
#define TERRACE_TOOLS_INDEX_COMPARISON_REPORT_H_

#include <string>
#include <vector>

#include "nlohmann/json_fwd.hpp"
#include "tools/index_eval/index_comparison.h"

namespace terrace {

// ivf, graph and hnsw, each {index, recall, scanned_share, distances} or null.
nlohmann::ordered_json ComparisonJson(const HeadComparison& comparison);
// A line for each head of whether its queries are out of distribution, and what graph and HNSW need
// for the same recall; empty if `result` has neither IVF nor both of the others.
std::string ComparisonTable(const SweepResult& result);

}  // namespace terrace

#endif  // TERRACE_TOOLS_INDEX_COMPARISON_REPORT_H_
