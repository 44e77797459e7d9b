#ifndef TERRACE_TIERS_SLOT_TABLE_H_
#define TERRACE_TIERS_SLOT_TABLE_H_

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <vector>

#include "absl/types/span.h"
#include "io/checksum.h"
#include "tiers/block_directory.h"
#include "tiers/copy_state.h"
#include "tiers/eviction_policy.h"
#include "tiers/tier.h"

namespace terrace {

// How the bytes of a slot that is being filled get there. Set when the slot is reserved.
struct Fill {
  enum class Source : uint8_t {
    kCaller,  // a Put copies them in
    kSlot,    // from another slot, which stays pinned meanwhile
    kNvme,    // pages of the NVMe tier, whose segment is kept from reuse meanwhile
  };
  Source source = Source::kCaller;
  Place slot;                // kSlot
  PageIndex page = kNoPage;  // kNvme: first page to read
  uint32_t first_page = 0;   // kNvme: where in the slot they go, in pages
  uint32_t page_count = 0;   // kNvme
  bool prefetch = false;     // nobody waits for it yet
  BlockId id;                // kNvme, and of an encrypted block: what it is bound to
  KeyNumber key = kNoKey;    // kNvme
  bool raw = false;          // kNvme: for a rewrite, so it stays encrypted
  bool queued = false;       // not started: its class may still be raised
  bool drains = false;       // kSlot: a demotion, whose source falls free when it lands
  // The write group that waits for these bytes.
  std::optional<uint8_t> group;
};

// Book-keeping for the slots of one pool: state, pins, which block, eviction order, free list, and
// the page checksums that were made when the block was put and travel with it. Holds no block
// bytes.
//
// A slot is *attached* when a directory entry points at it. A slot that is detached (its block was
// dropped, evicted or only passes through) returns to the free list with its last pin.
//
// Thread-compatible, and sized once.
class SlotTable {
 public:
  // `policy` may be null for a pool that evicts nothing by itself.
  SlotTable(size_t slots, size_t pages_per_slot, std::unique_ptr<EvictionPolicy> policy);

  size_t size() const { return slots_.size(); }
  size_t free_count() const { return free_.size(); }
  // Slots that a lease, a ticket or a transfer keeps from eviction.
  size_t pinned_count() const { return pinned_; }

  CopyState state(SlotIndex slot) const { return At(slot).state; }
  EntryIndex entry(SlotIndex slot) const { return At(slot).entry; }
  uint32_t pins(SlotIndex slot) const { return At(slot).pins; }
  Fill& fill(SlotIndex slot) { return At(slot).fill; }
  const Fill& fill(SlotIndex slot) const { return At(slot).fill; }
  absl::Span<PageChecksum> checksums(SlotIndex slot) {
    return absl::MakeSpan(checksums_)
        .subspan(static_cast<size_t>(slot) * pages_per_slot_, pages_per_slot_);
  }

  // Takes a free slot into kFilling, attached to `entry` unless that is kNoEntry.
  // REQUIRES: free_count() > 0.
  SlotIndex Reserve(EntryIndex entry);
  // Counts a slot as one whose leases, not transfers, decide when it can be free again, until each
  // of them has given it back. A cancelled fill counts until it has ended.
  void Lend(SlotIndex slot);
  void TakeBack(SlotIndex slot);
  bool lent(SlotIndex slot) const { return At(slot).lent; }
  uint32_t leases(SlotIndex slot) const { return At(slot).leases; }
  size_t lent_count() const { return lent_; }
  // Detached slots that no lease keeps: free as soon as the transfers that use them have ended.
  size_t falling_count() const { return falling_; }
  // The bytes are there. A detached slot that nobody pinned is freed at once.
  void Land(SlotIndex slot);
  // The fill failed: the slot is detached and freed, or kept as kFailed for those who wait on it.
  void Fail(SlotIndex slot);

  void Pin(SlotIndex slot);
  void Unpin(SlotIndex slot);  // frees a detached slot with its last pin, unless it is filling
  // The slot's block is gone or elsewhere: frees the slot now, or with its last pin.
  void Detach(SlotIndex slot);

  // --- Eviction order; REQUIRES a policy ---
  void Track(SlotIndex slot, const BlockId& id);
  void Untrack(SlotIndex slot);
  bool tracked(SlotIndex slot) const { return At(slot).tracked; }
  void Touch(SlotIndex slot);        // no effect when not tracked
  void MakeColdest(SlotIndex slot);  // no effect when not tracked
  const EvictionPolicy& policy() const { return *policy_; }

  size_t memory_bytes() const;

 private:
  struct Slot {
    EntryIndex entry = kNoEntry;
    uint32_t pins = 0;
    CopyState state = CopyState::kEmpty;
    bool tracked = false;
    uint32_t leases = 0;
    bool lent = false;  // has leases, or had some and is still being filled
    Fill fill;
  };
  Slot& At(SlotIndex slot) { return slots_[static_cast<size_t>(slot)]; }
  const Slot& At(SlotIndex slot) const { return slots_[static_cast<size_t>(slot)]; }
  static bool Falling(const Slot& slot) {
    return slot.entry == kNoEntry && slot.state != CopyState::kEmpty && slot.leases == 0;
  }
  void Recount(const Slot& slot, bool was_falling);
  void EndLoan(Slot& slot);
  void Free(SlotIndex slot);

  const size_t pages_per_slot_;
  const std::unique_ptr<EvictionPolicy> policy_;
  std::vector<Slot> slots_;
  std::vector<SlotIndex> free_;
  std::vector<PageChecksum> checksums_;  // [slots, pages_per_slot]
  size_t pinned_ = 0;
  size_t lent_ = 0;
  size_t falling_ = 0;
};

}  // namespace terrace

#endif  // TERRACE_TIERS_SLOT_TABLE_H_
