// Groups that have no slot pass through staging, chunk after chunk, while the next ones are read.

#include <algorithm>

#include "io/check.h"
#include "runtime/scoped_seconds.h"
#include "runtime/weight_pager.h"

namespace terrace {
namespace {

constexpr uint64_t kChunkTag = uint64_t{1} << 63;

}  // namespace

void WeightPager::PlanChunks() {
  chunks_.clear();
  submitted_chunks_ = 0;
  finished_chunks_ = 0;
  for (const Entry& entry : entries_) {
    if (entry.slot != WeightRows::kNone) continue;
    const uint32_t begin = entry.row * layout_.row_groups();
    for (uint32_t group = begin; group < begin + layout_.row_groups(); ++group) {
      const bool joins = !chunks_.empty() && chunks_.back().groups < chunk_groups_ &&
                         chunks_.back().first_group + chunks_.back().groups == group &&
                         // Those of another expert need not be neighbours in the file.
                         group % layout_.shape().groups() != 0;
      if (!joins) chunks_.push_back({.first_group = group});
      ++chunks_.back().groups;
    }
  }
}

std::byte* WeightPager::ChunkBytes(uint32_t index) const {
  return staging_ + size_t{index % chunk_buffers_} * chunk_groups_ * layout_.group_bytes();
}

void WeightPager::SubmitChunks() {
  const auto end = static_cast<uint32_t>(
      std::min<size_t>(chunks_.size(), size_t{finished_chunks_} + chunk_buffers_));
  if (submitted_chunks_ >= end) return;
  while (submitted_chunks_ < end) PlanChunk(submitted_chunks_++);
  ReadPlanned();
}

void WeightPager::PlanChunk(uint32_t index) {
  Chunk& chunk = chunks_[index];
  const uint32_t layer = *required_;
  // Whole groups are one run of the file but where their parts are apart.
  const bool runs = layout_.shape().groups_are_runs();
  const uint32_t reads = runs ? 1 : chunk.groups;
  const uint32_t read_groups = chunk.groups / reads;
  chunk.failed = false;
  for (uint32_t i = 0; i < reads; ++i) {
    std::byte* const to = ChunkBytes(index) + i * layout_.group_bytes();
    for (uint32_t fragment = 0; fragment < (runs ? 1 : layout_.fragments()); ++fragment) {
      const size_t bytes =
          runs ? read_groups * layout_.group_bytes() : layout_.GroupFragmentBytes(fragment);
      std::byte* const begin = to + (runs ? 0 : layout_.MemoryOffset(fragment));
      const uint64_t offset = layout_.FileOffset(layer, chunk.first_group + i, fragment);
      for (size_t done = 0; done < bytes; done += WeightLayout::kMaxReadBytes) {
        fragments_.push_back(
            {.offset = offset + done,
             .to = begin + done,
             .bytes = static_cast<uint32_t>(std::min(WeightLayout::kMaxReadBytes, bytes - done)),
             .read = WeightReader::kNoRead,
             .tag = kChunkTag | index});
        ++chunk.pending;
      }
    }
  }
}

absl::Status WeightPager::StreamChunks(uint32_t layer, const FfnInput& input,
                                       absl::Span<float> out) {
  // Sums are made in the order of the file, wherever a row comes from.
  absl::Span<const FfnGroup> rows = groups_;
  const auto add = [&](absl::Span<const FfnGroup> groups) {
    const ScopedSeconds compute(stats_.compute_seconds);
    ffn_.AddDown(groups, input.tokens, out);
  };
  for (uint32_t index = 0; index < chunks_.size(); ++index) {
    absl::Status status = ActivateChunk(layer, index, input);
    if (!status.ok()) return status;
    const uint32_t first = chunks_[index].first_group;
    const auto before = std::partition_point(
        rows.begin(), rows.end(), [first](const FfnGroup& group) { return group.group < first; });
    const auto count = static_cast<size_t>(before - rows.begin());
    if (count > 0) add(rows.first(count));
    rows.remove_prefix(count);
    add(active_);
    ++finished_chunks_;
    SubmitChunks();
  }
  if (!rows.empty()) add(rows);
  return absl::OkStatus();
}

absl::Status WeightPager::ActivateChunk(uint32_t layer, uint32_t index, const FfnInput& input) {
  Chunk& chunk = chunks_[index];
  const size_t group_scales = layout_.shape().group_neurons * input.tokens;
  if (chunk_scales_.size() < chunk_groups_ * group_scales) {
    chunk_scales_.resize(chunk_groups_ * group_scales);
  }
  for (size_t attempt = 0;; ++attempt) {
    while (chunk.pending > 0) HandleArrivals(WaitForReads());
    absl::Status status;
    if (chunk.failed) {
      status = UnreadStatus(layer, chunk.first_group);
    } else {
      active_.clear();
      for (uint32_t i = 0; i < chunk.groups; ++i) {
        active_.push_back({.bytes = ChunkBytes(index) + i * layout_.group_bytes(),
                           .group = chunk.first_group + i,
                           .verify = layout_.all_fragments(),
                           .scales = chunk_scales_.data() + i * group_scales});
      }
      {
        const ScopedSeconds compute(stats_.compute_seconds);
        ffn_.Activate(layer, input, absl::MakeSpan(active_));
      }
      const auto wrong = std::find_if(active_.begin(), active_.end(),
                                      [](const FfnGroup& group) { return !group.intact; });
      if (wrong == active_.end()) return absl::OkStatus();
      status = CorruptStatus(layer, *wrong);
    }
    if (attempt == options_.rereads) {
      ++stats_.failed_rows;
      return status;
    }
    ++stats_.rereads;
    PlanChunk(index);
    ReadPlanned();
  }
}

void WeightPager::DrainChunks() {
  // Nobody needs the chunks that were not begun; those under way keep their buffers until then.
  const auto under_way = [this] {
    return std::any_of(chunks_.begin(), chunks_.begin() + submitted_chunks_,
                       [](const Chunk& chunk) { return chunk.pending > 0; });
  };
  while (finished_chunks_ < submitted_chunks_ && under_way()) HandleArrivals(WaitForReads());
  chunks_.clear();
  submitted_chunks_ = finished_chunks_ = 0;
}

}  // namespace terrace
