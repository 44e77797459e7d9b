#include "runtime/pinned_columns.h"

#include <algorithm>
#include <cstring>

#include "absl/strings/str_cat.h"
#include "index/prefetch.h"

namespace terrace {
namespace {

// Columns that are fetched at a time.
constexpr size_t kBatchColumns = 64;
// Tokens lie apart, where the processor does not see them coming: so many ahead are asked for.
constexpr size_t kPrefetched = 8;

}  // namespace

PinnedColumns::PinnedColumns(RuntimeCore& core, size_t layer, std::vector<size_t> kv_heads)
    : core_(&core), layer_(layer), kv_heads_(std::move(kv_heads)), blocks_(core.shape().kv_heads) {}

absl::Status PinnedColumns::Extend(absl::Span<const ColumnIndex> columns, size_t end) {
  if (end <= 1 + columns_) return absl::OkStatus();
  const size_t before = columns_;
  // All at once, so that what finds no room finds out before anything is fetched.
  size_t left = (end - 1 - columns_) * kv_heads_.size();
  absl::Status status = core_->TakePins(left);
  if (!status.ok()) return status;
  while (status.ok() && 1 + columns_ < end) {
    const size_t count = std::min(kBatchColumns, end - 1 - columns_);
    status = PinBatch(columns, count);
    if (status.ok()) left -= count * kv_heads_.size();
  }
  if (!status.ok()) {
    core_->GivePins(left);
    Truncate(before);
  }
  return status;
}

absl::Status PinnedColumns::PinBatch(absl::Span<const ColumnIndex> columns, size_t count) {
  std::vector<BlockRead> reads;
  for (const ColumnIndex column : columns.subspan(1 + columns_, count)) {
    for (const size_t kv_head : kv_heads_) {
      reads.push_back({.id = core_->columns().block(column, layer_, kv_head)});
    }
  }
  // Without patience: the context holds leases.
  absl::StatusOr<Lease> lease = core_->tiers().Fetch(reads, {.target = Tier::kDram});
  absl::Status status = lease.status();
  for (size_t i = 0; status.ok() && i < lease->size(); ++i) {
    if ((*lease)[i].outcome == BlockOutcome::kServed) continue;
    status = core_->NotServed(
        reads[i].id,
        absl::StrCat("layer ", layer_, ": tokens ",
                     (1 + columns_ + i / kv_heads_.size()) * core_->block_tokens(),
                     " and after of KV head ", kv_heads_[i % kv_heads_.size()], " are lost"));
  }
  if (!status.ok()) return status;
  for (size_t i = 0; i < lease->size(); ++i) {
    blocks_[kv_heads_[i % kv_heads_.size()]].push_back((*lease)[i].data);
  }
  batches_.push_back(std::make_shared<const Batch>(*core_, columns_, *std::move(lease)));
  columns_ += count;
  return absl::OkStatus();
}

void PinnedColumns::Truncate(size_t columns) {
  while (columns_ > columns) {
    columns_ = batches_.back()->first;
    batches_.pop_back();
  }
  for (const size_t kv_head : kv_heads_) blocks_[kv_head].resize(columns_);
}

size_t PinnedColumns::value_offset() const {
  return core_->block_tokens() * core_->tail_layout().row_bytes();
}

KeyPanels PinnedColumns::Panels(size_t kv_head, size_t offset) const {
  KeyPanels panels(core_->shape().head_dim, core_->shape().dtype, core_->block_tokens());
  for (const std::byte* const block : blocks_[kv_head]) {
    panels.Add(block + offset, core_->block_tokens());
  }
  return panels;
}

void PinnedColumns::Gather(size_t kv_head, absl::Span<const uint32_t> tokens, std::byte* to) const {
  const std::vector<const std::byte*>& blocks = blocks_[kv_head];
  const size_t block = core_->block_tokens();
  const size_t row = core_->tail_layout().row_bytes();
  const size_t values = value_offset();
  const auto key = [&](uint32_t token) { return blocks[token / block] + token % block * row; };
  for (size_t i = 0; i < tokens.size(); ++i) {
    if (i + kPrefetched < tokens.size()) {
      const std::byte* const next = key(tokens[i + kPrefetched]);
      PrefetchBytes(next, row);
      PrefetchBytes(next + values, row);
    }
    const std::byte* const from = key(tokens[i]);
    std::memcpy(to + i * row, from, row);
    std::memcpy(to + (tokens.size() + i) * row, from + values, row);
  }
}

}  // namespace terrace
