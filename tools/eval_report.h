#ifndef TERRACE_TOOLS_EVAL_REPORT_H_
#define TERRACE_TOOLS_EVAL_REPORT_H_

#include <string>

#include "nlohmann/json_fwd.hpp"
#include "tools/eval_run.h"

namespace terrace {

// The tables that people read: perplexities, a grid of needles for each policy, and totals.
std::string EvalText(const EvalReport& report);
nlohmann::ordered_json EvalJson(const EvalReport& report);

}  // namespace terrace

#endif  // TERRACE_TOOLS_EVAL_REPORT_H_
