#ifndef TERRACE_BENCH_MEMORY_LIMIT_H_
#define TERRACE_BENCH_MEMORY_LIMIT_H_

#include <cstdint>
#include <memory>
#include <optional>
#include <string>

namespace terrace {

// A cgroup, version 1 or 2, that limits the memory of the process that joins it, page cache and
// kernel memory included. It lies below the cgroup of this process, so that outer limits stay in
// force, and is removed at the end. Thread-compatible.
class MemoryLimit {
 public:
  // nullptr where the system has no memory controller that this process may use.
  static std::unique_ptr<MemoryLimit> Create(uint64_t bytes);
  // REQUIRES: the processes that joined have ended.
  ~MemoryLimit();
  MemoryLimit(const MemoryLimit&) = delete;
  MemoryLimit& operator=(const MemoryLimit&) = delete;

  // Moves the calling process into the cgroup. For a forked child. False when it cannot.
  bool Join() const;
  // The most that its processes used at once, in bytes.
  std::optional<uint64_t> PeakBytes() const;

 private:
  MemoryLimit(std::string group, bool version2) : group_(group), version2_(version2) {}

  const std::string group_;  // directory
  const bool version2_;
};

}  // namespace terrace

#endif  // TERRACE_BENCH_MEMORY_LIMIT_H_
