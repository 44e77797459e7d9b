#ifndef TERRACE_TIERS_PLACEMENT_H_
#define TERRACE_TIERS_PLACEMENT_H_

#include <array>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/container/inlined_vector.h"
#include "absl/functional/function_ref.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "tiers/block_directory.h"
#include "tiers/nvme_tier.h"
#include "tiers/ring_queue.h"
#include "tiers/slot_table.h"
#include "tiers/tier.h"

namespace terrace {

// Whether room could be made.
enum class Room : uint8_t {
  kOk,
  kWait,  // once transfers that are in flight have ended
  kFull,  // only if somebody releases a lease or drops a block
};

struct PlacementOptions {
  size_t block_bytes = 0;
  std::array<size_t, kPoolCount> slots = {};
  std::string policy = "lru";
  std::optional<NvmeGeometry> nvme;  // nullopt: no such tier
  uint64_t epoch = 0;
  uint64_t session = 0;  // drawn at random
  // So much of an evicted segment may be hot blocks that are rewritten. Owned blocks always are.
  double hot_share = 0;
};

struct PlacementStats {
  std::array<uint64_t, kTierCount> hits = {};  // blocks, at the fastest tier that held them
  uint64_t misses = 0;
  uint64_t puts = 0;
  uint64_t repeated_puts = 0;   // the block was there already
  uint64_t demotions = 0;       // HBM slots copied down
  uint64_t evicted_blocks = 0;  // dropped from their last tier to make room
  uint64_t lost_blocks = 0;     // the bytes could not be read back or written down
  uint64_t prefetched_blocks = 0;
  uint64_t prefetch_dropped = 0;  // hints without effect for want of room
  uint64_t evicted_segments = 0;
  uint64_t write_groups = 0;
  uint64_t rewritten_blocks = 0;  // moved within NVMe because they were owned or hot
  uint64_t written_blocks = 0;    // written to NVMe, rewritten ones included
  uint64_t budget_dropped = 0;    // evicted instead of being offloaded, to save endurance
};

// One block, or an aligned part of it, of a fetch.
struct FetchItem {
  BlockId id;
  uint32_t first_page = 0;
  uint32_t page_count = 0;  // all pages of the block for a whole one

  // Set by ReserveFetch. `place` stays pinned until Unpin; kNoSlot means a miss.
  Place place;
  std::optional<Fill> source;  // pinned while room is made
  Tier hit_tier = Tier::kNvme;
  bool was_prefetching = false;  // the fetch joined a prefetch that nobody waited for
};
using FetchItems = std::vector<FetchItem>;

// Blocks on their way to NVMe as one sequential write, led by a header.
struct WriteGroup {
  struct Block {
    EntryIndex entry = kNoEntry;   // kNoEntry once the block was dropped
    Place source;                  // pinned until the write ended
    PageIndex page = kNoPage;      // where it is written
    PageIndex old_page = kNoPage;  // where it lies, if it is rewritten
    // What the header says, once it was encoded.
    bool recorded = false;
    Retention retention = Retention::kCached;
    bool counted_owned = false;  // a rewrite that its new segment counts as owned already
    bool rewrites() const { return old_page != kNoPage; }
  };
  bool in_use = false;
  bool closed = false;
  PageIndex base = kNoPage;   // of the header
  uint32_t capacity = 0;      // blocks that fit where it lies
  uint32_t pending = 0;       // sources whose bytes are still on the way
  uint32_t in_transit = 0;    // sources in the transit pool
  GroupHeader header;         // once it was closed
  std::vector<Block> blocks;  // capacity reserved at construction
};

// Decides where every block lives: the rules of all tiers, as plain book-keeping. It does no I/O,
// copies no bytes and takes no time; the manager carries out what it decides and reports back when
// transfers land. Every decision follows from the order of the calls alone and never from how fast
// transfers finish: where the right victim is still on its way to disk the answer is kWait, not
// another victim. So a replay hits the same blocks on every disk and engine.
//
// Invariants, between calls:
//   - an entry exists if and only if some copy of its block is not kEmpty;
//   - a memory copy without an NVMe copy is *dirty*: evicting it means writing it down first, or
//     losing the block, which only cached blocks suffer;
//   - an NVMe copy in kFilling has its source pinned by its write group;
//   - a block with a copy in transit has an NVMe copy, be it in kFilling: transit is no tier.
//
// Thread-compatible; guarded by the manager's lock.
class Placement {
 public:
  static constexpr size_t kWriteGroups = 8;
  // A segment with more of its blocks owned than this is not evicted: rewriting them would write
  // more than eight blocks for one that is new.
  static constexpr double kMaxOwnedShare = 7.0 / 8;

  static absl::StatusOr<std::unique_ptr<Placement>> Create(const PlacementOptions& options);

  // --- Put ---
  // kOtherKey: the block is here under another key, or under none, and stays so. kLocked: it is
  // owned and sealed with a key that is not here.
  enum class PutOutcome : uint8_t { kReserved, kAlreadyHere, kOtherKey, kWait, kFull, kLocked };
  struct PutReservation {
    PutOutcome outcome = PutOutcome::kFull;
    Place place;
  };
  // Takes a slot for a new block; the caller fills it and reports FillLanded. A block that is known
  // keeps its bytes, counts as used, and becomes owned if `retention` says so.
  PutReservation ReservePut(const BlockId& id, Retention retention, KeyNumber key = kNoKey);

  // --- Fetch ---
  // Pins a place for every item in `target` (kHbm, kDram or, where neither exists, kTransit), all
  // or none; parts of blocks that are only on NVMe get a transit slot of their own. What is not
  // there yet is queued as a fill.
  Room ReserveFetch(absl::Span<FetchItem> items, Pool target);
  // Queues unpinned fills for blocks that are in a slower tier; stops caring when room is short.
  // Returns how many were queued.
  size_t ReservePrefetch(absl::Span<const BlockId> ids, Pool target, size_t cap);
  void Unpin(Place place);  // of a fetched item

  // --- Fills, in the order they were reserved; nullopt when there is none to start ---
  // From NVMe: demand before prefetch. From another slot: skips those whose source is still
  // filling.
  std::optional<Place> NextRead(bool allow_prefetch);
  // One for a rewrite, to a transit slot of its own. Its bytes go back to NVMe as they are.
  std::optional<Place> NextRewriteRead();
  std::optional<Place> NextCopy();
  size_t queued_copies() const { return copies_.size(); }
  void FillLanded(Place place);
  // The bytes could not be had. `source_lost`: the NVMe copy is unreadable and is forgotten.
  void FillFailed(Place place, bool source_lost);

  // A detached transit slot to read into on the way to HBM; nullopt when none is free.
  std::optional<Place> TakeBounce();
  void ReturnBounce(Place place);
  // Some fill or write has been reserved or submitted and has not ended.
  bool transfers_in_flight() const;

  // --- Write-back ---
  // A group that is complete, its sources resident; stays in use until GroupWritten.
  std::optional<size_t> NextGroup();
  WriteGroup& group(size_t index) { return groups_[index]; }
  void GroupWritten(size_t index, bool written);
  void CloseOpenGroup();
  // After a failed write: nothing is sent to NVMe any more, what is there stays readable.
  void StopNvmeWrites() { nvme_accepts_ = false; }
  bool nvme_accepts() const { return nvme_accepts_; }
  // Nothing can be read there either: forgets every copy but those in transfers.
  void AbandonNvme();
  // While false, cached blocks are dropped where they would be offloaded. A flush writes them
  // still.
  void AllowOffload(bool allowed) { offload_allowed_ = allowed; }

  // --- Upkeep of the log: what must be written besides groups ---
  std::optional<UpkeepTask> NextUpkeep();
  void UpkeepDone(const UpkeepTask& task) { nvme_->UpkeepDone(task); }

  // --- Flush ---
  // How far a flush has come through the blocks that were dirty when it began. One flush at a time.
  struct FlushCursor {
    size_t next = 0;
  };
  FlushCursor BeginFlush();
  // Sends blocks from the cursor on to NVMe; kOk when every block that was dirty at BeginFlush is
  // in a group.
  Room SelectDirty(FlushCursor& cursor);
  // No group up to this generation is unwritten.
  bool WrittenUpTo(uint64_t generation) const;
  uint64_t last_generation() const { return last_generation_; }

  // --- Blocks ---
  void Drop(const BlockId& id);
  void SetRetention(const BlockId& id, Retention retention);
  // Blocks whose key is not there are misses, and stay where they are.
  void SetKeyReady(KeyNumber key, bool ready);
  // Every block that was sealed with this key, in any tier.
  void DropKey(KeyNumber key);
  // The fastest tier that holds the block; nullopt when none does.
  std::optional<Tier> Find(const BlockId& id) const;
  bool OnNvme(const BlockId& id) const;
  // A block found on the device when the tier was opened; false when a newer copy is known.
  bool RecoverBlock(const BlockId& id, PageIndex page, Retention retention, KeyNumber key);

  // --- Views ---
  SlotTable& table(Pool pool) { return *tables_[static_cast<size_t>(pool)]; }
  const SlotTable& table(Pool pool) const { return *tables_[static_cast<size_t>(pool)]; }
  const BlockDirectory& directory() const { return directory_; }
  NvmeTier* nvme() { return nvme_.get(); }
  const NvmeTier* nvme() const { return nvme_.get(); }
  uint32_t pages_per_block() const { return pages_per_block_; }
  // The pool where Put places new blocks.
  Pool put_pool() const;
  const PlacementStats& stats() const { return stats_; }
  // Blocks by the fastest tier that holds them.
  std::array<uint64_t, kTierCount> CountBlocks() const;
  size_t memory_bytes() const;

 private:
  Placement(const PlacementOptions& options, std::vector<std::unique_ptr<EvictionPolicy>> policies);

  void CarryChecksums(const Fill& fill, Place place);
  Place ReserveSlot(Pool pool, EntryIndex entry, const Fill& fill);
  void EndFill(const Fill& fill);
  void EndPin(Place place);
  void CountRewriteOwned(EntryIndex entry);
  void AbandonRewrite(size_t group, Place source);
  bool KeyMissing(const BlockEntry& block) const {
    return key_missing_[static_cast<size_t>(block.key)];
  }
  void ReleaseTransit(SlotIndex slot);

  // placement_fetch.cc
  bool IsPart(const FetchItem& item) const { return item.page_count != pages_per_block_; }
  std::optional<Place> ServingPlace(const BlockEntry& entry, Pool target, bool part) const;
  Tier HitTier(const BlockEntry& entry) const;
  Fill PinSource(const BlockEntry& entry, Pool target, const FetchItem& item);
  void UnpinSource(const Fill& fill);
  Room RoomForFetch(absl::Span<const FetchItem> items, Pool target);
  void JoinFill(FetchItem& item);
  void ReserveItem(FetchItem& item, Pool target);

  // placement_evict.cc
  Room MakeRoom(Pool pool, absl::FunctionRef<size_t()> wanted);
  Room EvictOne(Pool pool);
  bool OnlyMoving(Pool pool, SlotIndex slot) const;
  Room EvictFromHbm(SlotIndex slot);
  Room EvictFromDram(SlotIndex slot);
  void StartDemotion(EntryIndex entry, SlotIndex hbm_slot, Pool target);
  Room NoRoom();
  void DropCopy(EntryIndex entry, Pool pool);
  void EraseIfGone(EntryIndex entry);
  void EvictBlock(EntryIndex entry);
  void DropNvmeCopy(EntryIndex entry);
  void RetrackStuck();
  void Retrack(Place place);
  void Touch(Place place);

  // placement_write.cc
  Room AddToGroup(EntryIndex entry, Place source);
  void Append(EntryIndex entry, Place source);
  Room OpenGroup();
  Room StartGroup();
  Room NextSegment();
  Room RefillReserve();
  std::optional<SegmentIndex> Victim(absl::Span<const SegmentIndex> but) const;
  uint32_t MostRewritten(double share) const;
  void EvictSegment(SegmentIndex victim);
  Room AddRewrites();
  Room AddRewrite(EntryIndex entry);
  void VoidGroupBlock(EntryIndex entry);
  void LeaveGroup(EntryIndex entry);
  void CountOwned(WriteGroup::Block& block, bool owned);
  void EndGroupBlock(WriteGroup::Block& block, bool written);
  uint32_t WrittenPages(SegmentIndex segment) const;
  Room SelectAhead();
  bool WorthWritingAhead(EntryIndex entry) const;
  void ChooseAhead();
  bool Dirty(const BlockEntry& entry) const { return entry.nvme == CopyState::kEmpty; }
  Room SelectForFlush(EntryIndex entry);

  const uint32_t pages_per_block_;
  BlockDirectory directory_;
  std::array<std::unique_ptr<SlotTable>, kPoolCount> tables_;
  std::unique_ptr<NvmeTier> nvme_;
  bool nvme_accepts_ = false;
  bool offload_allowed_ = true;
  const double hot_share_;
  std::vector<bool> key_missing_;  // by KeyNumber

  // Queued fills. Elements may be stale: a fill whose class was raised stands in both read queues,
  // and `queued` in the Fill says whether it is still to be started.
  RingQueue<Place> demand_reads_;
  RingQueue<Place> prefetch_reads_;
  RingQueue<Place> copies_;
  size_t outstanding_fills_ = 0;     // reserved, neither landed nor failed
  size_t outstanding_prefetch_ = 0;  // of these, those nobody waits for

  std::vector<WriteGroup> groups_;
  std::optional<size_t> open_group_;
  std::deque<size_t> closed_groups_;
  uint64_t last_generation_ = 0;
  size_t reserved_since_select_ = 0;
  std::vector<EntryIndex> doomed_;   // scratch of EvictSegment
  std::deque<EntryIndex> rewrites_;  // kQueued, or no longer to be rewritten
  RingQueue<Place> rewrite_reads_;
  std::vector<SlotIndex> selected_;   // still to be written ahead, the coldest last
  std::vector<EntryIndex> flushing_;  // dirty at BeginFlush, by entry

  // Owned blocks that were found unmovable and taken out of the eviction order, coldest first.
  std::vector<Place> stuck_;
  bool stuck_may_move_ = false;  // a pin or an NVMe copy has gone since

  PlacementStats stats_;
};

}  // namespace terrace

#endif  // TERRACE_TIERS_PLACEMENT_H_
