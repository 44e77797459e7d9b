#include "io/latency_histogram.h"

#include <algorithm>
#include <bit>
#include <cmath>

namespace terrace {

// Values below 32 have a bucket each. Above, a value with its highest bit at position e belongs to
// one of the 32 steps of [2^e, 2^(e+1)), chosen by the five bits below the highest.
size_t LatencyHistogram::BucketOf(uint64_t value) {
  constexpr uint64_t kSteps = uint64_t{1} << kStepBits;
  if (value < kSteps) return value;
  const int shift = std::bit_width(value) - 1 - kStepBits;
  const uint64_t step = (value >> shift) - kSteps;
  return (static_cast<size_t>(shift + 1) << kStepBits) + step;
}

uint64_t LatencyHistogram::UpperEdge(size_t bucket) {
  constexpr uint64_t kSteps = uint64_t{1} << kStepBits;
  if (bucket < kSteps) return bucket;
  const int shift = static_cast<int>(bucket >> kStepBits) - 1;
  const uint64_t step = bucket % kSteps;
  return ((kSteps + step + 1) << shift) - 1;
}

void LatencyHistogram::RecordNanoseconds(int64_t nanoseconds) {
  const int64_t value = std::max<int64_t>(nanoseconds, 0);
  ++buckets_[BucketOf(static_cast<uint64_t>(value))];
  ++count_;
  max_ns_ = std::max(max_ns_, value);
}

void LatencyHistogram::Merge(const LatencyHistogram& other) {
  for (size_t bucket = 0; bucket < kBuckets; ++bucket) buckets_[bucket] += other.buckets_[bucket];
  count_ += other.count_;
  max_ns_ = std::max(max_ns_, other.max_ns_);
}

int64_t LatencyHistogram::PercentileNs(double share) const {
  if (count_ == 0) return 0;
  // Rounding up must not be moved to the next rank by the last bit of the product: 0.07 * 100 is a
  // little more than 7.
  const double exact_rank = share * static_cast<double>(count_) * (1 - 1e-12);
  const double rank = std::clamp(std::ceil(exact_rank), 1.0, static_cast<double>(count_));
  uint64_t seen = 0;
  for (size_t bucket = 0; bucket < kBuckets; ++bucket) {
    seen += buckets_[bucket];
    if (static_cast<double>(seen) < rank) continue;
    return std::min(static_cast<int64_t>(UpperEdge(bucket)), max_ns_);
  }
  return max_ns_;
}

}  // namespace terrace
