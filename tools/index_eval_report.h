#ifndef TERRACE_TOOLS_INDEX_EVAL_REPORT_H_
#define TERRACE_TOOLS_INDEX_EVAL_REPORT_H_

#include <string>
#include <vector>

#include "nlohmann/json_fwd.hpp"
#include "tools/index_eval/index_sweep.h"

namespace terrace {

// How a figure is spread over heads.
struct Distribution {
  double min = 0;
  double median = 0;
  double max = 0;

  // REQUIRES: at least one value.
  static Distribution Of(std::vector<double> values);
  static Distribution Of(const EffortResult& result, double FoundFigures::*figure);
};

nlohmann::ordered_json DistributionJson(const Distribution& distribution);
nlohmann::ordered_json IndexEvalJson(const SweepResult& result);
// Tables for people; with `per_head` also one line for each head, index and effort.
std::string IndexEvalText(const SweepResult& result, bool per_head);

}  // namespace terrace

#endif  // TERRACE_TOOLS_INDEX_EVAL_REPORT_H_
