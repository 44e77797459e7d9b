// The step under way: rows are computed in the order in which they arrive, and added up in the
// order of the file.

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "io/check.h"
#include "runtime/scoped_seconds.h"
#include "runtime/weight_pager.h"

namespace terrace {

absl::Status WeightPager::Ffn(uint32_t layer, absl::Span<const float> x, absl::Span<float> out) {
  return FfnExperts(layer, x, {}, out);
}

absl::Status WeightPager::FfnExperts(uint32_t layer, absl::Span<const float> x,
                                     absl::Span<const float> expert_weights,
                                     absl::Span<float> out) {
  const ScopedSeconds total(total_seconds_);
  if (required_ != layer) {
    return absl::FailedPreconditionError(
        absl::StrCat("weights: layer ", layer, " is to be computed, but ",
                     required_ ? absl::StrCat("layer ", *required_) : "none", " was required"));
  }
  return RunStep(layer, x, expert_weights, out);
}

absl::Status WeightPager::DenseFfn(uint32_t layer, absl::Span<const float> x,
                                   absl::Span<float> out) {
  const ScopedSeconds total(total_seconds_);
  absl::Status status = CheckRange(layer, {}, 0, "");
  if (!status.ok()) return status;
  HandleArrivals(reader_->Take());
  DrainChunks();
  required_ = layer;
  entries_.clear();
  const Layer& in = layers_[layer];
  for (uint32_t row = 0; row < layout_.layer_rows(); ++row) {
    Entry entry = {.row = row};
    const uint32_t slot = in.rows.Find(row);
    if (slot != WeightRows::kNone && in.slots[slot].have == layout_.all_fragments()) {
      entry.slot = slot;
      entry_of_[slot] = row;
    }
    entries_.push_back(entry);
  }
  PlanChunks();
  SubmitChunks();
  return RunStep(layer, x, {}, out);
}

absl::Status WeightPager::RunStep(uint32_t layer, absl::Span<const float> x,
                                  absl::Span<const float> expert_weights, absl::Span<float> out) {
  const TimelineSpan span(options_.timeline.get(), "weights step", {"layer", layer});
  const BundleShape& shape = layout_.shape();
  const FfnInput input = {
      .x = x, .expert_weights = expert_weights, .tokens = x.size() / shape.width};
  if (x.size() % shape.width != 0 || out.size() != x.size() ||
      (!expert_weights.empty() && expert_weights.size() != input.tokens * shape.experts)) {
    return absl::InvalidArgumentError(
        absl::StrCat("weights: an input of ", x.size(), " floats, an output of ", out.size(),
                     " and ", expert_weights.size(), " expert weights do not fit a width of ",
                     shape.width, " and ", shape.experts, " experts"));
  }
  std::fill(out.begin(), out.end(), 0.0f);
  StartStep(layer, input.tokens);
  while (unsettled_ > 0) {
    HandleArrivals(reader_->Take());
    if (!ready_.empty()) {
      ActivateReady(layer, input);
    } else if (unsettled_ > 0) {
      HandleArrivals(WaitForReads());
    }
  }
  stepping_ = false;
  if (step_status_.ok()) step_status_ = StreamChunks(layer, input, out);
  DrainChunks();
  required_.reset();
  // Now that the rows that came have arrived, so that they can move.
  DropExpired(layers_[layer]);
  return step_status_;
}

absl::Span<const WeightReader::Arrival> WeightPager::WaitForReads() {
  const ScopedSeconds wait(stats_.wait_seconds);
  const TimelineSpan span(options_.timeline.get(), "wait for weights");
  return reader_->Wait();
}

void WeightPager::StartStep(uint32_t layer, size_t tokens) {
  const Layer& in = layers_[layer];
  const size_t group_scales = layout_.shape().group_neurons * tokens;
  groups_.clear();
  for (Entry& entry : entries_) {
    if (entry.slot == WeightRows::kNone) continue;
    entry.first_group = static_cast<uint32_t>(groups_.size());
    for (uint32_t i = 0; i < layout_.row_groups(); ++i) {
      groups_.push_back({.bytes = SlotBytes(in, entry.slot) + i * layout_.group_bytes(),
                         .group = entry.row * layout_.row_groups() + i,
                         .entry = static_cast<uint32_t>(&entry - entries_.data())});
    }
  }
  if (scales_.size() < groups_.size() * group_scales) scales_.resize(groups_.size() * group_scales);
  for (size_t i = 0; i < groups_.size(); ++i) groups_[i].scales = scales_.data() + i * group_scales;
  step_status_ = absl::OkStatus();
  unsettled_ = groups_.size() / layout_.row_groups();
  ready_.clear();
  stepping_ = true;
  for (uint32_t i = 0; i < entries_.size(); ++i) {
    if (entries_[i].slot != WeightRows::kNone) AdvanceEntry(i);
  }
  ReadPlanned();
}

void WeightPager::AdvanceEntry(uint32_t index) {
  Entry& entry = entries_[index];
  if (entry.done || entry.queued) return;
  const SlotState& state = layers_[*required_].slots[entry.slot];
  const uint8_t needed = entry.gate_done ? layout_.all_fragments() : NeededAtFirst();
  const auto missing = static_cast<uint8_t>(needed & ~state.have);
  if (missing == 0) {
    entry.queued = true;
    ready_.push_back(index);
    return;
  }
  for (uint32_t fragment = 0; fragment < layout_.fragments(); ++fragment) {
    if ((missing & (1u << fragment)) != 0 && state.pending[fragment] > 0) return;
  }
  if ((missing & state.failed) != 0) {
    if (entry.attempts++ == options_.rereads) {
      return FailEntry(index, UnreadStatus(*required_, entry.row * layout_.row_groups()));
    }
    ++stats_.rereads;
  }
  PlanReads(*required_, entry.slot, missing);
}

void WeightPager::ActivateReady(uint32_t layer, const FfnInput& input) {
  const TimelineSpan span(options_.timeline.get(), "activate", {"groups", ready_.size()});
  Layer& in = layers_[layer];
  active_.clear();
  for (const uint32_t index : ready_) {
    Entry& entry = entries_[index];
    entry.queued = false;
    const SlotState& state = in.slots[entry.slot];
    const uint8_t all = layout_.all_fragments();
    FfnStage stage = FfnStage::kWhole;
    uint8_t used = all;
    if (entry.gate_done) {
      stage = FfnStage::kRest;
    } else if (state.have != all) {
      stage = FfnStage::kGate;
      used = NeededAtFirst();
    }
    for (uint32_t i = 0; i < layout_.row_groups(); ++i) {
      FfnGroup& group = groups_[entry.first_group + i];
      group.stage = stage;
      group.verify = static_cast<uint8_t>(used & ~state.verified);
      active_.push_back(group);
    }
  }
  ready_.clear();
  {
    const ScopedSeconds compute(stats_.compute_seconds);
    ffn_.Activate(layer, input, absl::MakeSpan(active_));
  }
  for (size_t i = 0; i < active_.size(); i += layout_.row_groups()) {
    Settle(layer, absl::MakeConstSpan(active_).subspan(i, layout_.row_groups()));
  }
  ReadPlanned();
}

void WeightPager::Settle(uint32_t layer, absl::Span<const FfnGroup> groups) {
  const uint32_t index = groups.front().entry;
  Entry& entry = entries_[index];
  SlotState& state = layers_[layer].slots[entry.slot];
  const uint8_t verified = groups.front().verify;
  bool fires = false;
  for (const FfnGroup& group : groups) {
    fires |= group.fires;
    if (group.intact) continue;
    state.have &= static_cast<uint8_t>(~verified);
    if (entry.attempts++ == options_.rereads) return FailEntry(index, CorruptStatus(layer, group));
    ++stats_.rereads;
    return PlanReads(layer, entry.slot, verified);
  }
  state.verified |= verified;
  if (groups.front().stage == FfnStage::kGate && fires) {
    entry.gate_done = true;
    return AdvanceEntry(index);
  }
  entry.done = true;
  --unsettled_;
}

void WeightPager::FailEntry(uint32_t index, absl::Status status) {
  Entry& entry = entries_[index];
  Layer& in = layers_[*required_];
  ++stats_.failed_rows;
  if (step_status_.ok()) step_status_ = std::move(status);
  entry.done = true;
  --unsettled_;
  // Its slot is the first that somebody else gets.
  if (in.slots[entry.slot].reading() || entry.slot < in.pinned) return;
  if (!in.rows.held(entry.slot)) in.rows.Hold(entry.slot);
  in.rows.ReleaseAsOldest(entry.slot);
}

absl::Status WeightPager::CorruptStatus(uint32_t layer, const FfnGroup& group) const {
  for (uint32_t fragment = 0; fragment < layout_.fragments(); ++fragment) {
    if ((group.verify & (1u << fragment)) == 0) continue;
    absl::Status status =
        file_->Verify(layout_.FileOffset(layer, group.group, fragment),
                      absl::MakeConstSpan(group.bytes + layout_.MemoryOffset(fragment),
                                          layout_.GroupFragmentBytes(fragment)));
    if (!status.ok()) return status;
  }
  return absl::DataLossError(
      absl::StrCat(file_->path(), ": layer ", layer, ", group ", group.group, ": wrong checksum"));
}

absl::Status WeightPager::UnreadStatus(uint32_t layer, uint32_t first_group) const {
  return absl::DataLossError(
      absl::StrCat(file_->path(), ": layer ", layer, ", group ", first_group,
                   ": cannot be read; the last failure was: ", reader_->last_error().message()));
}

}  // namespace terrace
