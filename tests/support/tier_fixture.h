#ifndef TERRACE_TESTS_SUPPORT_TIER_FIXTURE_H_
#define TERRACE_TESTS_SUPPORT_TIER_FIXTURE_H_

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/synchronization/mutex.h"
#include "absl/types/span.h"
#include "io/copy_engine.h"
#include "io/io_request.h"
#include "tests/support/faulty_device.h"
#include "tiers/tier_manager.h"

namespace terrace {

inline BlockId TestId(uint64_t number) { return {.high = 0x7e57, .low = number}; }
std::vector<BlockId> TestIds(uint64_t first, uint64_t count);

// The bytes of a block, made from its id; other versions of one id have other bytes everywhere.
std::vector<std::byte> BlockBytes(const BlockId& id, size_t bytes, uint64_t version = 0);

// The capacity of an NVMe tier of `segments` segments with one block each, at most 32 of them; 2 is
// the smallest tier there is.
uint64_t TinyNvmeBytes(size_t block_bytes, uint64_t segments);

// Capacities in slots, the NVMe tier in bytes.
struct TierSizes {
  uint64_t hbm_slots = 0;
  uint64_t dram_slots = 0;
  uint64_t nvme_bytes = 0;
};
TierManagerOptions TestTierOptions(size_t block_bytes, const TierSizes& sizes);

// Yields until `done` returns true. For what no call waits for, such as a block that lands by
// itself.
void YieldUntil(const std::function<bool()>& done);

// A host copy engine whose batches can be held or made to fail. Aborts when a copy does not lead
// from host memory to memory that it gave out, or back, as its direction says. Thread-safe.
class FaultyCopyEngine final : public CopyEngine {
 public:
  FaultyCopyEngine() : host_(MakeHostCopyEngine()) {}

  // From now on batches that contain a copy in this direction fail; nullopt ends the fault.
  void FailWhen(std::optional<CopyDirection> direction) ABSL_LOCKS_EXCLUDED(mu_);
  // From now on this many calls of Wait fail, as those of a device do that reports late.
  void FailWaits(int count) ABSL_LOCKS_EXCLUDED(mu_);
  // Holds such batches inside Submit until Release.
  void HoldWhen(CopyDirection direction) ABSL_LOCKS_EXCLUDED(mu_);
  void Release() ABSL_LOCKS_EXCLUDED(mu_);
  void AwaitHeld() const ABSL_LOCKS_EXCLUDED(mu_);

  // The next Pin fails with kResourceExhausted.
  void FailPin() ABSL_LOCKS_EXCLUDED(mu_);

  absl::StatusOr<std::unique_ptr<DeviceMemory>> Allocate(size_t bytes) override
      ABSL_LOCKS_EXCLUDED(mu_);
  absl::StatusOr<std::unique_ptr<PinnedMemory>> Pin(absl::Span<std::byte> memory) override
      ABSL_LOCKS_EXCLUDED(mu_);
  absl::StatusOr<CopyTicket> Submit(absl::Span<const Copy> batch, CopyPriority priority) override
      ABSL_LOCKS_EXCLUDED(mu_);
  absl::Status Wait(CopyTicket ticket) override ABSL_LOCKS_EXCLUDED(mu_);
  const char* name() const override { return "faulty"; }
  bool is_host() const override { return true; }

 private:
  bool OnDevice(const std::byte* begin, size_t bytes) const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);

  const std::unique_ptr<CopyEngine> host_;
  mutable absl::Mutex mu_;
  std::vector<absl::Span<const std::byte>> device_ ABSL_GUARDED_BY(mu_);  // all that it gave out
  bool fail_pin_ ABSL_GUARDED_BY(mu_) = false;
  std::optional<CopyDirection> fail_ ABSL_GUARDED_BY(mu_);
  std::optional<CopyDirection> hold_ ABSL_GUARDED_BY(mu_);
  int held_ ABSL_GUARDED_BY(mu_) = 0;
  int failing_waits_ ABSL_GUARDED_BY(mu_) = 0;
};

// A TierManager on a memory device with faults, and shorthands for what tests ask of it.
class TestTier {
 public:
  TestTier(size_t block_bytes, const TierSizes& sizes)
      : TestTier(TestTierOptions(block_bytes, sizes)) {}
  explicit TestTier(const TierManagerOptions& options);
  ~TestTier();

  TierManager& manager() { return *manager_; }
  TierManager* operator->() { return manager_.get(); }
  // REQUIRES: an NVMe tier.
  FaultyDevice& device() { return *device_; }
  FaultyCopyEngine& copies() { return *copies_; }
  // Transfers that the device carried out since it was opened.
  uint64_t reads() const { return reads_; }
  uint64_t writes() const { return writes_; }
  uint64_t syncs() const { return syncs_; }
  // Destroys the manager. Wakes of the device release what it holds from now on, so that a
  // destructor that waits for held requests ends, and ends only after they came back.
  void Destroy();

  absl::Status Put(uint64_t number, Retention retention = Retention::kCached, uint64_t version = 0);
  // Puts numbers [first, first + count); aborts the test on an error.
  void PutMany(uint64_t first, uint64_t count, Retention retention = Retention::kCached);
  absl::StatusOr<Lease> Fetch(uint64_t number, std::optional<Tier> target = std::nullopt);
  absl::StatusOr<Lease> FetchMany(const std::vector<uint64_t>& numbers,
                                  std::optional<Tier> target = std::nullopt);
  absl::StatusOr<Ticket> FetchAsync(uint64_t number, std::optional<Tier> target = std::nullopt,
                                    absl::Time deadline = absl::InfiniteFuture());
  std::optional<Tier> Find(uint64_t number) { return manager_->Find(TestId(number)); }
  bool OnNvme(uint64_t number) { return manager_->OnNvme(TestId(number)); }
  void Drop(uint64_t number);
  // Whether a served block has the bytes that were put, or the part of them that starts at
  // `offset`.
  bool Right(const LeasedBlock& block, uint64_t number, uint64_t version = 0, size_t offset = 0);
  // Whether a fetch serves the block with the right bytes.
  bool Serves(uint64_t number, std::optional<Tier> target = std::nullopt);
  TierStats Stats() { return manager_->Stats(); }

 private:
  class ReleaseOnWake;

  std::atomic<uint64_t> reads_ = 0;
  std::atomic<uint64_t> writes_ = 0;
  std::atomic<uint64_t> syncs_ = 0;
  std::atomic<bool> destroying_ = false;
  FaultyDevice* device_ = nullptr;      // owned by the manager
  FaultyCopyEngine* copies_ = nullptr;  // owned by the manager
  std::unique_ptr<TierManager> manager_;
};

}  // namespace terrace

#endif  // TERRACE_TESTS_SUPPORT_TIER_FIXTURE_H_
