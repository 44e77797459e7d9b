#ifndef TERRACE_TOOLS_HEAD_PROFILE_REPORT_H_
#define TERRACE_TOOLS_HEAD_PROFILE_REPORT_H_

#include <string>

#include "runtime/head_profile.h"

namespace terrace {

// What people read: the heads, the one that needs least first, and what share of heads would stream
// up to each.
std::string HeadProfileTable(const HeadProfile& profile);

}  // namespace terrace

#endif  // TERRACE_TOOLS_HEAD_PROFILE_REPORT_H_
