#ifndef TERRACE_IO_LATENCY_HISTOGRAM_H_
#define TERRACE_IO_LATENCY_HISTOGRAM_H_

#include <array>
#include <cstddef>
#include <cstdint>

#include "absl/time/time.h"

namespace terrace {

// Durations counted in logarithmic buckets of 32 linear steps each, so that a percentile is within
// 3.2 % of the truth from 1 ns to hours, in fixed memory. Thread-compatible; histograms of several
// threads are merged.
class LatencyHistogram {
 public:
  void Record(absl::Duration latency) { RecordNanoseconds(absl::ToInt64Nanoseconds(latency)); }
  void RecordNanoseconds(int64_t nanoseconds);  // negative counts as 0
  void Merge(const LatencyHistogram& other);

  uint64_t count() const { return count_; }
  int64_t max_ns() const { return max_ns_; }
  // Nanoseconds below or at which the given share (0 to 1) of the recorded values lie; 0 when
  // nothing was recorded. Reports the upper edge of a bucket, never more than the maximum.
  int64_t PercentileNs(double share) const;

 private:
  static constexpr int kStepBits = 5;
  static constexpr size_t kBuckets = (64 - kStepBits) << kStepBits;
  static size_t BucketOf(uint64_t value);
  static uint64_t UpperEdge(size_t bucket);

  std::array<uint64_t, kBuckets> buckets_ = {};
  uint64_t count_ = 0;
  int64_t max_ns_ = 0;
};

}  // namespace terrace

#endif  // TERRACE_IO_LATENCY_HISTOGRAM_H_
