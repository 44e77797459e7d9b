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

// What the indexes of policies graph and cluster took.
struct IndexCost {
  double seconds = 0;     // to build them
  uint64_t bytes = 0;     // of memory, at most
  uint64_t refusals = 0;  // times that tokens were not indexed, and attended to exactly instead

  // Adds what a context did. The bytes are those of all contexts together; the larger ones stay.
  void Add(const ContextStats& context, uint64_t index_bytes);
  IndexCost& operator+=(const IndexCost& other);
};

// Adds index_seconds, index_bytes and index_refusals.
void AddIndexJson(const IndexCost& index, nlohmann::ordered_json& json);

// blocks, late_blocks, tokens, hits by tier, fetched_bytes, lost_blocks, and missed_mass, which is
// null where unknown.
nlohmann::ordered_json LookupJson(const LookupStats& lookups);

// The tiers, and where the blocks that lookups wanted were found.
std::string TierTable(const TierStats& tiers, const LookupStats& lookups);

}  // namespace terrace

#endif  // TERRACE_TOOLS_ATTENTION_REPORT_H_
