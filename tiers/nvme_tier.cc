#include "tiers/nvme_tier.h"

#include <algorithm>

#include "io/check.h"

namespace terrace {
namespace {

constexpr size_t kSectorBytes = 512;  // what a disk writes whole or not at all

}  // namespace

NvmeTier::NvmeTier(const NvmeGeometry& geometry, uint64_t epoch, uint64_t session)
    : geometry_(geometry),
      epoch_(epoch),
      session_(session),
      stretches_(geometry.stretches()),
      manifest_tears_(ManifestRecordBytes(stretches_) > kSectorBytes),
      segments_(geometry.segment_count),
      entries_(size_t{geometry.segment_count} * stretches_, kNoEntry),
      checksums_(geometry.total_pages() - geometry.log_start()),
      dead_(entries_.size()),
      reversed_(entries_.size()),
      drafts_(kDrafts),
      used_pages_(geometry.log_start()),
      peak_pages_(geometry.log_start()) {
  for (uint32_t i = 0; i < geometry.segment_count; ++i) free_.push_back(SegmentIndex{i});
  const uint32_t most_groups = geometry.data_pages() / geometry.group_pages(1) + 1;
  for (Draft& draft : drafts_) {
    draft.headers.reserve(most_groups);
    draft.bytes.reserve(size_t{geometry.footer_pages} * kPageBytes);
  }
}

size_t NvmeTier::FirstStretch(SegmentIndex segment) const {
  return static_cast<size_t>(segment) * stretches_;
}

size_t NvmeTier::Stretch(PageIndex page) const {
  const uint32_t in_log =
      static_cast<uint32_t>(static_cast<uint32_t>(page) - geometry_.log_start());
  return FirstStretch(SegmentAt(page)) +
         in_log % geometry_.segment_pages / geometry_.pages_per_block;
}

void NvmeTier::Use(uint32_t pages) {
  used_pages_ += pages;
  peak_pages_ = std::max(peak_pages_, used_pages_);
}

// --- Appending ---

uint32_t NvmeTier::open_pages_left() const {
  return open_ ? geometry_.data_pages() - At(*open_).used_pages : 0;
}

PageIndex NvmeTier::append_point() const {
  TERRACE_CHECK(open_.has_value());
  return PageIndex{static_cast<uint32_t>(SegmentStart(*open_)) + At(*open_).used_pages};
}

PageIndex NvmeTier::append_limit() const {
  return PageIndex{static_cast<uint32_t>(append_point()) + open_pages_left()};
}

GroupHeader NvmeTier::FinishGroup(uint32_t blocks) {
  const uint32_t pages = geometry_.group_pages(blocks);
  TERRACE_CHECK(pages <= open_pages_left());
  Draft* const draft = DraftOf(*open_);
  TERRACE_CHECK(draft != nullptr);
  AddToDraft(*draft, append_point(), GroupHeaderBytes(geometry_, blocks));
  Segment& segment = At(*open_);
  // Generations repeat after a crash, and then the session is another one.
  const GroupHeader group = {.epoch = epoch_,
                             .generation = next_generation_,
                             .segment_generation = segment.generation,
                             .base_page = static_cast<uint32_t>(append_point()),
                             .block_count = blocks,
                             .stamp = session_ + next_generation_,
                             .previous_stamp = *segment.last_stamp};
  segment.used_pages += pages;
  segment.newest_generation = group.generation;
  segment.last_stamp = group.stamp;
  Use(pages);
  ++next_generation_;
  return group;
}

void NvmeTier::AddToDraft(Draft& draft, PageIndex base, size_t bytes) {
  draft.headers.push_back({base, draft.bytes.size(), bytes});
  draft.bytes.resize(draft.bytes.size() + bytes);
}

void NvmeTier::KeepHeader(PageIndex base, absl::Span<const std::byte> header) {
  Draft* const draft = DraftOf(SegmentAt(base));
  TERRACE_CHECK(draft != nullptr);
  const auto place =
      std::lower_bound(draft->headers.begin(), draft->headers.end(), base,
                       [](const Draft::Header& at, PageIndex page) { return at.base < page; });
  TERRACE_CHECK(place != draft->headers.end() && place->base == base &&
                place->bytes <= header.size());
  std::copy_n(header.begin(), place->bytes, draft->bytes.begin() + place->offset);
}

NvmeTier::Draft* NvmeTier::DraftOf(SegmentIndex segment) {
  for (Draft& draft : drafts_) {
    if (draft.segment == segment) return &draft;
  }
  return nullptr;
}

const NvmeTier::Draft* NvmeTier::DraftOf(SegmentIndex segment) const {
  return const_cast<NvmeTier*>(this)->DraftOf(segment);
}

void NvmeTier::SealOpenSegment() {
  if (!open_) return;
  const SegmentIndex segment = *open_;
  open_.reset();
  sealed_.push_back(segment);
  Use(geometry_.footer_pages);
  At(segment).phase = SegmentPhase::kWriting;
  if (At(segment).writers == 0) Written(segment);
}

bool NvmeTier::NextIsFree() {
  const Segment& segment = At(free_.front());
  if (segment.phase == SegmentPhase::kFreeSync) sync_wanted_ = std::max(sync_wanted_, segment.sync);
  const bool draft_left = std::any_of(drafts_.begin(), drafts_.end(),
                                      [](const Draft& draft) { return !draft.segment; });
  return segment.phase == SegmentPhase::kFree && segment.readers == 0 && draft_left;
}

bool NvmeTier::OpenNextSegment() {
  TERRACE_CHECK(!open_ && !free_.empty());
  if (!NextIsFree()) return false;
  const SegmentIndex index = free_.front();
  Segment& segment = At(index);
  const auto draft = std::find_if(drafts_.begin(), drafts_.end(),
                                  [](const Draft& draft) { return !draft.segment; });
  free_.pop_front();
  open_ = index;
  draft->segment = index;
  draft->headers.clear();
  draft->bytes.clear();
  segment.phase = SegmentPhase::kOpen;
  segment.used_pages = 0;
  segment.durable_pages = 0;
  segment.syncing_pages = 0;  // a sync that was in flight when the last draft went left it
  segment.marked_pages = 0;
  segment.generation = next_generation_;
  segment.newest_generation = 0;
  segment.last_stamp = 0;
  const size_t first = FirstStretch(index);
  std::fill_n(dead_.begin() + first, stretches_, false);
  std::fill_n(reversed_.begin() + first, stretches_, false);
  return true;
}

// --- Blocks ---

void NvmeTier::Place(PageIndex page, EntryIndex entry, bool owned) {
  TERRACE_CHECK(entries_[Stretch(page)] == kNoEntry);
  entries_[Stretch(page)] = entry;
  Segment& segment = At(SegmentAt(page));
  ++segment.blocks;
  if (owned) ++segment.owned;
}

void NvmeTier::Remove(PageIndex page, bool owned) {
  TERRACE_CHECK(entries_[Stretch(page)] != kNoEntry);
  entries_[Stretch(page)] = kNoEntry;
  const SegmentIndex index = SegmentAt(page);
  Segment& segment = At(index);
  --segment.blocks;
  if (owned) --segment.owned;
  if (segment.phase == SegmentPhase::kDraining && segment.blocks == 0) {
    AwaitSync(index, SegmentPhase::kDrainSync, /*hurry=*/true);
  }
}

void NvmeTier::SetOwned(PageIndex page, bool owned) {
  Segment& segment = At(SegmentAt(page));
  owned ? ++segment.owned : --segment.owned;
}

BlockSeal& NvmeTier::seal(PageIndex page) {
  if (seals_.empty()) seals_.resize(entries_.size());
  return seals_[Stretch(page)];
}

void NvmeTier::MarkDead(PageIndex page) {
  dead_[Stretch(page)] = true;
  ++At(SegmentAt(page)).changes;
  ManifestChanged(SegmentAt(page));
}

void NvmeTier::ReverseRetention(PageIndex page) {
  reversed_[Stretch(page)] = !reversed_[Stretch(page)];
  ++At(SegmentAt(page)).changes;
  ManifestChanged(SegmentAt(page));
}

void NvmeTier::ForgetMarks(PageIndex page) {
  dead_[Stretch(page)] = false;
  reversed_[Stretch(page)] = false;
}

void NvmeTier::RemoveWriter(PageIndex page) {
  const SegmentIndex index = SegmentAt(page);
  Segment& segment = At(index);
  --segment.writers;
  if (segment.writers == 0 && segment.phase == SegmentPhase::kWriting) Written(index);
}

// --- Eviction ---

void NvmeTier::VisitBlocks(SegmentIndex segment, absl::FunctionRef<void(EntryIndex)> visit) const {
  const size_t first = FirstStretch(segment);
  for (size_t i = first; i < first + stretches_; ++i) {
    if (entries_[i] != kNoEntry) visit(entries_[i]);
  }
}

void NvmeTier::Retire(SegmentIndex index) {
  Segment& segment = At(index);
  TERRACE_CHECK(segment.phase == SegmentPhase::kSealed);
  sealed_.erase(std::find(sealed_.begin(), sealed_.end(), index));
  free_.push_back(index);
  used_pages_ -= segment.used_pages + geometry_.footer_pages;
  segment.phase = SegmentPhase::kDraining;
  if (segment.blocks == 0) Drained(index);
}

void NvmeTier::VisitFree(absl::FunctionRef<void(SegmentIndex)> visit) const {
  for (SegmentIndex segment : free_) visit(segment);
}

// --- Recovery ---

void NvmeTier::Restore(const Restored& restored) {
  Segment& segment = At(restored.segment);
  TERRACE_CHECK(segment.phase == SegmentPhase::kFree && !open_);
  free_.erase(std::find(free_.begin(), free_.end(), restored.segment));
  segment.phase = SegmentPhase::kSealed;
  segment.generation = restored.generation;
  segment.used_pages = restored.used_pages;
  segment.durable_pages = restored.durable_pages;
  segment.marked_pages = restored.durable_pages;
  segment.manifest_version = restored.manifest_version;
  const size_t first = FirstStretch(restored.segment);
  segment.newest_generation = restored.newest_generation;
  segment.last_stamp = restored.last_stamp;
  // Marks behind the end are of groups that were lost. A block that ends before it starts in a
  // stretch that does so as well.
  const uint32_t marked = restored.used_pages / geometry_.pages_per_block;
  const auto count = [&](const std::vector<bool>& marks) {
    return static_cast<std::ptrdiff_t>(std::min<size_t>(marked, marks.size()));
  };
  std::copy_n(restored.dead.begin(), count(restored.dead), dead_.begin() + first);
  std::copy_n(restored.reversed.begin(), count(restored.reversed), reversed_.begin() + first);
  Use(restored.used_pages + geometry_.footer_pages);
  sealed_.push_back(restored.segment);
}

void NvmeTier::RestoreFree(SegmentIndex segment, uint64_t generation, uint64_t manifest_version) {
  At(segment).generation = generation;
  At(segment).manifest_version = manifest_version;
}

bool NvmeTier::RestoreHeaders(SegmentIndex segment,
                              absl::Span<const absl::Span<const std::byte>> headers,
                              absl::Span<const PageIndex> bases) {
  const auto draft = std::find_if(drafts_.begin(), drafts_.end(),
                                  [](const Draft& draft) { return !draft.segment; });
  if (draft == drafts_.end()) return false;
  draft->segment = segment;
  draft->headers.clear();
  draft->bytes.clear();
  for (size_t i = 0; i < headers.size(); ++i) {
    AddToDraft(*draft, bases[i], headers[i].size());
    KeepHeader(bases[i], headers[i]);
  }
  AwaitSync(segment, SegmentPhase::kSealSync, /*hurry=*/true);
  return true;
}

void NvmeTier::RestoreInOneCopy(SegmentIndex segment) {
  At(segment).changes = At(segment).recorded = 1;
  At(segment).in_one_copy = true;
  one_copy_.push_back(segment);
}

void NvmeTier::ReopenNewest() {
  if (sealed_.empty() || At(sealed_.back()).phase != SegmentPhase::kSealSync) return;
  if (!At(sealed_.back()).last_stamp) return;
  open_ = sealed_.back();
  sealed_.pop_back();
  awaiting_.erase(std::find(awaiting_.begin(), awaiting_.end(), *open_));
  At(*open_).phase = SegmentPhase::kOpen;
  used_pages_ -= geometry_.footer_pages;
}

size_t NvmeTier::memory_bytes() const {
  size_t bytes = segments_.capacity() * sizeof(Segment) + entries_.capacity() * sizeof(EntryIndex) +
                 checksums_.capacity() * sizeof(PageChecksum) +
                 seals_.capacity() * sizeof(BlockSeal) + (dead_.size() + reversed_.size()) / 8;
  for (const Draft& draft : drafts_) {
    bytes += draft.bytes.capacity() + draft.headers.capacity() * sizeof(Draft::Header);
  }
  return bytes;
}

}  // namespace terrace
