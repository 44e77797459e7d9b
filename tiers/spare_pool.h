#ifndef TERRACE_TIERS_SPARE_POOL_H_
#define TERRACE_TIERS_SPARE_POOL_H_

#include <cstddef>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"

namespace terrace {

// Keeps vectors that are not needed for now, so that whoever needs one next finds memory in it and
// a path that is taken again and again allocates nothing. Thread-safe.
template <typename Vector>
class SparePool {
 public:
  SparePool() { spares_.reserve(kMaxSpares); }

  // An empty one, of whatever capacity there is.
  Vector Take() ABSL_LOCKS_EXCLUDED(mu_) {
    absl::MutexLock lock(&mu_);
    if (spares_.empty()) return Vector();
    Vector spare = std::move(spares_.back());
    spares_.pop_back();
    return spare;
  }

  void Give(Vector&& vector) ABSL_LOCKS_EXCLUDED(mu_) {
    vector.clear();
    absl::MutexLock lock(&mu_);
    if (spares_.size() < kMaxSpares) spares_.push_back(std::move(vector));
  }

 private:
  static constexpr size_t kMaxSpares = 128;

  absl::Mutex mu_;
  std::vector<Vector> spares_ ABSL_GUARDED_BY(mu_);
};

}  // namespace terrace

#endif  // TERRACE_TIERS_SPARE_POOL_H_
