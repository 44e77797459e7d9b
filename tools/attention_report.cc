#include "tools/attention_report.h"

#include <algorithm>

#include "nlohmann/json.hpp"
#include "tools/byte_size.h"
#include "tools/table.h"

namespace terrace {
namespace {

constexpr Tier kTiers[] = {Tier::kHbm, Tier::kDram, Tier::kNvme};

double Share(uint64_t part, uint64_t whole) {
  return whole == 0 ? 0 : static_cast<double>(part) / static_cast<double>(whole);
}

}  // namespace

std::optional<double> MissedMass(const LookupStats& lookups) {
  if (lookups.missed_mass_queries == 0) return std::nullopt;
  return lookups.missed_mass / static_cast<double>(lookups.missed_mass_queries);
}

std::string MissedMassText(const LookupStats& lookups) {
  const std::optional<double> missed = MissedMass(lookups);
  return missed.has_value() ? FormatPercent(*missed) : "-";
}

void IndexCost::Add(const ContextStats& context, uint64_t index_bytes) {
  *this += {.seconds = context.Total().index_seconds,
            .bytes = index_bytes,
            .refusals = context.index_refusals};
}

IndexCost& IndexCost::operator+=(const IndexCost& other) {
  seconds += other.seconds;
  bytes = std::max(bytes, other.bytes);
  refusals += other.refusals;
  return *this;
}

void AddIndexJson(const IndexCost& index, nlohmann::ordered_json& json) {
  json["index_seconds"] = index.seconds;
  json["index_bytes"] = index.bytes;
  json["index_refusals"] = index.refusals;
}

nlohmann::ordered_json LookupJson(const LookupStats& lookups) {
  const std::optional<double> missed = MissedMass(lookups);
  nlohmann::ordered_json json;
  json["blocks"] = lookups.blocks;
  json["late_blocks"] = lookups.late_blocks;
  json["tokens"] = lookups.tokens;
  json["hits"] = {{"hbm", lookups.hits[static_cast<size_t>(Tier::kHbm)]},
                  {"dram", lookups.hits[static_cast<size_t>(Tier::kDram)]},
                  {"nvme", lookups.hits[static_cast<size_t>(Tier::kNvme)]}};
  json["fetched_bytes"] = lookups.fetched_bytes;
  json["lost_blocks"] = lookups.lost_blocks;
  json["missed_mass"] = missed.has_value() ? nlohmann::ordered_json(*missed) : nullptr;
  return json;
}

std::string TierTable(const TierStats& tiers, const LookupStats& lookups) {
  Table table({{"tier", Align::kLeft}, {"capacity"}, {"blocks held"}, {"hits"}, {"hit rate"}});
  const uint64_t wanted = lookups.blocks + lookups.lost_blocks;
  for (const Tier tier : kTiers) {
    const TierStats::PerTier& stats = tiers.tiers[static_cast<size_t>(tier)];
    const uint64_t hits = lookups.hits[static_cast<size_t>(tier)];
    table.AddRow({TierName(tier), FormatByteSize(stats.capacity_bytes), FormatCount(stats.blocks),
                  FormatCount(hits), FormatPercent(Share(hits, wanted))});
  }
  return table.ToString();
}

}  // namespace terrace
