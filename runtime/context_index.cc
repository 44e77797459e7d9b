#include "runtime/context_index.h"

#include <algorithm>
#include <utility>

namespace terrace {
namespace {

// Rows that a head keeps: graphs are drawn from what samples find, and clusters need no more than
// the directions in which queries spread.
constexpr size_t kGraphSamples = 8192;
constexpr size_t kClusterSamples = 1024;
// Lost clusters that one call makes anew, as each reads many blocks.
constexpr size_t kRepairs = 64;

}  // namespace

ContextIndex::ContextIndex(RuntimeCore& core) : core_(core), layers_(core.shape().layers) {
  for (size_t number = 0; number < layers_.size(); ++number) {
    Layer& layer = layers_[number];
    layer.samples.resize(core.shape().kv_heads);
    for (size_t head = 0; head < layer.samples.size(); ++head) {
      const LookupKind kind = core.policy(number, head).kind();
      if (kind == LookupKind::kGraph) {
        layer.samples[head] = QuerySamples(core.shape().head_dim, kGraphSamples);
        if (layer.graphs == nullptr) layer.graphs = std::make_unique<GraphLookup>(core, number);
      } else if (kind == LookupKind::kCluster) {
        layer.samples[head] = QuerySamples(core.shape().head_dim, kClusterSamples);
        if (layer.clusters == nullptr) {
          layer.clusters = std::make_unique<ClusterLookup>(core, number);
        }
      }
    }
  }
}

ContextIndex::~ContextIndex() { Clear(); }

bool ContextIndex::is_used() const {
  return std::any_of(layers_.begin(), layers_.end(), [](const Layer& layer) {
    return layer.clusters != nullptr || layer.graphs != nullptr;
  });
}

void ContextIndex::AddQueries(size_t layer, size_t kv_head, absl::Span<const float> queries) {
  if (core_.policy(layer, kv_head).has_index()) layers_[layer].samples[kv_head].Add(queries);
}

void ContextIndex::Extend(size_t layer, absl::Span<const ColumnIndex> columns, bool decoding) {
  Layer& of = layers_[layer];
  if (of.clusters == nullptr && of.graphs == nullptr) return;
  if (!of.lost.empty()) Repair(layer, columns);
  const size_t tokens = core_.block_tokens();
  const size_t worth = std::max<size_t>(core_.options().index_tail_tokens / tokens, 1);
  const size_t segment = std::max<size_t>(kSegmentKeys / tokens, 1);
  const auto refused = [&](size_t& retry_columns) {
    ++refusals_;
    retry_columns = columns.size() + worth;
  };
  if (of.clusters != nullptr) {
    const size_t first = 1 + of.clusters->columns();
    const size_t lacking = columns.size() > first ? columns.size() - first : 0;
    size_t wanted = decoding && lacking >= worth ? lacking : lacking / segment * segment;
    if (columns.size() < of.retry_clusters) wanted = 0;
    // To hold again what was let go is cheap, and is tried in every call.
    const bool let_go = decoding && of.clusters->end_column() < first;
    if ((wanted > 0 || let_go) &&
        !of.clusters->Extend(columns, first + wanted, of.samples, postings_).ok()) {
      refused(of.retry_clusters);
    }
  }
  if (of.graphs != nullptr && decoding && columns.size() >= of.retry_graphs) {
    const bool let_go = of.graphs->indexed_columns() > of.graphs->end_column();
    const bool lacking =
        columns.size() >= std::max(of.graphs->indexed_columns(), size_t{1}) + worth;
    if ((let_go || lacking) &&
        !of.graphs
             ->Extend(columns, lacking ? columns.size() : of.graphs->indexed_columns(), of.samples)
             .ok()) {
      refused(of.retry_graphs);
    }
  }
}

absl::Status ContextIndex::Build(size_t layer, absl::Span<const ColumnIndex> columns) {
  Layer& of = layers_[layer];
  if (of.clusters != nullptr && columns.size() > of.clusters->end_column()) {
    absl::Status status = of.clusters->Extend(columns, columns.size(), of.samples, postings_);
    if (!status.ok()) return status;
  }
  if (of.graphs != nullptr && columns.size() > of.graphs->end_column()) {
    return of.graphs->Extend(columns, columns.size(), of.samples);
  }
  return absl::OkStatus();
}

const PinnedColumns* ContextIndex::tokens(size_t layer, size_t kv_head) const {
  const Layer& of = layers_[layer];
  switch (core_.policy(layer, kv_head).kind()) {
    case LookupKind::kGraph:
      return &of.graphs->pinned();
    case LookupKind::kCluster:
      return of.clusters->reads_tokens() ? &of.clusters->pinned() : nullptr;
    default:
      return nullptr;
  }
}

void ContextIndex::NoteLost(size_t layer, size_t kv_head, size_t cluster) {
  layers_[layer].lost.push_back({kv_head, cluster});
}

// One that is not made now is noted again by the next call that wants it.
void ContextIndex::Repair(size_t layer, absl::Span<const ColumnIndex> columns) {
  Layer& of = layers_[layer];
  const size_t count = std::min(of.lost.size(), kRepairs);
  for (size_t i = 0; i < count; ++i) {
    const Lost& lost = of.lost[i];
    if (lost.cluster >= of.clusters->columns()) continue;
    const absl::Status status =
        of.clusters->PutAgain(lost.kv_head, lost.cluster, columns, postings_[lost.cluster]);
    if (!status.ok()) break;
  }
  of.lost.clear();
}

void ContextIndex::Truncate(size_t columns) {
  TruncateClusters(columns > 0 ? columns - 1 : 0);
  for (Layer& layer : layers_) {
    layer.retry_clusters = layer.retry_graphs = 0;
    if (layer.graphs != nullptr && layer.graphs->indexed_columns() > columns) {
      layer.graphs->Clear();
    }
  }
}

void ContextIndex::TruncateClusters(size_t keep) {
  for (bool again = true; again;) {
    again = false;
    for (Layer& layer : layers_) {
      if (layer.clusters == nullptr || layer.clusters->columns() <= keep) continue;
      const size_t whole = layer.clusters->WholeSegments(keep);
      layer.clusters->Truncate(whole);
      if (layer.clusters->reads_tokens()) continue;
      again |= whole < keep;
      keep = whole;
    }
  }
  if (postings_.size() > keep) {
    core_.columns().Release(absl::MakeConstSpan(postings_).subspan(keep));
    postings_.resize(keep);
  }
  for (Layer& layer : layers_) {
    std::erase_if(layer.lost, [&](const Lost& lost) { return lost.cluster >= keep; });
  }
}

void ContextIndex::Even() {
  while (!postings_.empty()) {
    size_t least = postings_.size();
    for (const Layer& layer : layers_) {
      if (layer.clusters != nullptr) least = std::min(least, layer.clusters->columns());
    }
    TruncateClusters(least);
    const bool even = std::all_of(layers_.begin(), layers_.end(), [&](const Layer& layer) {
      return layer.clusters == nullptr || layer.clusters->columns() == least;
    });
    if (even) return;
  }
}

void ContextIndex::CopyFrom(ContextIndex& other) {
  other.Even();
  Clear();
  postings_ = other.postings_;
  core_.columns().AddReference(postings_);
  for (size_t number = 0; number < layers_.size(); ++number) {
    const Layer& from = other.layers_[number];
    Layer& to = layers_[number];
    to.samples = from.samples;
    if (from.graphs != nullptr) to.graphs->CopyFrom(*from.graphs);
    if (from.clusters != nullptr) to.clusters = std::make_unique<ClusterLookup>(*from.clusters);
  }
  Even();
}

void ContextIndex::Unpin() {
  for (Layer& layer : layers_) {
    layer.retry_clusters = layer.retry_graphs = 0;
    if (layer.graphs != nullptr) layer.graphs->Unpin();
    if (layer.clusters != nullptr) layer.clusters->Unpin();
  }
}

void ContextIndex::Clear() {
  Truncate(0);
  for (Layer& layer : layers_) {
    if (layer.graphs != nullptr) layer.graphs->Clear();
    for (QuerySamples& samples : layer.samples) samples.Clear();
  }
}

}  // namespace terrace
