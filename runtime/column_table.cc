#include "runtime/column_table.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "io/check.h"
#include "xxhash.h"

namespace terrace {

BlockId ColumnBlockId(const ColumnKey& key, size_t layer, size_t kv_head) {
  const uint64_t text[] = {key.high, key.low, layer, kv_head};
  const XXH128_hash_t hash = XXH3_128bits(text, sizeof(text));
  return {hash.high64, hash.low64};
}

absl::StatusOr<std::unique_ptr<ColumnTable>> ColumnTable::Create(const Options& options,
                                                                 TierManager& tiers) {
  if (options.columns >= kNone) {
    return absl::InvalidArgumentError(
        absl::StrCat("columns: ", options.columns, " is not below ", kNone));
  }
  TERRACE_CHECK_EQ(options.summary_bytes.size(), options.layers * options.kv_heads);
  std::vector<size_t> offsets = {0};
  offsets.reserve(options.summary_bytes.size() + 1);
  for (const size_t bytes : options.summary_bytes) offsets.push_back(offsets.back() + bytes);
  auto summaries = AlignedBuffer::Create(options.columns * offsets.back());
  if (!summaries.ok()) return summaries.status();
  return std::unique_ptr<ColumnTable>(
      new ColumnTable(options, tiers, std::move(offsets), *std::move(summaries)));
}

ColumnTable::ColumnTable(const Options& options, TierManager& tiers,
                         std::vector<size_t> summary_offsets, AlignedBuffer summaries)
    : options_(options),
      tiers_(tiers),
      summary_offsets_(std::move(summary_offsets)),
      summaries_(std::move(summaries)),
      token_ids_(options.columns * options.tokens),
      columns_(options.columns),
      free_(options.columns) {
  // The first columns are taken first, so that memory is touched only as far as it is used.
  for (size_t i = 0; i < free_.size(); ++i) free_[i] = static_cast<uint32_t>(free_.size() - 1 - i);
  by_key_.reserve(options.columns);
  first_child_.reserve(options.columns);
  absl::MutexLock lock(&mu_);
  blocks_.reserve(options.layers * options.kv_heads);
}

absl::Span<const BlockId> ColumnTable::Blocks(const ColumnKey& key) {
  blocks_.clear();
  for (size_t layer = 0; layer < options_.layers; ++layer) {
    for (size_t head = 0; head < options_.kv_heads; ++head) {
      blocks_.push_back(ColumnBlockId(key, layer, head));
    }
  }
  return blocks_;
}

std::optional<uint32_t> ColumnTable::FreeSlot() {
  if (free_.empty()) {
    uint32_t oldest = kNone;
    for (uint32_t slot = 0; slot < columns_.size(); ++slot) {
      if (columns_[slot].references > 0) continue;
      if (oldest == kNone || columns_[slot].released_at < columns_[oldest].released_at) {
        oldest = slot;
      }
    }
    if (oldest == kNone) return std::nullopt;
    Remove(oldest);
  }
  const uint32_t slot = free_.back();
  free_.pop_back();
  return slot;
}

absl::StatusOr<uint32_t> ColumnTable::Start(const ColumnKey& key, const ColumnKey& parent,
                                            absl::Span<const int32_t> tokens) {
  TERRACE_CHECK(tokens.empty() || tokens.size() == options_.tokens);
  if (by_key_.contains(key)) return absl::AlreadyExistsError("a column of this key exists");
  const std::optional<uint32_t> slot = FreeSlot();
  if (!slot.has_value()) {
    return absl::ResourceExhaustedError(absl::StrCat("contexts refer to all ", options_.columns,
                                                     " columns of ", options_.tokens,
                                                     " tokens that the tiers can hold"));
  }
  Column& column = columns_[*slot];
  column = {.key = key, .parent = parent, .named = !tokens.empty()};
  by_key_.emplace(key, *slot);
  if (column.named) {
    std::copy(tokens.begin(), tokens.end(), token_ids_.begin() + *slot * options_.tokens);
    const auto [first, is_new] = first_child_.try_emplace(parent, *slot);
    if (!is_new) column.next_sibling = std::exchange(first->second, *slot);
  }
  return *slot;
}

absl::StatusOr<ColumnIndex> ColumnTable::Begin(const ColumnKey& key, const ColumnKey& parent,
                                               absl::Span<const int32_t> tokens) {
  absl::MutexLock lock(&mu_);
  const absl::StatusOr<uint32_t> slot = Start(key, parent, tokens);
  if (!slot.ok()) return slot.status();
  columns_[*slot].references = 1;
  return ColumnIndex{*slot};
}

absl::StatusOr<ColumnIndex> ColumnTable::Restore(const ColumnKey& key, const ColumnKey& parent,
                                                 absl::Span<const int32_t> tokens) {
  absl::MutexLock lock(&mu_);
  const auto found = by_key_.find(key);
  if (found != by_key_.end()) {
    ++columns_[found->second].references;
    return ColumnIndex{found->second};
  }
  const absl::StatusOr<uint32_t> slot = Start(key, parent, tokens);
  if (!slot.ok()) return slot.status();
  columns_[*slot].references = 1;
  columns_[*slot].state = State::kUnsummarised;
  return ColumnIndex{*slot};
}

absl::StatusOr<ColumnIndex> ColumnTable::StartPosting(const ColumnKey& key) {
  if (postings_ >= options_.postings) {
    return absl::ResourceExhaustedError(
        absl::StrCat("all ", options_.postings, " columns for clusters are in use"));
  }
  const absl::StatusOr<uint32_t> slot = Start(key, {}, {});
  if (!slot.ok()) return slot.status();
  columns_[*slot].references = 1;
  columns_[*slot].is_posting = true;
  ++postings_;
  return ColumnIndex{*slot};
}

absl::StatusOr<ColumnIndex> ColumnTable::BeginPosting(const ColumnKey& key) {
  absl::MutexLock lock(&mu_);
  return StartPosting(key);
}

absl::StatusOr<ColumnIndex> ColumnTable::RestorePosting(const ColumnKey& key) {
  absl::MutexLock lock(&mu_);
  const auto found = by_key_.find(key);
  if (found == by_key_.end()) return StartPosting(key);
  ++columns_[found->second].references;
  return ColumnIndex{found->second};
}

void ColumnTable::Complete(ColumnIndex column) {
  absl::MutexLock lock(&mu_);
  columns_[Slot(column)].state = State::kComplete;
}

bool ColumnTable::is_complete(ColumnIndex column) const {
  absl::MutexLock lock(&mu_);
  return columns_[Slot(column)].state == State::kComplete;
}

// Owned before the look whether all blocks are there: none is evicted in between. Owned ones can be
// lost as well, to a bad disk.
bool ColumnTable::Refer(uint32_t slot) {
  Column& column = columns_[slot];
  const absl::Span<const BlockId> blocks = Blocks(column.key);
  if (column.references == 0) tiers_.SetRetention(blocks, Retention::kOwned);
  if (tiers_.CountLeading(blocks) < blocks.size()) {
    if (column.references == 0) Remove(slot);
    return false;
  }
  ++column.references;
  return true;
}

std::optional<ColumnIndex> ColumnTable::Acquire(const ColumnKey& key) {
  absl::MutexLock lock(&mu_);
  const auto found = by_key_.find(key);
  if (found == by_key_.end()) return std::nullopt;
  const uint32_t slot = found->second;
  if (columns_[slot].state == State::kBuilding || !Refer(slot)) return std::nullopt;
  return ColumnIndex{slot};
}

std::optional<ColumnIndex> ColumnTable::AcquireToSeal(const ColumnKey& key) {
  absl::MutexLock lock(&mu_);
  const auto found = by_key_.find(key);
  if (found == by_key_.end()) return std::nullopt;
  Column& column = columns_[found->second];
  if (column.state != State::kComplete) return std::nullopt;
  if (column.references++ == 0) tiers_.SetRetention(Blocks(key), Retention::kOwned);
  return ColumnIndex{found->second};
}

std::optional<ColumnTable::Partial> ColumnTable::AcquireLongest(const ColumnKey& parent,
                                                                absl::Span<const int32_t> tokens) {
  absl::MutexLock lock(&mu_);
  std::vector<uint32_t> damaged;  // and referred to, so that they stay
  while (true) {
    const auto first = first_child_.find(parent);
    if (first == first_child_.end()) return std::nullopt;
    uint32_t best = kNone;
    size_t best_tokens = 0;
    for (uint32_t slot = first->second; slot != kNone; slot = columns_[slot].next_sibling) {
      if (columns_[slot].state == State::kBuilding) continue;
      if (std::find(damaged.begin(), damaged.end(), slot) != damaged.end()) continue;
      const int32_t* const ids = token_ids_.data() + size_t{slot} * options_.tokens;
      const size_t limit = std::min(tokens.size(), options_.tokens);
      const auto common =
          static_cast<size_t>(std::mismatch(ids, ids + limit, tokens.begin()).first - ids);
      if (common > best_tokens) {
        best = slot;
        best_tokens = common;
      }
    }
    if (best == kNone) return std::nullopt;
    if (Refer(best)) return Partial{ColumnIndex{best}, best_tokens};
    damaged.push_back(best);
  }
}

std::optional<ColumnIndex> ColumnTable::Adopt(const ColumnKey& key, const ColumnKey& parent,
                                              absl::Span<const int32_t> tokens) {
  absl::MutexLock lock(&mu_);
  // A look first: nothing makes room for a column that is not there.
  const absl::Span<const BlockId> blocks = Blocks(key);
  if (tiers_.CountLeading(blocks) < blocks.size()) return std::nullopt;
  const absl::StatusOr<uint32_t> slot = Start(key, parent, tokens);
  if (!slot.ok()) return std::nullopt;
  columns_[*slot].state = State::kUnsummarised;
  if (!Refer(*slot)) return std::nullopt;
  return ColumnIndex{*slot};
}

void ColumnTable::AddReference(absl::Span<const ColumnIndex> columns) {
  absl::MutexLock lock(&mu_);
  for (const ColumnIndex column : columns) ++columns_[Slot(column)].references;
}

void ColumnTable::Release(absl::Span<const ColumnIndex> columns) {
  absl::MutexLock lock(&mu_);
  // The last columns of a context are the first to go, as a prefix is of use only from its start.
  for (auto column = columns.rbegin(); column != columns.rend(); ++column) {
    const auto slot = static_cast<uint32_t>(*column);
    Column& released = columns_[slot];
    TERRACE_CHECK(released.references > 0);
    if (--released.references > 0) continue;
    released.released_at = ++releases_;
    if (released.named && released.state != State::kBuilding) {
      tiers_.SetRetention(Blocks(released.key), Retention::kCached);
    } else {
      Remove(slot);
    }
  }
}

void ColumnTable::Abandon(absl::Span<const ColumnIndex> columns) {
  absl::MutexLock lock(&mu_);
  for (const ColumnIndex column : columns) {
    const auto slot = static_cast<uint32_t>(column);
    TERRACE_CHECK(columns_[slot].references > 0);
    if (--columns_[slot].references == 0) Free(slot);
  }
}

bool ColumnTable::BeginSummaries(ColumnIndex column) {
  absl::MutexLock lock(&mu_);
  State& state = columns_[Slot(column)].state;
  TERRACE_CHECK(state != State::kBuilding);
  while (state == State::kSummarising) summaries_ended_.Wait(&mu_);
  if (state == State::kComplete) return false;
  state = State::kSummarising;
  return true;
}

void ColumnTable::EndSummaries(ColumnIndex column, bool made) {
  absl::MutexLock lock(&mu_);
  State& state = columns_[Slot(column)].state;
  TERRACE_CHECK(state == State::kSummarising);
  state = made ? State::kComplete : State::kUnsummarised;
  summaries_ended_.SignalAll();
}

void ColumnTable::Remove(uint32_t slot) {
  tiers_.Drop(Blocks(columns_[slot].key));
  Free(slot);
}

void ColumnTable::Free(uint32_t slot) {
  Column& column = columns_[slot];
  by_key_.erase(column.key);
  if (column.is_posting) --postings_;
  if (column.named) {
    const auto first = first_child_.find(column.parent);
    uint32_t* link = &first->second;
    while (*link != slot) link = &columns_[*link].next_sibling;
    *link = column.next_sibling;
    if (first->second == kNone) first_child_.erase(first);
  }
  column = Column();
  free_.push_back(slot);
}

absl::Span<const int32_t> ColumnTable::tokens(ColumnIndex column) const {
  const size_t slot = Slot(column);
  if (!columns_[slot].named) return {};
  return absl::MakeConstSpan(token_ids_).subspan(slot * options_.tokens, options_.tokens);
}

absl::Span<std::byte> ColumnTable::summary(ColumnIndex column, size_t layer, size_t kv_head) const {
  const size_t head = layer * options_.kv_heads + kv_head;
  return summaries(column).subspan(summary_offsets_[head], options_.summary_bytes[head]);
}

absl::Span<std::byte> ColumnTable::summaries(ColumnIndex column) const {
  const size_t bytes = column_summary_bytes();
  return {summaries_.data() + Slot(column) * bytes, bytes};
}

size_t ColumnTable::used() const {
  absl::MutexLock lock(&mu_);
  return columns_.size() - free_.size();
}

}  // namespace terrace
