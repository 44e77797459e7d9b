#ifndef TERRACE_TIERS_COPY_STATE_H_
#define TERRACE_TIERS_COPY_STATE_H_

#include <cstddef>
#include <cstdint>

#include "io/check.h"

namespace terrace {

// The state of one copy of a block: of a slot in a memory pool, or of a block's place on NVMe.
enum class CopyState : uint8_t {
  kEmpty,     // no copy here
  kFilling,   // the place is reserved and its bytes are on the way
  kResident,  // the bytes are here and immutable
  kFailed,    // the bytes could not be had; kept only until the last waiter has seen it
};

// Every legal transition, for all tiers.
//
//   from \ to    kEmpty            kFilling  kResident  kFailed
//   kEmpty       -                 reserve   recover    -
//   kFilling     fail, nobody      -         land       fail, somebody
//                waits                                  waits
//   kResident    evict, drop       -         -          -
//   kFailed      last waiter left  -         -          -
inline constexpr bool kLegalTransition[4][4] = {
    {false, true, true, false},
    {true, false, true, true},
    {true, false, false, false},
    {true, false, false, false},
};

// The only way a CopyState changes.
inline void Transition(CopyState& state, CopyState to) {
  TERRACE_CHECK(kLegalTransition[static_cast<size_t>(state)][static_cast<size_t>(to)]);
  state = to;
}

}  // namespace terrace

#endif  // TERRACE_TIERS_COPY_STATE_H_
