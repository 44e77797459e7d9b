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

// What a segment is going through. Only the phase to the right follows, but for a segment that
// nothing was kept of, which skips kDraining and kDrainSync.
//
//   kFree      may be opened
//   kOpen      takes appends
//   kWriting   full; its last groups are being written
//   kSealSync  waits for a sync that makes its groups durable
//   kFooter    its footer is due, or being written
//   kSealed    may be evicted
//   kDraining  evicted; the blocks that are kept are being rewritten elsewhere
//   kDrainSync waits for a sync that makes their new places durable
//   kDrained   waits until all that were evicted before it are kFree
//   kFreeing   the manifest record that it is free is due, or being written
//   kFreeSync  waits for a sync that makes that record durable; then kFree
//
// So no power cut can find a kept block neither here nor there, nor take what an older use left for
// the newer one, nor bring back a block that moved here from a segment that is not free yet, and
// was dropped here.
enum class SegmentPhase : uint8_t {
  kFree,
  kOpen,
  kWriting,
  kSealSync,
  kFooter,
  kSealed,
  kDraining,
  kDrainSync,
  kDrained,
  kFreeing,
  kFreeSync,
};

// A transfer that keeps the log recoverable.
struct UpkeepTask {
  enum class Kind : uint8_t { kManifest, kFooter, kSync };
  Kind kind = Kind::kSync;
  SegmentIndex segment{};  // kManifest, kFooter
  uint64_t number = 0;     // kManifest: version; kSync: how many syncs with this one
};

// The segment log's map: which segment is in which phase, which blocks lie where, the checksums of
// their pages, and what must be written besides groups. Does no I/O. One segment at a time takes
// appends.
//
// Thread-compatible, and sized once.
class NvmeTier {
 public:
  // `session`: drawn at random by each process, so that its groups are like those of no other.
  NvmeTier(const NvmeGeometry& geometry, uint64_t epoch, uint64_t session = 0);

  const NvmeGeometry& geometry() const { return geometry_; }
  uint64_t epoch() const { return epoch_; }
  // Before anything is appended or restored.
  void SetEpoch(uint64_t epoch) { epoch_ = epoch; }
  SegmentIndex SegmentAt(PageIndex page) const {
    return geometry_.SegmentOf(static_cast<uint32_t>(page));
  }
  SegmentPhase phase(SegmentIndex segment) const { return At(segment).phase; }

  // --- Appending ---
  bool has_open_segment() const { return open_.has_value(); }
  // Pages between the append point and the end of the open segment's data; 0 without one.
  uint32_t open_pages_left() const;
  // REQUIRES: an open segment.
  PageIndex append_point() const;
  // The page after the open segment's data.
  PageIndex append_limit() const;
  // Moves the append point past a group of so many blocks; what its header says.
  GroupHeader FinishGroup(uint32_t blocks);
  // Keeps the encoded header of a finished group for the footer.
  void KeepHeader(PageIndex base, absl::Span<const std::byte> header);
  void SealOpenSegment();
  // Segments in the order in which they will be opened; the first ones may not be kFree yet.
  size_t free_segments() const { return free_.size(); }
  // Whether the first of them can be opened; asks for the sync that it may wait for.
  // REQUIRES: free_segments() > 0.
  bool NextIsFree();
  // Opens it; false while it is not kFree, still read, or too many footers are due.
  // REQUIRES: no open segment, free_segments() > 0.
  bool OpenNextSegment();

  // --- Blocks ---
  void Place(PageIndex page, EntryIndex entry, bool owned);
  void Remove(PageIndex page, bool owned);
  void SetOwned(PageIndex page, bool owned);
  // The block that starts in the same block-sized stretch as `page`; kNoEntry if none does.
  EntryIndex entry_near(PageIndex page) const { return entries_[Stretch(page)]; }
  absl::Span<PageChecksum> checksums(PageIndex page, uint32_t count) {
    return absl::MakeSpan(checksums_)
        .subspan(static_cast<size_t>(page) - geometry_.log_start(), count);
  }
  // What sealed the block at `page`. Place for them is taken with the first call.
  BlockSeal& seal(PageIndex page);
  // What the group record of a block says holds no more, which the manifest has to tell.
  void MarkDead(PageIndex page);
  void ReverseRetention(PageIndex page);
  // Of a block that was found on the device, and that the restored marks do not speak of.
  void ForgetMarks(PageIndex page);

  // Transfers in flight; a segment is not written again before both have ended.
  void AddReader(PageIndex page) { ++At(SegmentAt(page)).readers; }
  void RemoveReader(PageIndex page) { --At(SegmentAt(page)).readers; }
  // Be it for blocks that have been evicted since.
  bool being_read(SegmentIndex segment) const { return At(segment).readers > 0; }
  void AddWriter(PageIndex page) { ++At(SegmentAt(page)).writers; }
  void RemoveWriter(PageIndex page);

  // --- Eviction ---
  // Segments that are kept free; none where that would cost more than a quarter of the tier.
  size_t reserve_segments() const { return geometry_.segment_count < 4 ? 0 : 1; }
  // Sealed segments, oldest first, whether their footers are written already or not.
  const std::deque<SegmentIndex>& sealed() const { return sealed_; }
  uint32_t used_pages(SegmentIndex segment) const { return At(segment).used_pages; }
  std::optional<SegmentIndex> open_segment() const { return open_; }
  uint32_t owned_blocks(SegmentIndex segment) const { return At(segment).owned; }
  void VisitBlocks(SegmentIndex segment, absl::FunctionRef<void(EntryIndex)> visit) const;
  // Takes a segment in kSealed out of service; it falls free once the blocks that it still has are
  // removed. Goes to the end of the free list at once, so that the order of use does not depend on
  // when that is.
  void Retire(SegmentIndex segment);
  void VisitFree(absl::FunctionRef<void(SegmentIndex)> visit) const;

  // --- Upkeep ---
  // The next transfer that is due; it stays in flight until UpkeepDone. `written` tells how many
  // pages of a segment lie before the first group that is not written yet.
  std::optional<UpkeepTask> NextUpkeep(absl::FunctionRef<uint32_t(SegmentIndex)> written);
  void UpkeepDone(const UpkeepTask& task);
  bool upkeep_pending() const;
  // Makes the manifest records of all changes so far due.
  void RequestManifest();
  bool manifest_pending() const { return manifest_pending_ > 0; }
  // A sync that covers everything written by now, and whether it is done.
  uint64_t RequestSync();
  bool Synced(uint64_t number) const { return syncs_done_ >= number; }
  // Asks for a record of how much of the open segment is durable, if that has changed.
  void RequestMark();
  // Writes what the last records say to their other copies as well, where they do not say it yet.
  void RequestCopies();
  // A segment of this generation or an older one waits for its footer.
  bool FooterPending(uint64_t generation) const;
  ManifestRecord manifest_record(SegmentIndex segment) const;
  FooterHeader footer_header(SegmentIndex segment) const;
  absl::Span<const std::byte> footer_headers(SegmentIndex segment) const;

  // --- Recovery: segments are restored in the order of their generations, before any append ---
  struct Restored {
    SegmentIndex segment{};
    uint64_t generation = 0;
    uint32_t used_pages = 0;
    bool sealed = false;  // has a footer
    uint32_t durable_pages = 0;
    uint64_t manifest_version = 0;  // 0: no record
    std::vector<bool> dead;         // as ManifestRecord; may be empty
    std::vector<bool> reversed;
    uint64_t newest_generation = 0;  // that is known of it
    // Of the last group of an unsealed one that can go on; 0 where it has none.
    std::optional<uint64_t> last_stamp;
  };
  void Restore(const Restored& segment);
  // A segment that is not in use, but has been.
  void RestoreFree(SegmentIndex segment, uint64_t generation, uint64_t manifest_version);
  // A place for the headers of an unsealed segment, so that it can still be sealed; false when
  // there are too many of them.
  bool RestoreHeaders(SegmentIndex segment, absl::Span<const absl::Span<const std::byte>> headers,
                      absl::Span<const PageIndex> bases);
  // What the manifest says of the segment is in one of its copies only.
  void RestoreInOneCopy(SegmentIndex segment);
  // The newest segment goes on where it ended if it can. Last of all.
  void ReopenNewest();
  void RestoreGeneration(uint64_t last) { next_generation_ = last + 1; }

  // Bytes of the file that hold data or say what does, now and at most so far.
  uint64_t used_bytes() const { return used_pages_ * kPageBytes; }
  uint64_t peak_bytes() const { return peak_pages_ * kPageBytes; }
  size_t memory_bytes() const;

 private:
  struct Segment {
    SegmentPhase phase = SegmentPhase::kFree;
    bool manifest_stale = false;    // something changed since the last record was begun
    bool manifest_queued = false;   // a record is due
    bool manifest_writing = false;  // one is in flight
    uint32_t used_pages = 0;
    uint32_t blocks = 0;
    uint32_t owned = 0;
    uint32_t readers = 0;
    uint32_t writers = 0;
    uint32_t durable_pages = 0;
    uint32_t syncing_pages = 0;          // durable with the sync in flight
    uint32_t marked_pages = 0;           // durable_pages in the last record
    uint64_t generation = 0;             // of this use, or the last one; 0: never used
    uint64_t newest_generation = 0;      // of its groups
    std::optional<uint64_t> last_stamp;  // of the last group, or 0; nullopt: nothing can follow
    uint64_t changes = 0;                // of what a record says besides durable pages
    uint64_t recorded = 0;               // of these, those in the last record
    uint64_t recorded_before = 0;        // and in the one before, which is the other copy
    bool in_one_copy = false;            // is in one_copy_
    uint64_t manifest_version = 0;
    uint64_t manifest_sync = 0;  // the sync that makes the last record durable
    uint64_t sync = 0;           // the sync that a phase waits for
  };
  // The headers of a segment that is not sealed yet.
  struct Draft {
    std::optional<SegmentIndex> segment;
    struct Header {
      PageIndex base;
      size_t offset;
      size_t bytes;
    };
    std::vector<Header> headers;
    std::vector<std::byte> bytes;
  };
  // Of the open segment, and as many as write groups can fill before the first of them is written.
  static constexpr size_t kDrafts = 10;

  Segment& At(SegmentIndex segment) { return segments_[static_cast<size_t>(segment)]; }
  const Segment& At(SegmentIndex segment) const { return segments_[static_cast<size_t>(segment)]; }
  Draft* DraftOf(SegmentIndex segment);
  const Draft* DraftOf(SegmentIndex segment) const;
  void AddToDraft(Draft& draft, PageIndex base, size_t bytes);
  // Where entries_ keeps the block at `page`: blocks start in different stretches.
  size_t Stretch(PageIndex page) const;
  size_t FirstStretch(SegmentIndex segment) const;
  PageIndex SegmentStart(SegmentIndex segment) const {
    return PageIndex{static_cast<uint32_t>(geometry_.SegmentPage(segment))};
  }
  void Use(uint32_t pages);
  void AwaitSync(SegmentIndex segment, SegmentPhase phase, bool hurry);
  void Written(SegmentIndex segment);
  void Drained(SegmentIndex segment);
  void FreeDrained();
  void QueueManifest(SegmentIndex segment);
  bool MayStart(const UpkeepTask& task) const;
  void ManifestChanged(SegmentIndex segment);
  void ManifestDone(SegmentIndex segment);
  void SyncDone(uint64_t number);
  void AfterSync(SegmentIndex segment);

  const NvmeGeometry geometry_;
  uint64_t epoch_;
  const uint64_t session_;
  const uint32_t stretches_;
  const bool manifest_tears_;  // a power cut may leave a part of a record
  std::vector<Segment> segments_;
  std::vector<EntryIndex> entries_;      // [segments, stretches_]
  std::vector<PageChecksum> checksums_;  // [pages of the log]
  std::vector<BlockSeal> seals_;         // [segments, stretches_], or empty
  std::vector<bool> dead_;               // [segments, stretches_]
  std::vector<bool> reversed_;           // [segments, stretches_]
  std::vector<Draft> drafts_;
  std::optional<SegmentIndex> open_;
  std::deque<SegmentIndex> free_;
  std::deque<SegmentIndex> sealed_;  // oldest first
  uint64_t next_generation_ = 1;
  uint64_t used_pages_;
  uint64_t peak_pages_;

  std::deque<UpkeepTask> due_;          // manifest records and footers
  std::vector<SegmentIndex> awaiting_;  // those in a phase that waits for a sync
  std::vector<SegmentIndex> changed_;   // manifest_stale, and neither queued nor free
  std::vector<SegmentIndex> one_copy_;  // whose last record may say what its other copy does not
  size_t manifest_pending_ = 0;         // queued or in flight
  size_t upkeep_in_flight_ = 0;
  uint64_t syncs_started_ = 0;
  uint64_t syncs_done_ = 0;
  uint64_t sync_wanted_ = 0;
};

}  // namespace terrace

#endif  // TERRACE_TIERS_NVME_TIER_H_
