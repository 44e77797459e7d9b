#ifndef TERRACE_TIERS_BLOCK_DIRECTORY_H_
#define TERRACE_TIERS_BLOCK_DIRECTORY_H_

#include <array>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "absl/container/flat_hash_set.h"
#include "absl/functional/function_ref.h"
#include "absl/hash/hash.h"
#include "tiers/block_id.h"
#include "tiers/copy_state.h"
#include "tiers/tier.h"

namespace terrace {

// Names an entry of the directory while its block is known.
enum class EntryIndex : uint32_t {};
inline constexpr EntryIndex kNoEntry{UINT32_MAX};

// Page number on the NVMe device (units of kPageBytes).
enum class PageIndex : uint32_t {};
inline constexpr PageIndex kNoPage{UINT32_MAX};

// Names a key that blocks are sealed with, among those that the manager has heard of.
enum class KeyNumber : uint16_t {};
inline constexpr KeyNumber kNoKey{0};

// A block that is moved within NVMe is served from its old place until it is in the new one.
enum class Rewrite : uint8_t { kNo, kQueued, kInGroup };

// Where the copies of one block are. 40 bytes; with its share of the hash index, its page checksums
// and its place in its segment a 64 KiB block costs about 120 bytes, or 150 where blocks are
// encrypted, inside the budget of 160.
struct BlockEntry {
  BlockId id;
  // Slot by pool, kNoSlot where there is no copy.
  std::array<SlotIndex, kPoolCount> slots = {kNoSlot, kNoSlot, kNoSlot};
  PageIndex page = kNoPage;
  CopyState nvme = CopyState::kEmpty;
  Retention retention = Retention::kCached;
  KeyNumber key = kNoKey;
  bool hot = false;  // fetched from NVMe since it was written there
  Rewrite rewrite = Rewrite::kNo;

  SlotIndex slot(Pool pool) const { return slots[static_cast<size_t>(pool)]; }
  SlotIndex& slot(Pool pool) { return slots[static_cast<size_t>(pool)]; }
  bool in_memory() const {
    return slots[0] != kNoSlot || slots[1] != kNoSlot || slots[2] != kNoSlot;
  }
};
static_assert(sizeof(BlockEntry) <= 40);

// Every block that some tier holds. Sized once; thread-compatible.
class BlockDirectory {
 public:
  explicit BlockDirectory(size_t max_blocks);
  BlockDirectory(const BlockDirectory&) = delete;
  BlockDirectory& operator=(const BlockDirectory&) = delete;

  EntryIndex Find(const BlockId& id) const;  // kNoEntry when unknown
  // Starts loading what a Find of `id` will look at.
  void Prefetch(const BlockId& id) const { index_.prefetch(id); }
  // REQUIRES: `id` is unknown and fewer than max_blocks are known.
  EntryIndex Insert(const BlockId& id);
  void Erase(EntryIndex entry);

  BlockEntry& operator[](EntryIndex entry) { return entries_[static_cast<uint32_t>(entry)]; }
  const BlockEntry& operator[](EntryIndex entry) const {
    return entries_[static_cast<uint32_t>(entry)];
  }
  size_t size() const { return index_.size(); }
  // Every known block, in no particular order. `visit` must not change the directory.
  void Visit(absl::FunctionRef<void(EntryIndex)> visit) const {
    for (EntryIndex entry : index_) visit(entry);
  }
  // Grows with every Erase: what was known before is known still while it stays the same.
  uint64_t erased_count() const { return erased_count_; }
  size_t memory_bytes() const;

 private:
  // The set holds entry numbers and looks through them at the ids, which halves its size.
  struct Hash {
    using is_transparent = void;
    const std::vector<BlockEntry>* entries;
    size_t operator()(const BlockId& id) const { return absl::HashOf(id); }
    size_t operator()(EntryIndex entry) const {
      return absl::HashOf((*entries)[static_cast<uint32_t>(entry)].id);
    }
  };
  struct Equal {
    using is_transparent = void;
    const std::vector<BlockEntry>* entries;
    const BlockId& Id(EntryIndex entry) const {
      return (*entries)[static_cast<uint32_t>(entry)].id;
    }
    bool operator()(EntryIndex a, EntryIndex b) const { return a == b; }
    bool operator()(EntryIndex a, const BlockId& b) const { return Id(a) == b; }
    bool operator()(const BlockId& a, EntryIndex b) const { return a == Id(b); }
  };

  std::vector<BlockEntry> entries_;
  std::vector<EntryIndex> free_;
  uint64_t erased_count_ = 0;
  absl::flat_hash_set<EntryIndex, Hash, Equal> index_;
};

}  // namespace terrace

#endif  // TERRACE_TIERS_BLOCK_DIRECTORY_H_
