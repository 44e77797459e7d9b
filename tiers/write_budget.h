#ifndef TERRACE_TIERS_WRITE_BUDGET_H_
#define TERRACE_TIERS_WRITE_BUDGET_H_

#include <cstdint>

#include "absl/time/time.h"

namespace terrace {

// How much may be written to a disk a day, so that it lives as long as it should: a token bucket
// that fills continuously and holds an hour's share at most. It starts full. Writes that must
// happen are never refused and may leave a debt; writes in the background wait until it is paid.
//
// It has no clock: every call says what time it is. A clock that was set back neither fills the
// bucket nor stops it from filling.
//
// Thread-compatible.
class WriteBudget {
 public:
  explicit WriteBudget(uint64_t bytes_per_day) : bytes_per_day_(bytes_per_day) {}  // 0: no limit

  uint64_t bytes_per_day() const { return bytes_per_day_; }

  // `bytes` are being written.
  void Spend(uint64_t bytes, absl::Time now);

  // Whether writes in the background may start: something is left in the bucket.
  bool Allows(absl::Time now);

  // How long until Allows if nothing is spent meanwhile; zero when it does.
  absl::Duration TimeUntilAllowed(absl::Time now);

 private:
  void Refill(absl::Time now);

  static constexpr absl::Duration kDepth = absl::Hours(1);

  const uint64_t bytes_per_day_;
  // What is in the bucket, as the time that it takes to fill in: a duration ends in infinity where
  // a count of bytes would overflow. Negative in debt.
  absl::Duration balance_ = kDepth;
  absl::Time refilled_ = absl::InfinitePast();
};

}  // namespace terrace

#endif  // TERRACE_TIERS_WRITE_BUDGET_H_
