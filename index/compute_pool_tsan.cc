// ComputePool for builds under ThreadSanitizer, which cannot see how the packaged oneTBB hands work
// from thread to thread and would report each job as a race. Slow, and with every race of the jobs
// in view.

#include <algorithm>
#include <thread>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "index/compute_pool.h"

namespace terrace {

struct ComputePool::Arena {
  using Job = absl::FunctionRef<void(size_t job, size_t worker)>;

  // Takes jobs until there are none.
  void Work(size_t worker) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu) {
    while (next < jobs) {
      const size_t i = next++;
      ++running;
      const Job run = *job;
      mu.Unlock();
      run(i, worker);
      mu.Lock();
      --running;
    }
  }
  void Help(size_t worker) {
    absl::MutexLock lock(&mu);
    while (true) {
      mu.Await(absl::Condition(
          +[](Arena* arena) { return arena->stopping || arena->next < arena->jobs; }, this));
      if (stopping) return;
      Work(worker);
    }
  }
  bool done() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu) { return next == jobs && running == 0; }

  absl::Mutex mu;
  const Job* job ABSL_GUARDED_BY(mu) = nullptr;
  size_t jobs ABSL_GUARDED_BY(mu) = 0;
  size_t next ABSL_GUARDED_BY(mu) = 0;
  size_t running ABSL_GUARDED_BY(mu) = 0;
  bool stopping ABSL_GUARDED_BY(mu) = false;
  std::vector<std::thread> helpers;
};

ComputePool::ComputePool(size_t threads)
    : threads_(threads > 0 ? threads : std::max(1u, std::thread::hardware_concurrency())),
      arena_(std::make_unique<Arena>()) {
  for (size_t worker = 1; worker < threads_; ++worker) {
    arena_->helpers.emplace_back([this, worker] { arena_->Help(worker); });
  }
}

ComputePool::~ComputePool() {
  {
    absl::MutexLock lock(&arena_->mu);
    arena_->stopping = true;
  }
  for (std::thread& helper : arena_->helpers) helper.join();
}

void ComputePool::ForEach(size_t jobs, absl::FunctionRef<void(size_t job, size_t worker)> job) {
  absl::MutexLock one_call(&mu_);
  absl::MutexLock lock(&arena_->mu);
  arena_->job = &job;
  arena_->jobs = jobs;
  arena_->next = 0;
  arena_->Work(0);
  arena_->mu.Await(absl::Condition(arena_.get(), &Arena::done));
}

}  // namespace terrace
