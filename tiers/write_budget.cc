#include "tiers/write_budget.h"

#include <algorithm>

namespace terrace {
namespace {

// Threads that read the clock before they got here in another order differ by less than this. To
// take that for a clock set back would fill the bucket with the difference each time.
constexpr absl::Duration kDisorder = absl::Seconds(1);

}  // namespace

void WriteBudget::Refill(absl::Time now) {
  if (now > refilled_) {
    balance_ = std::min(balance_ + (now - refilled_), kDepth);
  } else if (refilled_ - now < kDisorder) {
    return;
  }
  refilled_ = now;
}

void WriteBudget::Spend(uint64_t bytes, absl::Time now) {
  if (bytes_per_day_ == 0) return;
  Refill(now);
  balance_ -= absl::Hours(24) * (static_cast<double>(bytes) / static_cast<double>(bytes_per_day_));
}

bool WriteBudget::Allows(absl::Time now) { return TimeUntilAllowed(now) == absl::ZeroDuration(); }

absl::Duration WriteBudget::TimeUntilAllowed(absl::Time now) {
  if (bytes_per_day_ == 0) return absl::ZeroDuration();
  Refill(now);
  if (balance_ > absl::ZeroDuration()) return absl::ZeroDuration();
  return absl::Nanoseconds(1) - balance_;  // paid by then, and something left
}

}  // namespace terrace
