#ifndef TERRACE_TOOLS_WEIGHTS_REPORT_H_
#define TERRACE_TOOLS_WEIGHTS_REPORT_H_

#include <string>

#include "nlohmann/json_fwd.hpp"
#include "tools/eval_run.h"

namespace terrace {

// What paging the weights did to the perplexity, by predictor; empty where none was measured.
std::string WeightsTable(const EvalReport& report);
nlohmann::ordered_json WeightsJson(const EvalReport& report);

}  // namespace terrace

#endif  // TERRACE_TOOLS_WEIGHTS_REPORT_H_
