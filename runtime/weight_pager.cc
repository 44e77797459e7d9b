#include "runtime/weight_pager.h"

#include <algorithm>
#include <bit>
#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"
#include "io/check.h"
#include "runtime/scoped_seconds.h"

namespace terrace {
namespace {

// What an arrival is for: a fragment of a slot, or a chunk in staging.
constexpr uint64_t kChunkTag = uint64_t{1} << 63;
constexpr int kLayerShift = 32;
constexpr int kFragmentShift = 48;
constexpr uint64_t kSlotMask = (uint64_t{1} << kFragmentShift) - 1;  // all but the fragment

uint64_t SlotTag(uint32_t layer, uint32_t slot, uint32_t fragment) {
  return uint64_t{slot} | (uint64_t{layer} << kLayerShift) | (uint64_t{fragment} << kFragmentShift);
}

}  // namespace

void WeightPager::BeginToken() {
  const ScopedSeconds total(total_seconds_);
  HandleArrivals(reader_->Take());
  required_.reset();
  ++token_;
  ++stats_.tokens;
}

void WeightPager::DropExpired(Layer& layer) {
  // A row that is on its way can be neither dropped nor moved; then the next token drops the rest.
  while (const std::optional<uint32_t> oldest = layer.rows.Oldest()) {
    if (layer.rows.last_use(*oldest) >= ExpiredBefore() || layer.rows.last_is_held()) return;
    const WeightRows::Move move = layer.rows.Erase(*oldest);
    ++stats_.evicted_rows;
    if (move.from == WeightRows::kNone) continue;
    std::memcpy(SlotBytes(layer, move.to), SlotBytes(layer, move.from), layout_.row_bytes());
    layer.slots[move.to] = layer.slots[move.from];
    ++stats_.moved_rows;
  }
}

// ---- What is named.

absl::Status WeightPager::CheckRange(uint32_t layer, absl::Span<const uint32_t> ids, uint32_t limit,
                                     const char* what) const {
  if (layer >= layers_.size()) {
    return absl::InvalidArgumentError(
        absl::StrCat("weights: layer ", layer, " of ", layers_.size()));
  }
  for (const uint32_t id : ids) {
    if (id < limit) continue;
    return absl::InvalidArgumentError(
        absl::StrCat("weights: layer ", layer, ": ", what, " ", id, " of ", limit));
  }
  return absl::OkStatus();
}

void WeightPager::MarkPlaces(absl::Span<const uint32_t> places) {
  for (const uint32_t place : places) {
    if (place >= layout_.layer_neurons()) continue;  // of a hint
    const uint32_t row = layout_.RowOfPlace(place);
    marks_[row / 64] |= uint64_t{1} << (row % 64);
  }
}

void WeightPager::MarkExperts(absl::Span<const uint32_t> experts) {
  const uint32_t rows = layout_.layer_rows() / layout_.shape().experts;  // of an expert
  for (const uint32_t expert : experts) {
    if (expert >= layout_.shape().experts) continue;  // of a hint
    for (uint32_t row = expert * rows; row < (expert + 1) * rows; ++row) {
      marks_[row / 64] |= uint64_t{1} << (row % 64);
    }
  }
}

template <typename Function>
void WeightPager::TakeMarks(const Function& function) {
  for (uint32_t word = 0; word < marks_.size(); ++word) {
    for (uint64_t bits = marks_[word]; bits != 0; bits &= bits - 1) {
      function(word * 64 + static_cast<uint32_t>(std::countr_zero(bits)));
    }
    marks_[word] = 0;
  }
}

absl::Status WeightPager::Require(uint32_t layer, absl::Span<const uint32_t> places) {
  const ScopedSeconds total(total_seconds_);
  required_.reset();
  absl::Status status = CheckRange(layer, places, layout_.layer_neurons(), "place");
  if (!status.ok()) return status;
  MarkPlaces(places);
  RequireMarked(layer);
  return absl::OkStatus();
}

absl::Status WeightPager::RequireExperts(uint32_t layer, absl::Span<const uint32_t> experts) {
  const ScopedSeconds total(total_seconds_);
  required_.reset();
  absl::Status status = CheckRange(layer, experts, layout_.shape().experts, "expert");
  if (!status.ok()) return status;
  MarkExperts(experts);
  RequireMarked(layer);
  return absl::OkStatus();
}

void WeightPager::Prefetch(uint32_t layer, absl::Span<const uint32_t> places) {
  const ScopedSeconds total(total_seconds_);
  if (layer >= layers_.size()) return;
  MarkPlaces(places);
  PrefetchMarked(layer);
}

void WeightPager::PrefetchExperts(uint32_t layer, absl::Span<const uint32_t> experts) {
  const ScopedSeconds total(total_seconds_);
  if (layer >= layers_.size()) return;
  MarkExperts(experts);
  PrefetchMarked(layer);
}

// ---- Rows of the step.

void WeightPager::RequireMarked(uint32_t layer) {
  HandleArrivals(reader_->Take());
  DrainChunks();
  required_ = layer;
  ++use_;
  entries_.clear();
  fragments_.clear();
  TakeMarks([this](uint32_t row) { entries_.push_back({.row = row}); });
  stats_.required_rows += entries_.size();
  // What is there is marked as used before anything is evicted for what is not.
  for (Entry& entry : entries_) FindRow(layer, entry);
  for (Entry& entry : entries_) {
    if (entry.slot == WeightRows::kNone) InsertRow(layer, entry);
  }
  if (options_.compute_resident) AddResident(layer);
  for (uint32_t i = 0; i < entries_.size(); ++i) {
    if (entries_[i].slot != WeightRows::kNone) entry_of_[entries_[i].slot] = i;
  }
  ReadPlanned();
  PlanChunks();
  SubmitChunks();
}

void WeightPager::FindRow(uint32_t layer, Entry& entry) {
  Layer& in = layers_[layer];
  const uint32_t slot = in.rows.Find(entry.row);
  if (slot == WeightRows::kNone) return;
  entry.slot = slot;
  in.rows.Touch(slot, use_, token_);
  SlotState& state = in.slots[slot];
  const auto missing = static_cast<uint8_t>(NeededAtFirst() & ~state.have);
  if (std::exchange(state.guessed, false)) ++stats_.used_prefetches;
  if (missing == 0) {
    ++stats_.hit_rows;
  } else if (state.reading()) {
    ++stats_.joined_rows;
    if (state.read == kManyReads) {
      reader_->RaiseTagged(kSlotMask, SlotTag(layer, slot, 0));
    } else if (state.read != WeightReader::kNoRead) {
      reader_->Raise(state.read);
    }
  } else {
    ++stats_.missed_rows;
    PlanReads(layer, slot, missing);
  }
}

void WeightPager::InsertRow(uint32_t layer, Entry& entry) {
  ++stats_.missed_rows;
  Layer& in = layers_[layer];
  const WeightRows::Inserted inserted = in.rows.Insert(entry.row, use_, token_, ExpiredBefore());
  if (inserted.slot == WeightRows::kNone) return;
  if (inserted.evicted_row != WeightRows::kNone) ++stats_.evicted_rows;
  entry.slot = inserted.slot;
  in.slots[inserted.slot] = {};
  PlanReads(layer, inserted.slot, NeededAtFirst());
}

void WeightPager::AddResident(uint32_t layer) {
  const Layer& in = layers_[layer];
  const size_t required = entries_.size();
  for (uint32_t slot = 0; slot < in.rows.used(); ++slot) {
    const SlotState& state = in.slots[slot];
    if (state.have != layout_.all_fragments() || state.reading()) continue;
    const Entry extra = {.row = in.rows.RowIn(slot), .slot = slot};
    const auto by_row = [](const Entry& a, const Entry& b) { return a.row < b.row; };
    const auto end = entries_.begin() + static_cast<ptrdiff_t>(required);
    if (!std::binary_search(entries_.begin(), end, extra, by_row)) entries_.push_back(extra);
  }
  std::sort(entries_.begin(), entries_.end(),
            [](const Entry& a, const Entry& b) { return a.row < b.row; });
}

void WeightPager::PrefetchMarked(uint32_t layer) {
  HandleArrivals(reader_->Take());
  ++use_;
  fragments_.clear();
  // The rows of the step under way must not lose their slots.
  const bool allowed = required_ != layer;
  Layer& in = layers_[layer];
  prefetch_rows_.clear();
  TakeMarks([&](uint32_t row) {
    const uint32_t slot = in.rows.Find(row);
    if (slot == WeightRows::kNone) {
      prefetch_rows_.push_back(row);
    } else if (allowed) {
      in.rows.Touch(slot, use_, token_);
    }
  });
  const size_t room = reader_->PrefetchRoom();
  for (const uint32_t row : prefetch_rows_) {
    const bool fits = allowed && fragments_.size() + layout_.FirstReads() <= room;
    const WeightRows::Inserted inserted =
        fits ? in.rows.Insert(row, use_, token_) : WeightRows::Inserted();
    if (inserted.slot == WeightRows::kNone) {
      ++stats_.dropped_prefetches;
      continue;
    }
    if (inserted.evicted_row != WeightRows::kNone) ++stats_.evicted_rows;
    in.slots[inserted.slot] = {};
    in.slots[inserted.slot].guessed = true;
    ++stats_.prefetched_rows;
    PlanReads(layer, inserted.slot, NeededAtFirst());
  }
  reader_->Prefetch(absl::MakeSpan(fragments_));
  for (const WeightReader::Fragment& fragment : fragments_) {
    uint32_t& read = in.slots[static_cast<uint32_t>(fragment.tag)].read;
    const bool other = read != WeightReader::kNoRead && read != fragment.read;
    read = other ? kManyReads : fragment.read;
  }
  fragments_.clear();
}

// ---- Reads.

void WeightPager::PlanReads(uint32_t layer, uint32_t slot, uint8_t which) {
  Layer& in = layers_[layer];
  SlotState& state = in.slots[slot];
  if (!in.rows.held(slot)) in.rows.Hold(slot);
  state.read = WeightReader::kNoRead;
  const auto others = static_cast<uint8_t>(~which);
  state.have &= others;
  state.verified &= others;
  state.failed &= others;
  const uint32_t group = in.rows.RowIn(slot) * layout_.row_groups();
  for (uint32_t fragment = 0; fragment < layout_.fragments(); ++fragment) {
    if ((which & (1u << fragment)) == 0) continue;
    const uint64_t offset = layout_.FileOffset(layer, group, fragment);
    std::byte* const to = SlotBytes(in, slot) + layout_.MemoryOffset(fragment);
    const size_t bytes = layout_.RowFragmentBytes(fragment);
    for (size_t done = 0; done < bytes; done += WeightLayout::kMaxReadBytes) {
      const auto length =
          static_cast<uint32_t>(std::min(WeightLayout::kMaxReadBytes, bytes - done));
      ++state.pending[fragment];
      fragments_.push_back({.offset = offset + done,
                            .to = to + done,
                            .bytes = length,
                            .read = WeightReader::kNoRead,
                            .tag = SlotTag(layer, slot, fragment)});
    }
  }
}

void WeightPager::ReadPlanned() {
  if (!fragments_.empty()) reader_->Demand(absl::MakeSpan(fragments_));
  fragments_.clear();
}

void WeightPager::HandleArrivals(absl::Span<const WeightReader::Arrival> arrivals) {
  for (const WeightReader::Arrival& arrival : arrivals) {
    if ((arrival.tag & kChunkTag) != 0) {
      Chunk& chunk = chunks_[static_cast<uint32_t>(arrival.tag)];
      --chunk.pending;
      chunk.failed |= !arrival.ok;
    } else {
      HandleSlotArrival(arrival.tag, arrival.ok);
    }
  }
  ReadPlanned();  // what the step under way needs next of them
}

void WeightPager::HandleSlotArrival(uint64_t tag, bool ok) {
  const auto layer = static_cast<uint32_t>(tag >> kLayerShift & 0xffff);
  const auto slot = static_cast<uint32_t>(tag);
  const auto fragment = static_cast<uint32_t>(tag >> kFragmentShift);
  Layer& in = layers_[layer];
  SlotState& state = in.slots[slot];
  const auto bit = static_cast<uint8_t>(1u << fragment);
  if (!ok) state.failed |= bit;
  TERRACE_CHECK(state.pending[fragment] > 0);
  if (--state.pending[fragment] > 0) return;
  if ((state.failed & bit) == 0) state.have |= bit;
  if (!state.reading() && slot >= in.pinned) {
    state.failed == 0 ? in.rows.Release(slot) : in.rows.ReleaseAsOldest(slot);
  }
  if (stepping_ && required_ == layer) {
    const uint32_t entry = entry_of_[slot];
    if (entry < entries_.size() && entries_[entry].slot == slot) AdvanceEntry(entry);
  }
}

bool WeightPager::IsResident(uint32_t layer, uint32_t place) const {
  if (layer >= layers_.size() || place >= layout_.layer_neurons()) return false;
  const Layer& in = layers_[layer];
  const uint32_t slot = in.rows.Find(layout_.RowOfPlace(place));
  return slot != WeightRows::kNone && in.slots[slot].have == layout_.all_fragments();
}

WeightPagerStats WeightPager::Stats() const {
  WeightPagerStats stats = stats_;
  const WeightReaderStats reads = reader_->Stats();
  stats.reads = reads.reads;
  stats.read_bytes = reads.read_bytes - stats.pinned_bytes;
  stats.wanted_bytes = reads.wanted_bytes - std::min(reads.wanted_bytes, pinned_wanted_bytes_);
  stats.io_seconds = reads.io_seconds - pinned_io_seconds_;
  stats.verify_seconds = ffn_.verify_seconds();
  stats.management_seconds = total_seconds_ - stats.compute_seconds - stats.wait_seconds;
  double window = 0;
  for (const Layer& layer : layers_) {
    stats.resident_rows += layer.rows.used();
    stats.capacity_rows += capacity_;
    stats.pinned_rows += layer.pinned;
    const std::optional<uint32_t> oldest = layer.rows.Oldest();
    if (oldest) window += static_cast<double>(token_ - layer.rows.last_use(*oldest));
  }
  stats.window_tokens = window / static_cast<double>(layers_.size());
  return stats;
}

}  // namespace terrace
