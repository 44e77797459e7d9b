#include "runtime/graph_lookup.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "index/key_panels.h"

namespace terrace {
namespace {

// What a graph takes beside its links, rounded up.
constexpr uint64_t kBytesPerKey = 8;
constexpr uint64_t kMetricDimensions = 64;

}  // namespace

GraphLookup::GraphLookup(RuntimeCore& core, size_t layer)
    : core_(core),
      layer_(layer),
      pinned_(core, layer, core.HeadsOf(layer, LookupKind::kGraph)),
      indexes_(core.shape().kv_heads) {}

GraphLookup::~GraphLookup() { Clear(); }

absl::Status GraphLookup::Extend(absl::Span<const ColumnIndex> columns, size_t end,
                                 absl::Span<const QuerySamples> samples) {
  const TimelineSpan span(core_.timeline(), "extend graphs", {"layer", layer_}, {"columns", end});
  const size_t before = pinned_.columns();
  absl::Status room = pinned_.Extend(columns, end);
  if (!room.ok()) return room;
  const uint64_t bytes = GraphBytes(end);
  if (bytes > accounted_bytes_) {
    room = core_.TakeIndexMemory(bytes - accounted_bytes_);
    if (!room.ok()) {
      // What the graphs do not know is of no use here, and is somebody else's room.
      pinned_.Truncate(before);
      return room;
    }
    accounted_bytes_ = bytes;
  }
  for (const size_t kv_head : heads()) {
    const KeyPanels keys = pinned_.Keys(kv_head);
    std::unique_ptr<GraphIndex>& index = indexes_[kv_head];
    absl::Status status;
    if (index == nullptr) {
      GraphOptions options;
      options.neighbours = core_.neighbours();
      auto made = MakeGraphIndex(options);
      if (!made.ok()) return made.status();
      status = (*made)->Build(keys, samples[kv_head].Rows(), core_.compute());
      if (status.ok()) index = *std::move(made);
    } else {
      status = index->Append(keys, core_.compute());
    }
    if (!status.ok()) {
      Clear();  // graphs of heads differ now
      return absl::Status(status.code(), absl::StrCat("layer ", layer_, ", KV head ", kv_head,
                                                      ": graph: ", status.message()));
    }
  }
  columns_ = indexed_ = pinned_.columns();
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
  for (size_t i = 0; i < heads.size(); ++i) {
    auto index = MakeGraphIndex({});
    absl::Status status = index.status();
    if (status.ok()) status = (*index)->Load(heads[i], keys);
    if (!status.ok()) {
      Clear();
      return status;
    }
    indexes_[this->heads()[i]] = *std::move(index);
  }
  indexed_ = columns - 1;
  return absl::OkStatus();
}

void GraphLookup::CopyFrom(const GraphLookup& other) {
  Clear();
  if (other.indexed_ == 0) return;
  std::vector<std::vector<std::byte>> bytes(heads().size());
  for (size_t i = 0; i < bytes.size(); ++i) other.Save(heads()[i], bytes[i]);
  if (!Load(bytes, other.indexed_columns()).ok() || other.columns_ == 0) return;
  pinned_ = other.pinned_;
  for (const size_t kv_head : heads()) {
    if (!indexes_[kv_head]->Append(pinned_.Keys(kv_head), core_.compute()).ok()) return Clear();
  }
  columns_ = indexed_ = pinned_.columns();
}

uint64_t GraphLookup::GraphBytes(size_t columns) const {
  const uint64_t metric = kMetricDimensions * core_.shape().head_dim * sizeof(float);
  const uint64_t links = GraphOptions().degree * sizeof(uint32_t);
  return heads().size() * ((columns - 1) * core_.block_tokens() * (links + kBytesPerKey) + metric);
}

void GraphLookup::Unpin() {
  pinned_.Truncate(0);
  columns_ = 0;
}

void GraphLookup::Clear() {
  Unpin();
  for (std::unique_ptr<GraphIndex>& index : indexes_) index.reset();
  indexed_ = 0;
  core_.GiveIndexMemory(std::exchange(accounted_bytes_, 0));
}

absl::Status GraphLookup::Search(size_t kv_head, absl::Span<const float> queries,
                                 const KeySearchOptions& options, KeySearchResult& result) const {
  return indexes_[kv_head]->Search(queries, options, result);
}

}  // namespace terrace
