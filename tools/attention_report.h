#ifndef TERRACE_TOOLS_ATTENTION_REPORT_H_
#define TERRACE_TOOLS_ATTENTION_REPORT_H_

#include <cstdint>
#include <optional>
#include <string>

#include "nlohmann/json_fwd.hpp"
#include "runtime/context_stats.h"
#include "runtime/runtime.h"

namespace terrace {

// The estimated share of attention that went to blocks which were left out; nullopt where the
// lookup cannot tell.
std::optional<double> MissedMass(const LookupStats& lookups);
// "1.25 %", or "-" where it is not known.
std::string MissedMassText(const LookupStats& lookups);

// blocks, hits by tier, fetched_bytes, lost_blocks, and missed_mass, which is null where unknown.
nlohmann::ordered_json LookupJson(const LookupStats& lookups);

// The tiers, and where the blocks that lookups wanted were found.
std::string TierTable(const TierStats& tiers, const LookupStats& lookups);

}  // namespace terrace

#endif  // TERRACE_TOOLS_ATTENTION_REPORT_H_
