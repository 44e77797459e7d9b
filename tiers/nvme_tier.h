#ifndef TERRACE_TIERS_NVME_TIER_H_
#define TERRACE_TIERS_NVME_TIER_H_

#include <cstddef>
#include <cstdint>
#include <deque>
#include <optional>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/types/span.h"
#include "io/checksum.h"
#include "tiers/block_directory.h"
#include "tiers/nvme_format.h"

namespace terrace {

enum class SegmentIndex : uint32_t {};

// The segment log's map: which segment is open, which blocks lie where, and the checksums of their
// pages. Does no I/O. One segment at a time takes appends; sealed ones are evicted oldest first and
// wait on the free list until nobody reads them any more.
//
// Thread-compatible, and sized once.
class NvmeTier {
 public:
  NvmeTier(const NvmeGeometry& geometry, uint64_t epoch);

  const NvmeGeometry& geometry() const { return geometry_; }
  uint64_t epoch() const { return epoch_; }

  // --- Appending ---
  bool has_open_segment() const { return open_.has_value(); }
  // Pages between the append point and the end of the open segment; 0 without one.
  uint32_t open_pages_left() const;
  // REQUIRES: an open segment.
  PageIndex append_point() const;
  // The page after the open segment.
  PageIndex append_limit() const;
  // Moves the append point past a group of which `pages` were used, and stamps it.
  uint64_t FinishGroup(uint32_t pages);
  void SealOpenSegment();
  size_t free_segments() const { return free_.size(); }
  // Opens the segment that has been free longest; false while it is still read or written.
  // REQUIRES: no open segment, free_segments() > 0.
  bool OpenNextSegment();

  // --- Blocks ---
  void Place(PageIndex page, EntryIndex entry, bool owned);
  void Remove(PageIndex page, bool owned);
  void SetOwned(PageIndex page, bool owned);
  // The block that starts in the same block-sized stretch as `page`; kNoEntry if none does.
  EntryIndex entry_near(PageIndex page) const { return entries_[Stretch(page)]; }
  absl::Span<PageChecksum> checksums(PageIndex page, uint32_t count) {
    return absl::MakeSpan(checksums_).subspan(static_cast<size_t>(page), count);
  }

  // Transfers in flight; a segment is not written again before both have ended.
  void AddReader(PageIndex page) { ++SegmentOf(page).readers; }
  void RemoveReader(PageIndex page) { --SegmentOf(page).readers; }
  void AddWriter(PageIndex page) { ++SegmentOf(page).writers; }
  void RemoveWriter(PageIndex page) { --SegmentOf(page).writers; }

  // --- Eviction ---
  // The oldest sealed segment without owned blocks.
  std::optional<SegmentIndex> Victim() const;
  // Whether one of the `count` segments that Victim would name first has writes in flight.
  bool AnyVictimBeingWritten(size_t count) const;
  // Segments that are kept free; none where that would cost more than a quarter of the tier.
  size_t reserve_segments() const { return geometry_.segment_count < 4 ? 0 : 1; }
  void VisitBlocks(SegmentIndex segment, absl::FunctionRef<void(EntryIndex)> visit) const;
  // Puts a sealed segment on the free list. REQUIRES: no blocks left in it.
  void FreeSegment(SegmentIndex segment);

  // --- Recovery: segments are restored oldest first, before anything is appended ---
  PageIndex SegmentStart(SegmentIndex segment) const;
  SegmentIndex SegmentAt(PageIndex page) const {
    return SegmentIndex{(static_cast<uint32_t>(page) - kSuperblockPages) / geometry_.segment_pages};
  }
  void RestoreSealed(SegmentIndex segment, uint32_t used_pages);
  // The newest segment goes on where it ended. Last of all.
  void ReopenNewest();
  void RestoreGeneration(uint64_t last) { next_generation_ = last + 1; }

  // Bytes of the file that hold data or headers, now and at most so far.
  uint64_t used_bytes() const { return used_pages_ * kPageBytes; }
  uint64_t peak_bytes() const { return peak_pages_ * kPageBytes; }
  size_t memory_bytes() const;

 private:
  enum class State : uint8_t { kFree, kOpen, kSealed };
  struct Segment {
    State state = State::kFree;
    uint32_t used_pages = 0;
    uint32_t blocks = 0;
    uint32_t owned = 0;
    uint32_t readers = 0;
    uint32_t writers = 0;
  };
  Segment& SegmentOf(PageIndex page) { return segments_[static_cast<size_t>(SegmentAt(page))]; }
  // Where entries_ keeps the block at `page`: blocks start in different stretches.
  size_t Stretch(PageIndex page) const;
  void Use(uint32_t pages);

  const NvmeGeometry geometry_;
  const uint64_t epoch_;
  const uint32_t stretches_;  // block-sized stretches in a segment, the last one perhaps cut
  std::vector<Segment> segments_;
  std::vector<EntryIndex> entries_;      // [segments, stretches_]
  std::vector<PageChecksum> checksums_;  // [pages of the device]
  std::optional<SegmentIndex> open_;
  std::deque<SegmentIndex> free_;
  std::deque<SegmentIndex> sealed_;  // oldest first
  uint64_t next_generation_ = 1;
  uint64_t used_pages_ = kSuperblockPages;
  uint64_t peak_pages_ = kSuperblockPages;
};

}  // namespace terrace

#endif  // TERRACE_TIERS_NVME_TIER_H_
