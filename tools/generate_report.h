#ifndef TERRACE_TOOLS_GENERATE_REPORT_H_
#define TERRACE_TOOLS_GENERATE_REPORT_H_

#include <string>

#include "nlohmann/json_fwd.hpp"
#include "tools/generate_run.h"

namespace terrace {

// The table that people read below the text.
std::string GenerateText(const GenerateReport& report);
nlohmann::ordered_json GenerateJson(const GenerateReport& report);

}  // namespace terrace

#endif  // TERRACE_TOOLS_GENERATE_REPORT_H_
