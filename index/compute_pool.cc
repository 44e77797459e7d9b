#include "index/compute_pool.h"

#include <algorithm>
#include <thread>

#include "oneapi/tbb/parallel_for.h"
#include "oneapi/tbb/partitioner.h"
#include "oneapi/tbb/task_arena.h"

namespace terrace {

struct ComputePool::Arena {
  explicit Arena(size_t threads) : arena(static_cast<int>(threads)) {}
  tbb::task_arena arena;
};

ComputePool::ComputePool(size_t threads)
    : threads_(threads > 0 ? threads : std::max(1u, std::thread::hardware_concurrency())),
      arena_(threads_ > 1 ? std::make_unique<Arena>(threads_) : nullptr) {}

ComputePool::~ComputePool() = default;

void ComputePool::ForEach(size_t jobs, absl::FunctionRef<void(size_t job, size_t worker)> job) {
  if (arena_ == nullptr) {
    absl::MutexLock lock(&mu_);
    for (size_t i = 0; i < jobs; ++i) job(i, 0);
    return;
  }
  arena_->arena.execute([&] {
    const auto run = [&](const tbb::blocked_range<size_t>& range) {
      const auto worker = static_cast<size_t>(tbb::this_task_arena::current_thread_index());
      for (size_t i = range.begin(); i < range.end(); ++i) job(i, worker);
    };
    // Jobs are few and long, so each is a task of its own.
    tbb::parallel_for(tbb::blocked_range<size_t>(0, jobs, 1), run, tbb::simple_partitioner());
  });
}

}  // namespace terrace
