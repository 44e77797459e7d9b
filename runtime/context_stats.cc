#include "runtime/context_stats.h"

namespace terrace {

LookupStats& LookupStats::operator+=(const LookupStats& other) {
  blocks += other.blocks;
  lost_blocks += other.lost_blocks;
  late_blocks += other.late_blocks;
  tokens += other.tokens;
  for (size_t tier = 0; tier < kTierCount; ++tier) hits[tier] += other.hits[tier];
  fetched_bytes += other.fetched_bytes;
  missed_mass += other.missed_mass;
  missed_mass_queries += other.missed_mass_queries;
  return *this;
}

LayerStats& LayerStats::operator+=(const LayerStats& other) {
  calls += other.calls;
  queries += other.queries;
  local_tokens += other.local_tokens;
  index_seconds += other.index_seconds;
  lookup_seconds += other.lookup_seconds;
  wait_seconds += other.wait_seconds;
  attend_seconds += other.attend_seconds;
  for (size_t kind = 0; kind < kLookupKinds; ++kind) lookups[kind] += other.lookups[kind];
  return *this;
}

LookupStats LayerStats::AllLookups() const {
  LookupStats all;
  for (const LookupStats& lookup : lookups) all += lookup;
  return all;
}

LayerStats ContextStats::Total() const {
  LayerStats total;
  for (const LayerStats& layer : layers) total += layer;
  return total;
}

}  // namespace terrace
