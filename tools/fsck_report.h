#ifndef TERRACE_TOOLS_FSCK_REPORT_H_
#define TERRACE_TOOLS_FSCK_REPORT_H_

#include <optional>
#include <string>

#include "nlohmann/json_fwd.hpp"
#include "tiers/nvme_check.h"

namespace terrace {

struct FsckReport {
  std::string path;
  CheckReport found;
  std::optional<CheckReport> after;  // once it was repaired
  double seconds = 0;

  // The state that the tier is in now.
  const CheckReport& last() const { return after ? *after : found; }
  bool clean() const { return last().clean(); }
};

nlohmann::ordered_json FsckJson(const FsckReport& report);
// What people read: the tier, the damage, and one sentence that says what it means.
std::string FsckText(const FsckReport& report);

// "00000000000000010000000000000002": high half first.
std::string FormatBlockId(const BlockId& id);

// One line for a terminal.
std::string FsckProgressText(const CheckProgress& progress);

}  // namespace terrace

#endif  // TERRACE_TOOLS_FSCK_REPORT_H_
