// ComputePool for builds under ThreadSanitizer, which cannot see how the packaged oneTBB hands work
// from thread to thread and would report each job as a race. Slow, and with every race of the jobs
// in view.

#include <algorithm>
#include <atomic>
#include <thread>
#include <vector>

#include "index/compute_pool.h"

namespace terrace {

struct ComputePool::Arena {};

ComputePool::ComputePool(size_t threads)
    : threads_(threads > 0 ? threads : std::max(1u, std::thread::hardware_concurrency())) {}

ComputePool::~ComputePool() = default;

void ComputePool::ForEach(size_t jobs, absl::FunctionRef<void(size_t job, size_t worker)> job) {
  absl::MutexLock lock(&mu_);
  std::atomic<size_t> next = 0;
  const auto work = [&](size_t worker) {
    for (size_t i = next++; i < jobs; i = next++) job(i, worker);
  };
  std::vector<std::thread> helpers;
  for (size_t worker = 1; worker < std::min(threads_, jobs); ++worker) {
    helpers.emplace_back(work, worker);
  }
  work(0);
  for (std::thread& helper : helpers) helper.join();
}

}  // namespace terrace
