#ifndef TERRACE_INDEX_COMPUTE_POOL_H_
#define TERRACE_INDEX_COMPUTE_POOL_H_

#include <cstddef>
#include <memory>

#include "absl/functional/function_ref.h"
#include "absl/synchronization/mutex.h"

namespace terrace {

// The threads that compute: an arena of oneTBB, or, in builds for ThreadSanitizer, threads of its
// own, as the packaged oneTBB is not instrumented. Thread-safe; calls of several threads share the
// workers.
class ComputePool {
 public:
  // The calling thread is one of `threads`; 0 means one for each processor.
  explicit ComputePool(size_t threads);
  ~ComputePool();

  size_t threads() const { return threads_; }
  // Runs job(i, worker) for i from 0 to jobs - 1, each once, in any order, and returns when all
  // have ended. `worker` is below threads() and differs between jobs that run at the same time.
  // Jobs do not call ForEach.
  void ForEach(size_t jobs, absl::FunctionRef<void(size_t job, size_t worker)> job);

 private:
  struct Arena;
  const size_t threads_;
  absl::Mutex mu_;  // held while one thread alone computes, which has one worker to give
  const std::unique_ptr<Arena> arena_;  // null for one thread
};

}  // namespace terrace

#endif  // TERRACE_INDEX_COMPUTE_POOL_H_
