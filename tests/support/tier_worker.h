#ifndef TERRACE_TESTS_SUPPORT_TIER_WORKER_H_
#define TERRACE_TESTS_SUPPORT_TIER_WORKER_H_

#include <cstddef>
#include <cstdint>
#include <functional>
#include <optional>
#include <random>
#include <vector>

#include "tests/support/promise_model.h"
#include "tiers/tier_manager.h"

namespace terrace {

// The version of `number` that has these bytes, from `offset` in the block on; nullopt when none up
// to `newest` does.
std::optional<uint64_t> VersionOf(uint64_t number, absl::Span<const std::byte> bytes, size_t offset,
                                  uint64_t newest);

struct TierWorkerOptions {
  TierManager* manager = nullptr;
  PromiseModel* model = nullptr;
  uint64_t seed = 0;
  // The worker changes blocks `first`, `first` + `stride`, ...; it reads all.
  uint64_t first = 0;
  uint64_t stride = 1;
  std::vector<Tier> targets;      // that a fetch may ask for
  std::optional<uint64_t> space;  // namespace of every third block
  bool drops = true;
  double drop_share = 0;      // of the calls, besides the drops that come anyway
  double owned_share = 0.25;  // of what is put
  double flush_share = 0.03;  // of the calls
  // Whether nothing has gone wrong with the disk so far. Owned blocks are there, and no read fails,
  // while it holds.
  std::function<bool()> disk_is_well = [] { return true; };
};

// Makes random calls to a tier, checks every byte that it is served, and tells the model what
// becomes of the blocks. Owned by one thread; others may work on the same tier and model.
class TierWorker {
 public:
  explicit TierWorker(const TierWorkerOptions& options);

  // Makes one call; what it finds wrong are failures of the test.
  void Step();
  // Gives back what it holds. It does so too when it goes, which must be before the tier does.
  void Release() { leases_.clear(); }

 private:
  uint64_t Draw(uint64_t below) { return random_() % below; }
  bool Chance(double share) { return std::bernoulli_distribution(share)(random_); }
  uint64_t Own() { return options_.first + options_.stride * Draw(own_count_); }
  std::optional<Tier> Target();
  BlockRead Read(uint64_t number);

  void Put();
  void Drop();
  void SetRetention();
  void Flush();
  void Fetch();
  void FetchAsync();
  void Prefetch();
  void Check(const LeasedBlock& block, uint64_t number, const BlockRead& read, bool must_be_here);

  const TierWorkerOptions options_;
  TierManager& manager_;
  PromiseModel& model_;
  const uint64_t own_count_;
  std::mt19937_64 random_;
  std::vector<Lease> leases_;
};

}  // namespace terrace

#endif  // TERRACE_TESTS_SUPPORT_TIER_WORKER_H_
