#ifndef TERRACE_TIERS_LEASE_H_
#define TERRACE_TIERS_LEASE_H_

#include <cstddef>
#include <cstdint>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "tiers/placement.h"
#include "tiers/tier.h"

namespace terrace {

class TierManager;

// How the fetch of one block ended.
enum class BlockOutcome : uint8_t {
  kServed,
  kMiss,  // no tier holds the block
  kLost,  // it was there, and its bytes failed their checksum or could not be read; it is dropped
  kLate,  // the deadline passed first; the read goes on as a prefetch
};

struct LeasedBlock {
  BlockOutcome outcome = BlockOutcome::kMiss;
  // Where the block was found: the fastest tier that held it. Meaningless for a miss.
  Tier hit_tier = Tier::kNvme;
  // The bytes of the block, or of the part that was asked for: [bytes], immutable, valid until the
  // lease ends. A device address when `in_hbm`. Null unless served.
  const std::byte* data = nullptr;
  size_t bytes = 0;
  bool in_hbm = false;
};

// Keeps the blocks of one fetch where they are. Ends when destroyed or released. Movable; must not
// outlive its manager. Thread-compatible.
class Lease {
 public:
  Lease() = default;
  ~Lease() { Release(); }
  Lease(Lease&& other) noexcept { *this = std::move(other); }
  Lease& operator=(Lease&& other) noexcept;
  Lease(const Lease&) = delete;
  Lease& operator=(const Lease&) = delete;

  size_t size() const { return blocks_.size(); }
  // In the order that was asked for. REQUIRES: index < size().
  const LeasedBlock& operator[](size_t index) const { return blocks_[index]; }
  void Release();

 private:
  friend class TierManager;
  TierManager* manager_ = nullptr;
  std::vector<LeasedBlock> blocks_;
  std::vector<Place> places_;  // pinned
};

// A fetch under way. Destroying it without Wait cancels the interest, not the transfers: what is in
// flight lands as if prefetched. Movable; must not outlive its manager. Thread-compatible.
class Ticket {
 public:
  Ticket() = default;
  ~Ticket() { Cancel(); }
  Ticket(Ticket&& other) noexcept { *this = std::move(other); }
  Ticket& operator=(Ticket&& other) noexcept;
  Ticket(const Ticket&) = delete;
  Ticket& operator=(const Ticket&) = delete;

  // Whether Wait would return at once.
  bool Done() const;
  // Blocks until every block landed or failed, or the deadline passed, and turns the ticket into a
  // lease. The calling thread helps to verify and copy what has arrived. Once only.
  Lease Wait();
  void Cancel();

 private:
  friend class TierManager;
  TierManager* manager_ = nullptr;
  FetchItems items_;
  absl::Time deadline_ = absl::InfiniteFuture();
};

}  // namespace terrace

#endif  // TERRACE_TIERS_LEASE_H_
