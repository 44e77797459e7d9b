#include "tiers/nvme_tier.h"

#include <algorithm>

#include "io/check.h"

namespace terrace {

NvmeTier::NvmeTier(const NvmeGeometry& geometry, uint64_t epoch)
    : geometry_(geometry),
      epoch_(epoch),
      stretches_((geometry.segment_pages + geometry.pages_per_block - 1) /
                 geometry.pages_per_block),
      segments_(geometry.segment_count),
      entries_(size_t{geometry.segment_count} * stretches_, kNoEntry),
      checksums_(geometry.total_bytes() / kPageBytes) {
  for (uint32_t i = 0; i < geometry.segment_count; ++i) free_.push_back(SegmentIndex{i});
}

size_t NvmeTier::Stretch(PageIndex page) const {
  const uint32_t in_log = static_cast<uint32_t>(page) - kSuperblockPages;
  const size_t segment = in_log / geometry_.segment_pages;
  return segment * stretches_ + in_log % geometry_.segment_pages / geometry_.pages_per_block;
}

void NvmeTier::Use(uint32_t pages) {
  used_pages_ += pages;
  peak_pages_ = std::max(peak_pages_, used_pages_);
}

uint32_t NvmeTier::open_pages_left() const {
  if (!open_) return 0;
  return geometry_.segment_pages - segments_[static_cast<size_t>(*open_)].used_pages;
}

PageIndex NvmeTier::append_point() const {
  TERRACE_CHECK(open_.has_value());
  const uint32_t used = segments_[static_cast<size_t>(*open_)].used_pages;
  return PageIndex{static_cast<uint32_t>(SegmentStart(*open_)) + used};
}

PageIndex NvmeTier::append_limit() const {
  return PageIndex{static_cast<uint32_t>(append_point()) + open_pages_left()};
}

uint64_t NvmeTier::FinishGroup(uint32_t pages) {
  TERRACE_CHECK(pages <= open_pages_left());
  segments_[static_cast<size_t>(*open_)].used_pages += pages;
  Use(pages);
  return next_generation_++;
}

void NvmeTier::SealOpenSegment() {
  if (!open_) return;
  segments_[static_cast<size_t>(*open_)].state = State::kSealed;
  sealed_.push_back(*open_);
  open_.reset();
}

bool NvmeTier::OpenNextSegment() {
  TERRACE_CHECK(!open_ && !free_.empty());
  Segment& segment = segments_[static_cast<size_t>(free_.front())];
  if (segment.readers > 0 || segment.writers > 0) return false;
  open_ = free_.front();
  free_.pop_front();
  segment.state = State::kOpen;
  return true;
}

void NvmeTier::Place(PageIndex page, EntryIndex entry, bool owned) {
  TERRACE_CHECK(entries_[Stretch(page)] == kNoEntry);
  entries_[Stretch(page)] = entry;
  Segment& segment = SegmentOf(page);
  ++segment.blocks;
  if (owned) ++segment.owned;
}

void NvmeTier::Remove(PageIndex page, bool owned) {
  TERRACE_CHECK(entries_[Stretch(page)] != kNoEntry);
  entries_[Stretch(page)] = kNoEntry;
  Segment& segment = SegmentOf(page);
  --segment.blocks;
  if (owned) --segment.owned;
}

void NvmeTier::SetOwned(PageIndex page, bool owned) {
  Segment& segment = SegmentOf(page);
  owned ? ++segment.owned : --segment.owned;
}

std::optional<SegmentIndex> NvmeTier::Victim() const {
  for (SegmentIndex index : sealed_) {
    const Segment& segment = segments_[static_cast<size_t>(index)];
    if (segment.owned == 0) return index;
  }
  return std::nullopt;
}

bool NvmeTier::AnyVictimBeingWritten(size_t count) const {
  for (auto index = sealed_.begin(); index != sealed_.end() && count > 0; ++index) {
    const Segment& segment = segments_[static_cast<size_t>(*index)];
    if (segment.owned > 0) continue;
    if (segment.writers > 0) return true;
    --count;
  }
  return false;
}

void NvmeTier::VisitBlocks(SegmentIndex segment, absl::FunctionRef<void(EntryIndex)> visit) const {
  const size_t first = static_cast<size_t>(segment) * stretches_;
  for (size_t i = first; i < first + stretches_; ++i) {
    if (entries_[i] != kNoEntry) visit(entries_[i]);
  }
}

void NvmeTier::FreeSegment(SegmentIndex index) {
  Segment& segment = segments_[static_cast<size_t>(index)];
  TERRACE_CHECK(segment.state == State::kSealed && segment.blocks == 0);
  sealed_.erase(std::find(sealed_.begin(), sealed_.end(), index));
  used_pages_ -= segment.used_pages;
  segment.used_pages = 0;
  segment.state = State::kFree;
  free_.push_back(index);
}

PageIndex NvmeTier::SegmentStart(SegmentIndex segment) const {
  return PageIndex{kSuperblockPages + static_cast<uint32_t>(segment) * geometry_.segment_pages};
}

void NvmeTier::RestoreSealed(SegmentIndex index, uint32_t used_pages) {
  Segment& segment = segments_[static_cast<size_t>(index)];
  TERRACE_CHECK(segment.state == State::kFree && !open_);
  free_.erase(std::find(free_.begin(), free_.end(), index));
  segment.state = State::kSealed;
  segment.used_pages = used_pages;
  Use(used_pages);
  sealed_.push_back(index);
}

void NvmeTier::ReopenNewest() {
  if (sealed_.empty()) return;
  open_ = sealed_.back();
  sealed_.pop_back();
  segments_[static_cast<size_t>(*open_)].state = State::kOpen;
}

size_t NvmeTier::memory_bytes() const {
  return segments_.capacity() * sizeof(Segment) + entries_.capacity() * sizeof(EntryIndex) +
         checksums_.capacity() * sizeof(PageChecksum);
}

}  // namespace terrace
