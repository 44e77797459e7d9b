#ifndef TERRACE_TIERS_EVICTION_POLICY_H_
#define TERRACE_TIERS_EVICTION_POLICY_H_

#include <cstddef>
#include <memory>

#include "absl/functional/function_ref.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "tiers/block_id.h"
#include "tiers/tier.h"

namespace terrace {

// Ranks the occupied slots of one tier by how little their loss would hurt. The manager decides
// what may go (pins, retention, copies below); the policy only says in which order to ask. Its
// answers depend on the calls alone, never on time, so that a replay gives the same hits on every
// machine.
//
// Thread-compatible; the manager calls it under its lock, so every call is short and none
// allocates.
class EvictionPolicy {
 public:
  virtual ~EvictionPolicy() = default;

  // `slot` now holds `id` and was just used. REQUIRES: not tracked.
  virtual void Insert(SlotIndex slot, const BlockId& id) = 0;
  // The block in `slot` was used. REQUIRES: tracked.
  virtual void Touch(SlotIndex slot) = 0;
  // Losing `slot` costs nothing any more: it becomes the first victim. REQUIRES: tracked.
  virtual void MakeColdest(SlotIndex slot) = 0;
  // `slot` leaves the ranking. REQUIRES: tracked.
  virtual void Remove(SlotIndex slot) = 0;
  // Calls `visit` on tracked slots, coldest first, until it returns false. `visit` must not call
  // the policy.
  virtual void VisitColdest(absl::FunctionRef<bool(SlotIndex)> visit) const = 0;
};

// A policy by name ("lru") for a tier of `slots` slots; kInvalidArgument names the known ones.
absl::StatusOr<std::unique_ptr<EvictionPolicy>> MakeEvictionPolicy(absl::string_view name,
                                                                   size_t slots);

}  // namespace terrace

#endif  // TERRACE_TIERS_EVICTION_POLICY_H_
