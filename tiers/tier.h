#ifndef TERRACE_TIERS_TIER_H_
#define TERRACE_TIERS_TIER_H_

#include <cstddef>
#include <cstdint>

namespace terrace {

// The tiers that a block counts in, fastest first.
enum class Tier : uint8_t { kHbm, kDram, kNvme };
inline constexpr size_t kTierCount = 3;

constexpr const char* TierName(Tier tier) {
  switch (tier) {
    case Tier::kHbm:
      return "HBM";
    case Tier::kDram:
      return "DRAM";
    case Tier::kNvme:
      return "NVMe";
  }
  return "?";
}

// What the manager may do with a block when room is short.
enum class Retention : uint8_t {
  kCached,  // may be evicted; absence is a miss
  kOwned,   // part of a live or saved context: never evicted from the last tier that has it
};

// Memory that holds block-sized slots. Transit slots are the fixed staging pool: they carry blocks
// on their way between tiers, stand in for DRAM where that tier has no capacity, and count as no
// tier.
enum class Pool : uint8_t { kHbm, kDram, kTransit };
inline constexpr size_t kPoolCount = 3;

enum class SlotIndex : uint32_t {};
inline constexpr SlotIndex kNoSlot{UINT32_MAX};

// A slot of a pool.
struct Place {
  Pool pool = Pool::kTransit;
  SlotIndex slot = kNoSlot;

  friend bool operator==(const Place&, const Place&) = default;
};

}  // namespace terrace

#endif  // TERRACE_TIERS_TIER_H_
