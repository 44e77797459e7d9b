#ifndef TERRACE_RUNTIME_SCOPED_SECONDS_H_
#define TERRACE_RUNTIME_SCOPED_SECONDS_H_

#include <cstdint>

#include "absl/time/clock.h"

namespace terrace {

// Adds the seconds of its life to a sum.
class ScopedSeconds {
 public:
  explicit ScopedSeconds(double& sum) : sum_(sum), start_(absl::GetCurrentTimeNanos()) {}
  ~ScopedSeconds() { sum_ += static_cast<double>(absl::GetCurrentTimeNanos() - start_) * 1e-9; }
  ScopedSeconds(const ScopedSeconds&) = delete;
  ScopedSeconds& operator=(const ScopedSeconds&) = delete;

 private:
  double& sum_;
  const int64_t start_;
};

}  // namespace terrace

#endif  // TERRACE_RUNTIME_SCOPED_SECONDS_H_
