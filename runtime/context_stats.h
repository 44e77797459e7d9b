#ifndef TERRACE_RUNTIME_CONTEXT_STATS_H_
#define TERRACE_RUNTIME_CONTEXT_STATS_H_

#include <array>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "runtime/lookup_policy.h"
#include "tiers/tier.h"

namespace terrace {

// Tokens [first, first + count) of one layer and KV head whose block the tiers had lost when a
// query wanted it. The engine may recompute them and bring them back by Context::Refill.
struct LostTokens {
  uint32_t layer = 0;
  uint32_t kv_head = 0;
  int64_t first = 0;
  int64_t count = 0;

  friend bool operator==(const LostTokens&, const LostTokens&) = default;
};

// What the KV heads of one layer that have one kind of lookup did.
struct LookupStats {
  uint64_t blocks = 0;                         // attended to
  uint64_t lost_blocks = 0;                    // wanted, and not there
  uint64_t late_blocks = 0;                    // cluster: wanted, not there in time, and estimated
  uint64_t tokens = 0;                         // graph, cluster: attended to one by one
  std::array<uint64_t, kTierCount> hits = {};  // blocks, by the tier that they were found in
  uint64_t fetched_bytes = 0;                  // of blocks that were found on NVMe
  // An estimate of the share of attention that went to blocks which were left out, summed over
  // query heads and positions, and how many these were; of calls with few positions only. infllm
  // counts each block by its strongest representative, quest by the upper bound of its strongest
  // key, cluster what it estimated. full misses nothing, streaming and graph cannot tell, so they
  // do not count.
  double missed_mass = 0;
  uint64_t missed_mass_queries = 0;

  LookupStats& operator+=(const LookupStats& other);
};

// What attention in one layer did so far.
struct LayerStats {
  uint64_t calls = 0;
  uint64_t queries = 0;       // positions
  uint64_t local_tokens = 0;  // sinks and window, of each KV head and call
  double index_seconds = 0;   // to index what had been sealed
  double lookup_seconds = 0;
  double wait_seconds = 0;  // for blocks, when nothing else was left to do
  double attend_seconds = 0;
  std::array<LookupStats, kLookupKinds> lookups = {};  // by LookupKind

  LayerStats& operator+=(const LayerStats& other);
  LookupStats AllLookups() const;
};

struct ContextStats {
  std::vector<LayerStats> layers;
  uint64_t appended_tokens = 0;  // of all layers together
  uint64_t sealed_blocks = 0;
  uint64_t shared_blocks = 0;  // that another context had sealed
  uint64_t prefix_tokens = 0;  // that the context began with
  uint64_t parks = 0;
  uint64_t index_refusals = 0;  // times that tokens were not indexed for want of room

  // The sum over the layers.
  LayerStats Total() const;
};

}  // namespace terrace

#endif  // TERRACE_RUNTIME_CONTEXT_STATS_H_
