#ifndef TERRACE_TOOLS_PACK_REPORT_H_
#define TERRACE_TOOLS_PACK_REPORT_H_

#include <string>

#include "nlohmann/json_fwd.hpp"
#include "tools/pack_run.h"

namespace terrace {

// For people.
std::string PackText(const PackReport& report);
// For machines.
nlohmann::ordered_json PackJson(const PackReport& report);

}  // namespace terrace

#endif  // TERRACE_TOOLS_PACK_REPORT_H_
