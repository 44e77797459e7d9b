#include "runtime/graph_lookup.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"
#include "index/key_panels.h"

namespace terrace {
namespace {

// Columns that are fetched at a time.
constexpr size_t kPinColumns = 64;
// What a graph takes beside its links, rounded up.
constexpr uint64_t kBytesPerKey = 8;
constexpr uint64_t kMetricDimensions = 64;

}  // namespace

GraphLookup::GraphLookup(RuntimeCore& core, size_t layer)
    : core_(core), layer_(layer), places_(core.shape().kv_heads) {
  for (size_t head = 0; head < places_.size(); ++head) {
    if (core.policy(layer, head).kind() != LookupKind::kGraph) continue;
    places_[head] = heads_.size();
    heads_.emplace_back().kv_head = head;
  }
}

GraphLookup::~GraphLookup() { Clear(); }

absl::Status GraphLookup::Extend(absl::Span<const ColumnIndex> columns, size_t end,
                                 absl::Span<const QuerySamples> samples) {
  const size_t pinned = pinned_;
  const size_t batches = pinned_blocks_.size();
  absl::Status room = Pin(columns, end);
  const uint64_t bytes = GraphBytes(end);
  if (room.ok() && bytes > accounted_bytes_) {
    room = core_.TakeIndexMemory(bytes - accounted_bytes_);
    if (room.ok()) accounted_bytes_ = bytes;
  }
  if (!room.ok()) {
    // What the graphs do not know is of no use here, and is somebody else's room.
    pinned_blocks_.resize(batches);
    for (Head& head : heads_) head.blocks.resize(pinned);
    pinned_ = pinned;
    return room;
  }
  for (Head& head : heads_) {
    const KeyPanels keys = Keys(head);
    absl::Status status;
    if (head.index == nullptr) {
      auto index = MakeGraphIndex({});
      if (!index.ok()) return index.status();
      const QuerySamples& sample = samples[head.kv_head];
      status = (*index)->Build(keys, sample.Rows(), core_.compute());
      if (status.ok()) head.index = *std::move(index);
    } else {
      status = head.index->Append(keys, core_.compute());
    }
    if (!status.ok()) {
      Clear();  // graphs of heads differ now
      return absl::Status(status.code(), absl::StrCat("layer ", layer_, ", KV head ", head.kv_head,
                                                      ": graph: ", status.message()));
    }
  }
  columns_ = indexed_ = pinned_;
  return absl::OkStatus();
}

absl::Status GraphLookup::Pin(absl::Span<const ColumnIndex> columns, size_t end) {
  std::vector<BlockRead> reads;
  while (1 + pinned_ < end) {
    const size_t count = std::min(kPinColumns, end - 1 - pinned_);
    reads.clear();
    for (size_t i = 0; i < count; ++i) {
      for (const Head& head : heads_) {
        reads.push_back(
            {.id = core_.columns().block(columns[1 + pinned_ + i], layer_, head.kv_head)});
      }
    }
    if (absl::Status status = core_.TakePins(reads.size()); !status.ok()) return status;
    // Without patience: the context holds leases.
    absl::StatusOr<Lease> lease = core_.tiers().Fetch(reads, {.target = Tier::kDram});
    absl::Status status = lease.status();
    for (size_t i = 0; status.ok() && i < lease->size(); ++i) {
      if ((*lease)[i].outcome == BlockOutcome::kServed) continue;
      status = absl::DataLossError(absl::StrCat(
          "layer ", layer_, ": tokens ", (1 + pinned_ + i / heads_.size()) * core_.block_tokens(),
          " and after of KV head ", heads_[i % heads_.size()].kv_head, " are lost"));
    }
    if (!status.ok()) {
      core_.GivePins(reads.size());
      return status;
    }
    for (size_t i = 0; i < lease->size(); ++i) {
      heads_[i % heads_.size()].blocks.push_back((*lease)[i].data);
    }
    pinned_blocks_.push_back(std::make_shared<const PinnedBlocks>(core_, *std::move(lease)));
    pinned_ += count;
  }
  return absl::OkStatus();
}

absl::Status GraphLookup::Load(absl::Span<const std::vector<std::byte>> heads, size_t columns) {
  Clear();
  if (columns <= 1) return absl::OkStatus();
  const uint64_t memory = GraphBytes(columns);
  if (absl::Status status = core_.TakeIndexMemory(memory); !status.ok()) return status;
  accounted_bytes_ = memory;
  KeyPanels keys(core_.shape().head_dim, core_.shape().dtype, core_.block_tokens());
  for (size_t i = 1; i < columns; ++i) keys.Add(nullptr, core_.block_tokens());
  for (size_t i = 0; i < heads_.size(); ++i) {
    auto index = MakeGraphIndex({});
    absl::Status status = index.status();
    if (status.ok()) status = (*index)->Load(heads[i], keys);
    if (!status.ok()) {
      Clear();
      return status;
    }
    heads_[i].index = *std::move(index);
  }
  indexed_ = columns - 1;
  return absl::OkStatus();
}

void GraphLookup::CopyFrom(const GraphLookup& other) {
  Clear();
  if (other.indexed_ == 0) return;
  std::vector<std::vector<std::byte>> bytes(heads_.size());
  for (size_t i = 0; i < heads_.size(); ++i) other.heads_[i].index->Save(bytes[i]);
  if (!Load(bytes, other.indexed_columns()).ok() || other.columns_ == 0) return;
  pinned_blocks_ = other.pinned_blocks_;
  pinned_ = other.pinned_;
  for (size_t i = 0; i < heads_.size(); ++i) heads_[i].blocks = other.heads_[i].blocks;
  for (const Head& head : heads_) {
    if (!head.index->Append(Keys(head), core_.compute()).ok()) return Clear();
  }
  columns_ = indexed_ = pinned_;
}

KeyPanels GraphLookup::Keys(const Head& head) const {
  KeyPanels keys(core_.shape().head_dim, core_.shape().dtype, core_.block_tokens());
  for (const std::byte* const block : head.blocks) keys.Add(block, core_.block_tokens());
  return keys;
}

std::vector<size_t> GraphLookup::heads() const {
  std::vector<size_t> heads;
  for (const Head& head : heads_) heads.push_back(head.kv_head);
  return heads;
}

uint64_t GraphLookup::GraphBytes(size_t columns) const {
  const uint64_t metric = kMetricDimensions * core_.shape().head_dim * sizeof(float);
  const uint64_t links = GraphOptions().degree * sizeof(uint32_t);
  return heads_.size() * ((columns - 1) * core_.block_tokens() * (links + kBytesPerKey) + metric);
}

void GraphLookup::Unpin() {
  pinned_blocks_.clear();
  for (Head& head : heads_) head.blocks.clear();
  pinned_ = columns_ = 0;
}

void GraphLookup::Clear() {
  Unpin();
  for (Head& head : heads_) head.index.reset();
  indexed_ = 0;
  core_.GiveIndexMemory(std::exchange(accounted_bytes_, 0));
}

absl::Status GraphLookup::Search(size_t kv_head, absl::Span<const float> queries,
                                 const KeySearchOptions& options, KeySearchResult& result) const {
  return HeadOf(kv_head).index->Search(queries, options, result);
}

void GraphLookup::Gather(size_t kv_head, absl::Span<const uint32_t> tokens, std::byte* to) const {
  const std::vector<const std::byte*>& blocks = HeadOf(kv_head).blocks;
  const size_t block = core_.block_tokens();
  const size_t row = core_.tail_layout().row_bytes();
  for (const uint32_t token : tokens) {
    const std::byte* const from = blocks[token / block] + token % block * row;
    std::memcpy(to, from, row);
    std::memcpy(to + tokens.size() * row, from + block * row, row);
    to += row;
  }
}

}  // namespace terrace
