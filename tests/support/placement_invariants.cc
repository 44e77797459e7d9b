#include "tests/support/placement_invariants.h"

#include <map>
#include <set>

#include "absl/strings/str_cat.h"

namespace terrace {
namespace {

constexpr Pool kPools[] = {Pool::kHbm, Pool::kDram, Pool::kTransit};

std::string Name(Pool pool, SlotIndex slot) {
  constexpr const char* kNames[] = {"HBM", "DRAM", "transit"};
  return absl::StrCat(kNames[static_cast<size_t>(pool)], " slot ", static_cast<uint32_t>(slot));
}

// Gathers the checks; the first failure is the answer.
class Inspection {
 public:
  Inspection(Placement& placement, absl::Span<const BlockId> ids)
      : placement_(placement), ids_(ids) {}

  std::string Run() {
    CheckGroups();
    CheckEntries();
    for (Pool pool : kPools) CheckTable(pool);
    if (placement_.nvme() != nullptr) CheckDevice();
    CheckCounts();
    return problem_;
  }

 private:
  template <typename... Parts>
  void Expect(bool condition, const Parts&... parts) {
    if (!condition && problem_.empty()) problem_ = absl::StrCat(parts...);
  }

  void CheckGroups() {
    if (placement_.nvme() == nullptr) return;
    for (size_t i = 0; i < Placement::kWriteGroups; ++i) {
      const WriteGroup& group = placement_.group(i);
      if (!group.in_use) continue;
      uint32_t filling = 0;
      for (const WriteGroup::Block& block : group.blocks) {
        const SlotTable& slots = placement_.table(block.source.pool);
        Expect(slots.pins(block.source.slot) > 0, "a source of group ", i, " is not pinned");
        const bool is_filling = slots.state(block.source.slot) == CopyState::kFilling;
        if (is_filling && slots.fill(block.source.slot).group == i) ++filling;
        if (block.entry == kNoEntry) continue;
        const BlockEntry& entry = placement_.directory()[block.entry];
        Expect(!block.rewrites() || entry.page == block.old_page, "group ", i,
               " rewrites a block that is elsewhere");
        Expect(block.rewrites() || entry.slot(block.source.pool) == block.source.slot, "group ", i,
               " writes a block from ", Name(block.source.pool, block.source.slot),
               ", which is not its slot");
        ++writers_[block.entry];
      }
      Expect(group.pending == filling, "group ", i, " waits for ", group.pending, " of ", filling);
      Expect(group.blocks.size() <= group.capacity, "group ", i, " is over its capacity");
    }
  }

  void CheckEntries() {
    size_t known = 0;
    for (const BlockId& id : ids_) {
      const EntryIndex entry = placement_.directory().Find(id);
      if (entry == kNoEntry) continue;
      ++known;
      const BlockEntry& block = placement_.directory()[entry];
      Expect(block.id == id, "block ", id.low, " is found in an entry of another");
      Expect(block.in_memory() || block.nvme != CopyState::kEmpty, "block ", id.low,
             " is known and nowhere");
      for (Pool pool : kPools) CheckMemoryCopy(block, entry, pool);
      CheckNvmeCopy(block, entry);
    }
    Expect(known == placement_.directory().size(), placement_.directory().size(), " entries for ",
           known, " blocks");
  }

  void CheckMemoryCopy(const BlockEntry& block, EntryIndex entry, Pool pool) {
    const SlotIndex slot = block.slot(pool);
    if (slot == kNoSlot) return;
    const SlotTable& slots = placement_.table(pool);
    Expect(slots.entry(slot) == entry, "block ", block.id.low, " thinks it is in ",
           Name(pool, slot), ", which does not");
    Expect(slots.state(slot) == CopyState::kFilling || slots.state(slot) == CopyState::kResident,
           Name(pool, slot), " has a block but no bytes");
    if (pool != Pool::kTransit) return;
    // Transit is no tier: what is there is on NVMe or on its way.
    Expect(block.nvme != CopyState::kEmpty, "block ", block.id.low, " is in no tier");
  }

  void CheckNvmeCopy(const BlockEntry& block, EntryIndex entry) {
    const size_t writers = writers_.contains(entry) ? writers_[entry] : 0;
    const bool rewritten = block.rewrite == Rewrite::kInGroup;
    Expect(!rewritten || block.nvme == CopyState::kResident, "block ", block.id.low,
           " is rewritten from nowhere");
    Expect(writers == (block.nvme == CopyState::kFilling || rewritten ? 1u : 0u), "block ",
           block.id.low, " is in ", writers, " groups");
    Expect((block.page == kNoPage) == (block.nvme == CopyState::kEmpty), "block ", block.id.low,
           " has a page but no copy there, or the other way round");
    if (block.page == kNoPage) return;
    NvmeTier& nvme = *placement_.nvme();
    ++device_blocks_;
    Expect(nvme.entry_near(block.page) == entry, "the page of block ", block.id.low,
           " belongs to another");
    const uint32_t first = static_cast<uint32_t>(block.page);
    const uint32_t last = first + nvme.geometry().pages_per_block - 1;
    Expect(nvme.SegmentAt(block.page) == nvme.SegmentAt(PageIndex{last}), "block ", block.id.low,
           " crosses segments");
    Expect(uint64_t{last + 1} * kPageBytes <= nvme.geometry().total_bytes(), "block ", block.id.low,
           " lies beyond the device");
    for (uint32_t page = first; page <= last; ++page) {
      Expect(pages_.insert(page).second, "page ", page, " is in two blocks");
    }
  }

  void CheckTable(Pool pool) {
    const SlotTable& slots = placement_.table(pool);
    size_t empty = 0;
    size_t pinned = 0;
    size_t tracked = 0;
    size_t falling = 0;
    for (uint32_t i = 0; i < slots.size(); ++i) {
      const SlotIndex slot{i};
      const EntryIndex entry = slots.entry(slot);
      const CopyState state = slots.state(slot);
      if (state == CopyState::kEmpty) ++empty;
      if (slots.pins(slot) > 0) ++pinned;
      if (slots.tracked(slot)) ++tracked;
      const bool occupied = state != CopyState::kEmpty;
      if (entry == kNoEntry && occupied && slots.leases(slot) == 0) ++falling;
      if (entry != kNoEntry) {
        Expect(placement_.directory()[entry].slot(pool) == slot, Name(pool, slot),
               " has a block that does not know");
        const bool used = slots.pins(slot) > 0 || state == CopyState::kFilling;
        Expect(pool != Pool::kTransit || used, Name(pool, slot), " leaked");
      } else {
        Expect(!slots.tracked(slot), Name(pool, slot), " is ranked without a block");
        const bool used = slots.pins(slot) > 0 || state == CopyState::kFilling;
        Expect(used == (state != CopyState::kEmpty), Name(pool, slot), " is kept for nobody");
      }
    }
    Expect(slots.free_count() == empty, Name(pool, SlotIndex{0}), " and on: ", slots.free_count(),
           " free of ", empty);
    Expect(slots.pinned_count() == pinned, "pins do not add up");
    Expect(slots.falling_count() == falling, Name(pool, SlotIndex{0}),
           " and on: ", slots.falling_count(), " falling of ", falling);
    std::set<SlotIndex> ranked;
    slots.policy().VisitColdest([&](SlotIndex slot) {
      Expect(slots.tracked(slot), Name(pool, slot), " is ranked and not tracked");
      return ranked.insert(slot).second;
    });
    Expect(ranked.size() == tracked, tracked, " tracked slots, ", ranked.size(), " ranked");
  }

  void CheckDevice() {
    const NvmeTier& nvme = *placement_.nvme();
    size_t visited = 0;
    for (uint32_t i = 0; i < nvme.geometry().segment_count; ++i) {
      nvme.VisitBlocks(SegmentIndex{i}, [&](EntryIndex entry) {
        ++visited;
        Expect(nvme.SegmentAt(placement_.directory()[entry].page) == SegmentIndex{i}, "segment ", i,
               " has a block of another");
      });
    }
    Expect(visited == device_blocks_, visited, " blocks on the device for ", device_blocks_);
    Expect(nvme.peak_bytes() <= nvme.geometry().total_bytes(), "the device overflows");
    Expect(nvme.used_bytes() <= nvme.peak_bytes(), "more bytes in use than ever");
  }

  void CheckCounts() {
    const auto counts = placement_.CountBlocks();
    Expect(counts[0] + counts[1] + counts[2] == placement_.directory().size(),
           "blocks do not count in one tier each");
    Expect(counts[0] <= placement_.table(Pool::kHbm).size(), "HBM is over its capacity");
    Expect(counts[1] <= placement_.table(Pool::kDram).size(), "DRAM is over its capacity");
  }

  Placement& placement_;
  const absl::Span<const BlockId> ids_;
  std::map<EntryIndex, size_t> writers_;  // groups that write a block
  std::set<uint32_t> pages_;
  size_t device_blocks_ = 0;
  std::string problem_;
};

}  // namespace

std::string FindInconsistency(Placement& placement, absl::Span<const BlockId> ids) {
  return Inspection(placement, ids).Run();
}

}  // namespace terrace
