#ifndef TERRACE_TIERS_TIER_MANAGER_H_
#define TERRACE_TIERS_TIER_MANAGER_H_

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <thread>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/container/inlined_vector.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "absl/types/span.h"
#include "io/block_device.h"
#include "io/copy_engine.h"
#include "io/io_scheduler.h"
#include "tiers/block_id.h"
#include "tiers/flight.h"
#include "tiers/key_ring.h"
#include "tiers/lease.h"
#include "tiers/placement.h"
#include "tiers/slot_memory.h"
#include "tiers/spare_pool.h"
#include "tiers/tier_options.h"
#include "tiers/write_budget.h"

namespace terrace {

struct OpenedTier;

struct BlockWrite {
  BlockId id;
  absl::Span<const std::byte> bytes;  // [block_bytes], host memory
  Retention retention = Retention::kCached;
  // Encrypted on NVMe with the key of this namespace; nullopt: not encrypted.
  std::optional<uint64_t> space = std::nullopt;
};

// A block, or a part of one.
struct BlockRead {
  BlockId id;
  // Bytes, both multiples of 4 KiB; `bytes` 0 means to the end of the block. A part that is only on
  // NVMe is read alone into staging memory and not kept; otherwise it is served where it is.
  uint32_t offset = 0;
  uint32_t bytes = 0;
};

struct FetchOptions {
  // kHbm or kDram, which must have capacity. nullopt is the fast tier: HBM where it has capacity,
  // else DRAM, else staging memory.
  std::optional<Tier> target;
  absl::Time deadline = absl::InfiniteFuture();
  // How long Fetch waits for others to end their leases where these leave no room. Who asks for it
  // holds neither lease nor ticket of this manager, or might wait for itself. While somebody waits,
  // FetchAsync and TryFetchAsync take no room.
  absl::Duration lease_patience = absl::ZeroDuration();
};

struct PutOptions {
  // As that of FetchOptions.
  absl::Duration lease_patience = absl::ZeroDuration();
};

// Keeps blocks in HBM, DRAM and NVMe, each in the fastest tier that it deserves, and moves them.
//
//   - A block served has exactly the bytes that were put, or it is a miss: page checksums made at
//     Put are verified on every read from NVMe.
//   - Put places a block in DRAM (in HBM without a DRAM tier). Fetch promotes. HBM evicts to DRAM,
//     DRAM to NVMe, in the background and sequentially; NVMe evicts its oldest segment. Blocks
//     leave a tier least recently used first. With Put and Fetch alone, what ends up where depends
//     on the order of the calls alone, not on the speed of the disk.
//   - Capacities are hard. A call that cannot have the room it needs fails with kResourceExhausted,
//     naming needed and available; it may first wait for writes in flight, and for a lease only
//     where the caller asks for patience.
//   - A failing disk never fails the caller: unreadable blocks are misses (counted), and after a
//     failed write the NVMe tier takes no more of them and goes on serving reads.
//
// Thread-safe. Calls from one thread take effect in order; a block that is being fetched or put by
// two threads is moved once. No callback runs in the caller's threads except this class's own work.
class TierManager {
 public:
  // Test and benchmark doubles; null members are made from the options.
  struct Parts {
    std::unique_ptr<BlockDevice> device;  // as large as PlanNvmeGeometry(...).total_bytes()
    std::unique_ptr<CopyEngine> copy_engine;
    // False only to measure what checksums cost: nothing tells wrong bytes then.
    bool checksums = true;
  };

  // Opens the tiers; without `reuse` the NVMe tier starts empty. Errors: kInvalidArgument (options,
  // or a tier directory of another format, geometry or model, which is left untouched), those of
  // OpenFileDevice, kResourceExhausted for memory.
  static absl::StatusOr<std::unique_ptr<TierManager>> Open(const TierManagerOptions& options,
                                                           Parts parts);
  static absl::StatusOr<std::unique_ptr<TierManager>> Open(const TierManagerOptions& options) {
    return Open(options, Parts());
  }
  // Waits for transfers in flight, and promises no more than the last Flush did.
  // REQUIRES: no lease or ticket is left.
  ~TierManager();

  // Stores blocks, in order; bytes are copied before it returns. A block that is known keeps its
  // first bytes, and its namespace: kAlreadyExists, naming both, when it is put in another one or
  // in none, as it would not be encrypted as this call asks. kResourceExhausted when no room could
  // be made for one, kFailedPrecondition when the key of its namespace is not here. The blocks
  // before one that failed are stored.
  absl::Status Put(absl::Span<const BlockWrite> blocks, const PutOptions& options = {})
      ABSL_LOCKS_EXCLUDED(mu_);

  // Starts bringing blocks to the target tier, all or none, and pins them there. Fails at once with
  // kResourceExhausted (what is pinned leaves too little room: fetch fewer, release leases) or
  // kUnavailable (the room is still being written back: retry, or use Fetch, which waits for it).
  // Missing blocks are outcomes, not errors. Ids in one batch should be distinct: each counts
  // towards the room needed.
  absl::StatusOr<Ticket> FetchAsync(absl::Span<const BlockRead> reads,
                                    const FetchOptions& options = {}) ABSL_LOCKS_EXCLUDED(mu_);
  // The same for callers that fetch ahead as far as there is room: nullopt when there is none just
  // now, for either reason.
  absl::StatusOr<std::optional<Ticket>> TryFetchAsync(absl::Span<const BlockRead> reads,
                                                      const FetchOptions& options = {})
      ABSL_LOCKS_EXCLUDED(mu_);
  // The same, waiting for write-backs where they stand in the way, and for the blocks.
  absl::StatusOr<Lease> Fetch(absl::Span<const BlockRead> reads, const FetchOptions& options = {})
      ABSL_LOCKS_EXCLUDED(mu_);
  // Hints that blocks will be wanted soon. Pins nothing, never waits; dropped (and counted) when
  // room is short. Returns how many fetches it started. A later fetch joins them.
  size_t Prefetch(absl::Span<const BlockId> ids, std::optional<Tier> target = std::nullopt)
      ABSL_LOCKS_EXCLUDED(mu_);

  // Copies a served block of a lease to host memory: [bytes of that block]. REQUIRES: kServed.
  absl::Status CopyToHost(const LeasedBlock& block, absl::Span<std::byte> out) const;

  // Forgets blocks: they are misses from now on, and after a restart too once a Flush came after it
  // (the manifest says so then). Leases on them stay valid.
  void Drop(absl::Span<const BlockId> ids) ABSL_LOCKS_EXCLUDED(mu_);
  void SetRetention(absl::Span<const BlockId> ids, Retention retention) ABSL_LOCKS_EXCLUDED(mu_);

  // Writes every block that was put before it and is not on NVMe yet, and syncs the device. After
  // OK all owned blocks are there, and all cached ones that have not been evicted since. Errors:
  // kFailedPrecondition without an NVMe tier; kResourceExhausted when owned blocks leave no room
  // there; the write or sync error once the tier has stopped taking writes; that of the copy engine
  // when a block could not leave HBM.
  absl::Status Flush() ABSL_LOCKS_EXCLUDED(mu_, flush_mu_);

  // Gives the disk space of free segments back; they take it again when they are used, and that may
  // fail then. kUnimplemented where the filesystem cannot.
  absl::Status DiscardFree() ABSL_LOCKS_EXCLUDED(mu_);

  // --- Encryption at rest ---
  // Brings the key of a namespace: its blocks are sealed with it from now on (AES-256-GCM, before
  // they reach the disk), and those that a reopened tier holds can be served. Until then they are
  // misses that stay. kAlreadyExists while the namespace has another key, kFailedPrecondition
  // without an NVMe tier, kResourceExhausted.
  absl::Status AddKey(uint64_t space, CipherKey key) ABSL_LOCKS_EXCLUDED(mu_);
  // Forgets the key, and drops every block of the namespace from all tiers: what is left of them on
  // the disk cannot be read by anybody who has not got the key from elsewhere.
  void DropKey(uint64_t space) ABSL_LOCKS_EXCLUDED(mu_);

  // The fastest tier that holds the block; nullopt when none does. Not a use of the block.
  std::optional<Tier> Find(const BlockId& id) const ABSL_LOCKS_EXCLUDED(mu_);
  // How many blocks from the front of `ids` some tier holds: the prefix that need not be computed.
  size_t CountLeading(absl::Span<const BlockId> ids) const ABSL_LOCKS_EXCLUDED(mu_);
  bool OnNvme(const BlockId& id) const ABSL_LOCKS_EXCLUDED(mu_);
  // The blocks that are owned, in no particular order: after a restart, those of an earlier run.
  std::vector<BlockId> OwnedBlocks() const ABSL_LOCKS_EXCLUDED(mu_);
  // Where the block lies on the device, in bytes; nullopt when it is not there. For benchmarks.
  std::optional<uint64_t> NvmeOffset(const BlockId& id) const ABSL_LOCKS_EXCLUDED(mu_);

  size_t block_bytes() const { return options_.block_bytes; }
  // Blocks that one fetch to a tier can hold at most; nullopt is the fast tier.
  size_t max_fetch_blocks(std::optional<Tier> target = std::nullopt) const;
  TierStats Stats() const ABSL_LOCKS_EXCLUDED(mu_);

  // What moves bytes from and to HBM, for callers that keep memory of their own there. As old as
  // the manager.
  CopyEngine& copy_engine() { return memory_->copy_engine(); }

 private:
  // Reservations that found nothing in flight may succeed on the next try, because what they
  // decided (a segment evicted, a copy dropped) is progress too. More than a few in a row is a full
  // tier.
  static constexpr int kMaxIdleRounds = 3;
  // And waiting ends: transfers of others may go on for ever without making room here.
  static constexpr int kMaxRounds = 10000;
  static constexpr size_t kUpkeepWrites = 4;
  // Blocks that one turn of work lands: enough to amortise the lock and the copy engine's start,
  // few enough that the first of them is not kept waiting for the last.
  static constexpr size_t kWorkBatch = 16;
  // Copies between HBM and DRAM that start together: enough that the bus works much longer than it
  // takes to start them and to be told of their end, and at most so many bytes, for what waits for
  // the first of them.
  static constexpr size_t kCopyBatch = 64;
  static constexpr size_t kCopyBatchBytes = size_t{4} << 20;
  // How many such batches a thread carries out before it looks what else there is to do.
  static constexpr size_t kCopyTurns = 4;

  friend class Lease;
  friend class Ticket;

  // A device of its own for a thread that waits for its reads: the thread submits and completes
  // them itself, and no other thread stands between it and the disk. Belongs to the thread that
  // took it until that gives it back, with nothing in flight.
  struct Lane {
    std::unique_ptr<BlockDevice> device;
    std::vector<IoRequest*> batch;  // to be submitted
    size_t in_flight = 0;
  };
  // The write of one group.
  struct GroupWrite {
    IoRequest request;
    std::vector<iovec> vectors;
    absl::Span<std::byte> header;
    AlignedBuffer sealed;  // [group_blocks, block_bytes] once there are keys
    std::vector<bool> is_sealed;
    int tries = 0;
  };
  // A manifest record, a footer or a sync.
  struct UpkeepWrite {
    IoRequest request;
    iovec vector = {};
    AlignedBuffer bytes;
    UpkeepTask task;
    int tries = 0;
  };
  struct SealJob;
  struct CopyBatch;
  using GroupBatch = absl::InlinedVector<IoRequest*, Placement::kWriteGroups>;
  // Requests that a thread waits for outside of any fill: superblocks, recovery, sync.
  struct Blocking {
    size_t left = 0;
    absl::Status status;
  };
  // What IoRequest::context points at: one of the above.
  struct Context {
    enum class Kind : uint8_t { kFlight, kGroup, kUpkeep, kBlocking } kind = Kind::kBlocking;
    size_t index = 0;
    Blocking* blocking = nullptr;
  };

  TierManager(const TierManagerOptions& options, std::unique_ptr<Placement> placement,
              std::unique_ptr<SlotMemory> memory);
  Timeline* timeline() const { return options_.timeline.get(); }
  void RecordSlots() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);

  // tier_manager_open.cc
  static absl::StatusOr<std::unique_ptr<TierManager>> OpenTiers(const TierManagerOptions& options,
                                                                Parts parts);
  absl::Status AttachDevice(std::unique_ptr<BlockDevice> device) ABSL_LOCKS_EXCLUDED(mu_);
  // Host memory that reads go to, as far as options_ wants it registered.
  std::vector<iovec> RegisteredMemory() const;
  // All of it, or the staging pool alone where the limit on locked memory does not allow more.
  void RegisterMemory(BlockDevice& device) const;
  // As many as the device can clone, up to a bound; none is a state that works.
  void OpenLanes(const BlockDevice& device) ABSL_LOCKS_EXCLUDED(mu_);
  absl::Status MakeQueues() ABSL_LOCKS_EXCLUDED(mu_);
  absl::Status StartEmpty(const Superblock& superblock) ABSL_LOCKS_EXCLUDED(mu_);
  absl::Status WriteBlocking(uint64_t offset, absl::Span<const std::byte> bytes)
      ABSL_LOCKS_EXCLUDED(mu_);
  absl::StatusOr<std::optional<Superblock>> FindSuperblock() ABSL_LOCKS_EXCLUDED(mu_);
  absl::Status Recover(const OpenedTier& tier) ABSL_LOCKS_EXCLUDED(mu_);
  absl::Status Sync() ABSL_LOCKS_EXCLUDED(mu_);
  absl::Status RunBlocking(absl::Span<IoRequest* const> requests) ABSL_LOCKS_EXCLUDED(mu_);

  // tier_manager_durable.cc
  absl::Status WriteDirty() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void WriteMarks() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  template <typename Condition>
  absl::Status AwaitNvme(Condition condition) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void CollectUpkeep(GroupBatch& writes) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void EndGroup(size_t index) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void EndUpkeep(size_t index) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  // Sends a failed write again if that may help.
  bool RetryWrite(IoRequest& request, int& tries) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void StopNvmeWrites(const absl::Status& error) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  NvmeHealth Health() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void SpendBudget(const IoRequest& request) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void FollowBudget() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);

  // tier_manager_keys.cc
  bool NeedsSealing(size_t group) const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  // Seals the blocks of a group that waits for it; false when none does.
  bool SealGroup() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void PrepareToOpen(Flight& flight, const Fill& fill) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  static bool OpenBlock(const Flight& flight);

  // tier_manager.cc
  absl::StatusOr<Pool> TargetPool(std::optional<Tier> target) const;
  Pool FastPool() const;
  absl::Status MakeItems(absl::Span<const BlockRead> reads, FetchItems& items) const;
  absl::Status NoRoomError(absl::string_view what, size_t needed, Pool pool) const
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  absl::Status PutOne(const BlockWrite& block, absl::Time patience_end) ABSL_LOCKS_EXCLUDED(mu_);
  absl::Status OtherSpaceError(const BlockWrite& block) const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  absl::Status FillFromCaller(const BlockWrite& block, Place place,
                              absl::Span<PageChecksum> checksums) const;
  bool AllLanded(absl::Span<const FetchItem> items) const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  // `lane`, if any, is given back.
  Lease WaitFor(absl::Span<const FetchItem> items, absl::Time deadline, Lane* lane = nullptr)
      ABSL_LOCKS_EXCLUDED(mu_);
  LeasedBlock Outcome(const FetchItem& item) const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void Unpin(absl::Span<const Place> places) ABSL_LOCKS_EXCLUDED(mu_);

  // tier_manager_move.cc. Those that require mu_ may release it in between.
  // Demand reads go to `lane`, if there is one, for DriveLane to submit, else to the scheduler.
  void StartTransfers(Lane* lane = nullptr) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void CollectReads(FlightBatch& demand, FlightBatch& prefetch, FlightBatch& rewrite)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void PrepareFlight(Flight& flight, Place target) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void CollectGroups(GroupBatch& writes) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void PrepareGroup(size_t index) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  // Waits for something to change while leases hold slots of `pool`; false when there are none, or
  // `until` has passed.
  bool AwaitLeases(Pool pool, absl::Time until) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  // Starts a fetch where there is room for it at once.
  absl::StatusOr<Room> StartFetch(absl::Span<const BlockRead> reads, const FetchOptions& options,
                                  Pool target, Ticket& ticket) ABSL_LOCKS_EXCLUDED(mu_);
  // A lane that nobody uses; nullptr when there is none.
  Lane* TakeLane() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  // Submits what `lane` has collected and waits for some of what it has in flight; false when it
  // had neither. REQUIRES: the caller is one of the waiters_.
  bool DriveLane(Lane& lane) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  // Takes what came back from the device apart into flights that arrived, or that go again.
  void EndRead(Flight& first) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  // Verifies, copies and lands some of what is ready; false when there was nothing.
  bool DoSomeWork(Lane* lane = nullptr) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  bool FinishArrived() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  bool ReadAgain(Flight& flight) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void CountRead(const Flight& flight) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void StartFlight(Place place, FlightBatch& batch) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  bool Verify(Flight& flight) const;
  void VerifyAndCopyUp(absl::Span<Flight* const> flights) ABSL_LOCKS_EXCLUDED(mu_);
  // Copies between slots, two batches under way at a time; false when none were queued.
  bool RunCopies() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  // Takes a batch off the queue; false when there is none.
  bool TakeCopies(CopyBatch& batch) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void StartCopies(CopyBatch& batch) const ABSL_LOCKS_EXCLUDED(mu_);
  void FinishCopies(CopyBatch& batch) const ABSL_LOCKS_EXCLUDED(mu_);
  void LandCopies(CopyBatch& batch) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  // Works or sleeps until something landed since landings_ was `seen`, which may have made room.
  // False when nothing is in flight that could.
  bool AwaitProgress(uint64_t seen, absl::Time deadline = absl::InfiniteFuture())
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void RaisePrefetches(absl::Span<const FetchItem> items) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void NudgeMover() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void OnCompletions(absl::Span<IoRequest* const> done) ABSL_LOCKS_EXCLUDED(mu_);
  void RunMover() ABSL_LOCKS_EXCLUDED(mu_);

  // Constant after Open.
  const TierManagerOptions options_;
  const IoTimeline record_reads_;  // of lanes; the scheduler records its own
  const std::unique_ptr<SlotMemory> memory_;
  bool checksums_ = true;
  AlignedBuffer headers_;  // [kWriteGroups, header bytes]
  std::vector<Context> flight_contexts_;
  std::vector<Context> group_contexts_;
  std::vector<Context> upkeep_contexts_;
  std::unique_ptr<ReadCoalescer> coalescer_;
  DeviceInfo device_info_;
  BlockDevice* device_ = nullptr;  // the scheduler's, for the completion handler

  SparePool<FetchItems> spare_items_;
  SparePool<std::vector<LeasedBlock>> spare_blocks_;
  SparePool<std::vector<Place>> spare_places_;

  absl::Mutex flush_mu_ ABSL_ACQUIRED_BEFORE(mu_);  // one Flush at a time

  mutable absl::Mutex mu_;
  const std::unique_ptr<Placement> placement_ ABSL_PT_GUARDED_BY(mu_);
  std::vector<Flight> flights_ ABSL_GUARDED_BY(mu_);
  std::vector<size_t> idle_flights_ ABSL_GUARDED_BY(mu_);
  std::vector<size_t> arrived_flights_ ABSL_GUARDED_BY(mu_);
  // The request that they shared failed; each goes again alone, so that one bad range loses only
  // the blocks in it.
  std::vector<size_t> split_flights_ ABSL_GUARDED_BY(mu_);
  std::vector<GroupWrite> group_writes_ ABSL_GUARDED_BY(mu_);
  std::vector<UpkeepWrite> upkeep_writes_ ABSL_GUARDED_BY(mu_);
  std::vector<size_t> idle_upkeep_ ABSL_GUARDED_BY(mu_);
  std::vector<size_t> unsealed_groups_ ABSL_GUARDED_BY(mu_);  // complete, to be encrypted
  std::vector<size_t> sealed_groups_ ABSL_GUARDED_BY(mu_);    // to be written
  KeyRing keys_ ABSL_GUARDED_BY(mu_);
  WriteBudget budget_ ABSL_GUARDED_BY(mu_);
  NvmeFaults faults_ ABSL_GUARDED_BY(mu_);
  uint64_t reads_failed_in_a_row_ ABSL_GUARDED_BY(mu_) = 0;
  bool nvme_abandoned_ ABSL_GUARDED_BY(mu_) = false;
  RecoveryReport recovery_ ABSL_GUARDED_BY(mu_);
  absl::Status nvme_error_ ABSL_GUARDED_BY(mu_);
  absl::Status nvme_read_error_ ABSL_GUARDED_BY(mu_);  // the first
  absl::Status copy_error_ ABSL_GUARDED_BY(mu_);  // of the last batch that failed; Flush clears it
  uint64_t hbm_copied_bytes_ ABSL_GUARDED_BY(mu_) = 0;
  int64_t slots_recorded_ns_ ABSL_GUARDED_BY(mu_) = 0;
  size_t prefetch_flights_ ABSL_GUARDED_BY(mu_) = 0;
  uint64_t landings_ ABSL_GUARDED_BY(mu_) = 0;    // grows whenever a transfer ends
  int waiters_ ABSL_GUARDED_BY(mu_) = 0;          // threads that do the work themselves
  int lease_waiters_ ABSL_GUARDED_BY(mu_) = 0;    // threads that wait for leases of others to end
  bool recovering_ ABSL_GUARDED_BY(mu_) = false;  // placement_ belongs to Recover
  bool stopping_ ABSL_GUARDED_BY(mu_) = false;
  absl::CondVar progress_;                    // something landed, failed or was written
  absl::CondVar mover_wakeup_;                // work without a waiter
  std::vector<std::unique_ptr<Lane>> lanes_;  // constant after Open
  std::vector<Lane*> idle_lanes_ ABSL_GUARDED_BY(mu_);
  uint64_t lane_read_bytes_ ABSL_GUARDED_BY(mu_) = 0;

  std::unique_ptr<IoScheduler> scheduler_;  // null without an NVMe tier; constant after Open
  std::thread mover_;  // lands what nobody waits for; started last, stopped first
};

}  // namespace terrace

#endif  // TERRACE_TIERS_TIER_MANAGER_H_
