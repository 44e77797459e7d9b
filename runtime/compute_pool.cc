#include "runtime/compute_pool.h"

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
      arena_(std::make_unique<Arena>(threads_)) {}

ComputePool::~ComputePool() = default;

void ComputePool::ForEach(size_t jobs, absl::FunctionRef<void(size_t job, size_t worker)> job) {
  if (jobs == 0) return;
  arena_->arena.execute([&] {
    const auto run = [&](size_t i) {
      job(i, static_cast<size_t>(tbb::this_task_arena::current_thread_index()));
    };
    if (jobs == 1 || threads_ == 1) {
      for (size_t i = 0; i < jobs; ++i) run(i);
      return;
    }
    // Jobs are few and long, so each is a task of its own.
    tbb::parallel_for(
        tbb::blocked_range<size_t>(0, jobs, 1),
        [&](const tbb::blocked_range<size_t>& range) {
          for (size_t i = range.begin(); i < range.end(); ++i) run(i);
        },
        tbb::simple_partitioner());
  });
}

}  // namespace terrace
