#ifndef TERRACE_RUNTIME_MEMORY_BUDGET_H_
#define TERRACE_RUNTIME_MEMORY_BUDGET_H_

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/synchronization/mutex.h"

namespace terrace {

class MemoryBudget;

// Bytes of a budget, given back when this ends. Thread-compatible.
class MemoryReservation {
 public:
  MemoryReservation() = default;
  MemoryReservation(MemoryReservation&& other) noexcept { *this = std::move(other); }
  MemoryReservation& operator=(MemoryReservation&& other) noexcept;
  ~MemoryReservation() { Release(); }

  uint64_t bytes() const { return bytes_; }
  void Release();

 private:
  friend class MemoryBudget;
  std::shared_ptr<MemoryBudget> budget_;
  size_t client_ = 0;
  uint64_t bytes_ = 0;
};

// One amount of memory for several clients, such as KV blocks, indexes and weights. Each has a
// minimum that nobody else can take; what is beyond the minima is lent to whoever asks first, until
// it is given back. It counts and allocates nothing. Thread-safe.
class MemoryBudget : public std::enable_shared_from_this<MemoryBudget> {
 public:
  struct Client {
    std::string name;
    uint64_t minimum_bytes = 0;
  };

  // kInvalidArgument when the minima together are more than `total_bytes`, or names repeat.
  static absl::StatusOr<std::shared_ptr<MemoryBudget>> Create(uint64_t total_bytes,
                                                              std::vector<Client> clients);

  // kResourceExhausted, with needed and available bytes, when it would take what others are
  // guaranteed or have; kNotFound for a client that the budget has not.
  absl::StatusOr<MemoryReservation> Reserve(absl::string_view client, uint64_t bytes)
      ABSL_LOCKS_EXCLUDED(mu_);
  // The most that Reserve would give the client now.
  absl::StatusOr<uint64_t> Available(absl::string_view client) const ABSL_LOCKS_EXCLUDED(mu_);
  uint64_t total_bytes() const { return total_bytes_; }

 private:
  friend class MemoryReservation;
  MemoryBudget(uint64_t total_bytes, std::vector<Client> clients);
  absl::StatusOr<size_t> Find(absl::string_view client) const;
  uint64_t AvailableTo(size_t client) const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void Return(size_t client, uint64_t bytes) ABSL_LOCKS_EXCLUDED(mu_);

  const uint64_t total_bytes_;
  const std::vector<Client> clients_;
  mutable absl::Mutex mu_;
  std::vector<uint64_t> reserved_ ABSL_GUARDED_BY(mu_);  // by client
};

}  // namespace terrace

#endif  // TERRACE_RUNTIME_MEMORY_BUDGET_H_
