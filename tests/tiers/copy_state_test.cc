#include "tiers/copy_state.h"

#include <cstddef>

#include "gtest/gtest.h"

namespace terrace {
namespace {

constexpr CopyState kStates[] = {CopyState::kEmpty, CopyState::kFilling, CopyState::kResident,
                                 CopyState::kFailed};

// The table of the header, written down a second time as a list.
bool IsLegal(CopyState from, CopyState to) {
  switch (from) {
    case CopyState::kEmpty:
      return to == CopyState::kFilling || to == CopyState::kResident;
    case CopyState::kFilling:
      return to == CopyState::kEmpty || to == CopyState::kResident || to == CopyState::kFailed;
    case CopyState::kResident:
    case CopyState::kFailed:
      return to == CopyState::kEmpty;
  }
  return false;
}

TEST(CopyState, EveryLegalTransitionIsTaken) {
  for (CopyState from : kStates) {
    for (CopyState to : kStates) {
      if (!IsLegal(from, to)) continue;
      CopyState state = from;
      Transition(state, to);
      EXPECT_EQ(state, to);
    }
  }
}

TEST(CopyStateDeathTest, EveryOtherTransitionAborts) {
  for (CopyState from : kStates) {
    for (CopyState to : kStates) {
      if (IsLegal(from, to)) continue;
      CopyState state = from;
      EXPECT_DEATH(Transition(state, to), "kLegalTransition")
          << static_cast<int>(from) << " to " << static_cast<int>(to);
    }
  }
}

}  // namespace
}  // namespace terrace
