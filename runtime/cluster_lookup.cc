#include "runtime/cluster_lookup.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"
#include "io/check.h"

namespace terrace {
namespace {

// An index can wait until there is room, so that no step waits for it long.
constexpr absl::Duration kPatience = absl::Seconds(1);
// Of a cluster, where it need not be a block.
constexpr size_t kClusterTokens = 16;

}  // namespace

ClusterLookup::ClusterLookup(RuntimeCore& core, size_t layer)
    : core_(core),
      layer_(layer),
      heads_(core.HeadsOf(layer, LookupKind::kCluster)),
      tables_(core.shape().kv_heads) {
  if (core.options().tiers.nvme_bytes == 0) pinned_.emplace(core, layer, heads_);
}

ClusterLookup::ClusterLookup(const ClusterLookup& other)
    : core_(other.core_),
      layer_(other.layer_),
      columns_(other.columns_),
      heads_(other.heads_),
      pinned_(other.pinned_),
      tables_(other.tables_) {
  // A copy that finds no room starts empty, and Extend reports it.
  if (!Account().ok()) Truncate(0);
}

ClusterLookup::~ClusterLookup() { core_.GiveIndexMemory(accounted_bytes_); }

absl::Status ClusterLookup::Account() {
  uint64_t bytes = 0;
  for (const size_t head : heads_) {
    if (tables_[head].has_value()) bytes += tables_[head]->memory_bytes();
  }
  if (bytes > accounted_bytes_) {
    if (absl::Status status = core_.TakeIndexMemory(bytes - accounted_bytes_); !status.ok()) {
      return status;
    }
  } else {
    core_.GiveIndexMemory(accounted_bytes_ - bytes);
  }
  accounted_bytes_ = bytes;
  return absl::OkStatus();
}

ClusterTableOptions ClusterLookup::TableOptions() const {
  // Segments are whole columns, however many of them.
  const size_t block = core_.block_tokens();
  const bool as_blocks = !reads_tokens() || block % kClusterTokens != 0 || block > kSegmentKeys;
  return {.head_dim = core_.shape().head_dim,
          .clustering = {.cluster_keys = as_blocks ? block : kClusterTokens}};
}

absl::Status ClusterLookup::Load(absl::Span<const std::vector<std::byte>> heads, size_t columns) {
  Truncate(0);
  absl::Status status;
  for (size_t i = 0; i < heads_.size() && status.ok() && columns > 0; ++i) {
    absl::StatusOr<ClusterTable> table = ClusterTable::Load(TableOptions(), heads[i]);
    status = table.status();
    if (!status.ok()) break;
    if (table->keys() != columns * core_.block_tokens()) {
      status = absl::DataLossError(absl::StrCat("a saved table has ", table->keys(), " keys, not ",
                                                columns * core_.block_tokens()));
      break;
    }
    tables_[heads_[i]].emplace(*std::move(table));
  }
  if (status.ok()) status = Account();
  if (status.ok()) {
    columns_ = columns;
  } else {
    Truncate(0);
  }
  return status;
}

absl::Status ClusterLookup::Extend(absl::Span<const ColumnIndex> columns, size_t end,
                                   absl::Span<const QuerySamples> samples,
                                   std::vector<ColumnIndex>& postings) {
  const TimelineSpan span(core_.timeline(), "extend clusters", {"layer", layer_}, {"columns", end});
  if (reads_tokens()) return ExtendPinned(columns, end, samples);
  // A segment of a head is in DRAM while it is clustered.
  const size_t room = core_.UnpinnedBlocks() * 3 / 4;
  const size_t most =
      std::clamp<size_t>(std::min(kSegmentKeys / core_.block_tokens(), room), 1, kSegmentKeys);
  while (end_column() < end) {
    const size_t count = std::min(most, end - end_column());
    while (postings.size() < columns_ + count) {
      const auto column = core_.columns().BeginPosting(core_.NewKey());
      if (!column.ok()) return column.status();
      postings.push_back(*column);
    }
    const absl::Status status =
        AddSegment(columns, count, samples, absl::MakeConstSpan(postings).subspan(columns_, count));
    if (!status.ok()) return status;
  }
  return absl::OkStatus();
}

absl::Status ClusterLookup::ExtendPinned(absl::Span<const ColumnIndex> columns, size_t end,
                                         absl::Span<const QuerySamples> samples) {
  // What was let go first.
  if (absl::Status status = pinned_->Extend(columns, 1 + columns_); !status.ok()) return status;
  const size_t most = std::max<size_t>(kSegmentKeys / core_.block_tokens(), 1);
  while (1 + columns_ < end) {
    const size_t before = columns_;
    const size_t next = std::min(end, 1 + before + most);
    absl::Status status = pinned_->Extend(columns, next);
    if (!status.ok()) return status;
    std::vector<absl::Status> statuses(heads_.size());
    core_.compute().ForEach(heads_.size(), [&](size_t i, size_t) {
      const size_t kv_head = heads_[i];
      statuses[i] = AddKeys(kv_head, pinned_->Keys(kv_head), pinned_->Values(kv_head),
                            (next - 1) * core_.block_tokens(), samples[kv_head]);
    });
    for (const absl::Status& of_head : statuses) status.Update(of_head);
    columns_ = next - 1;
    if (status.ok()) status = Account();
    if (!status.ok()) {
      Truncate(before);
      return absl::Status(status.code(),
                          absl::StrCat("layer ", layer_, ": clusters of tokens ",
                                       (1 + before) * core_.block_tokens(), " to ",
                                       next * core_.block_tokens(), ": ", status.message()));
    }
  }
  return absl::OkStatus();
}

absl::Status ClusterLookup::AddKeys(size_t kv_head, const KeyPanels& keys, const KeyPanels& values,
                                    size_t end_key, const QuerySamples& samples) {
  std::optional<ClusterTable>& table = tables_[kv_head];
  if (!table.has_value()) {
    const std::vector<float> rows = samples.Rows();
    auto made = ClusterTable::Create(
        TableOptions(), rows.empty() ? QuerySpace(core_.shape().head_dim) : QuerySpace(rows, keys));
    if (!made.ok()) return made.status();
    table.emplace(*std::move(made));
  }
  ComputePool alone(1);  // heads are divided among the threads already
  return table->Add(keys, &values, end_key, alone);
}

absl::Status ClusterLookup::AddSegment(absl::Span<const ColumnIndex> columns, size_t count,
                                       absl::Span<const QuerySamples> samples,
                                       absl::Span<const ColumnIndex> postings) {
  // As many heads at a time as can work at once and find room in DRAM, with some left for others.
  const size_t room = core_.UnpinnedBlocks() * 3 / 4 / count;
  const size_t batch = std::clamp<size_t>(room, 1, core_.compute().threads());
  std::vector<std::byte> blocks;
  absl::Status status;
  for (size_t first = 0; first < heads_.size() && status.ok(); first += batch) {
    const absl::Span<const size_t> heads = absl::MakeConstSpan(heads_).subspan(first, batch);
    status = Cluster(heads, columns, count, samples, blocks);
    if (status.ok()) status = PutBlocks(heads, postings, blocks);
  }
  const size_t before = columns_;
  columns_ += count;
  if (status.ok()) status = Account();
  if (status.ok()) return status;
  // The next try may cut the segments otherwise, and a block keeps the bytes that it was put with.
  std::vector<BlockId> ids;
  for (const ColumnIndex posting : postings) {
    for (const size_t head : heads_) ids.push_back(core_.columns().block(posting, layer_, head));
  }
  core_.tiers().Drop(ids);
  Truncate(before);
  return absl::Status(
      status.code(),
      absl::StrCat("layer ", layer_, ": clusters of tokens ", end_column() * core_.block_tokens(),
                   " to ", (end_column() + count) * core_.block_tokens(), ": ", status.message()));
}

absl::Status ClusterLookup::Cluster(absl::Span<const size_t> heads,
                                    absl::Span<const ColumnIndex> columns, size_t count,
                                    absl::Span<const QuerySamples> samples,
                                    std::vector<std::byte>& blocks) {
  const size_t tokens = core_.block_tokens();
  const size_t bytes = core_.options().BlockBytes();
  const size_t head_dim = core_.shape().head_dim;
  const KvDtype dtype = core_.shape().dtype;
  const size_t first = columns_;  // of the panels: column 1 is panel 0
  std::vector<BlockRead> reads;
  for (const size_t head : heads) {
    for (size_t i = 0; i < count; ++i) {
      reads.push_back({.id = core_.columns().block(columns[1 + first + i], layer_, head)});
    }
  }
  const absl::StatusOr<Lease> lease =
      core_.tiers().Fetch(reads, {.target = Tier::kDram, .lease_patience = kPatience});
  if (!lease.ok()) return lease.status();
  for (size_t i = 0; i < lease->size(); ++i) {
    if ((*lease)[i].outcome == BlockOutcome::kServed) continue;
    return core_.NotServed(reads[i].id,
                           absl::StrCat("a block of KV head ", heads[i / count], " is lost"));
  }
  blocks.resize(heads.size() * count * bytes);
  std::vector<absl::Status> statuses(heads.size());
  core_.compute().ForEach(heads.size(), [&](size_t job, size_t) {
    KeyPanels keys(head_dim, dtype, tokens);
    KeyPanels values(head_dim, dtype, tokens);
    for (size_t i = 0; i < first + count; ++i) {
      // The table has those of earlier segments, and reads no more of them.
      const std::byte* const data = i < first ? nullptr : (*lease)[job * count + i - first].data;
      keys.Add(data, tokens);
      values.Add(data == nullptr ? nullptr : data + bytes / 2, tokens);
    }
    const size_t kv_head = heads[job];
    statuses[job] = AddKeys(kv_head, keys, values, (first + count) * tokens, samples[kv_head]);
    if (!statuses[job].ok()) return;
    const size_t row = keys.key_bytes();
    std::byte* to = blocks.data() + job * count * bytes;
    for (size_t c = first; c < first + count; ++c, to += bytes) {
      const ClusterTable::Members members = table(kv_head).members(c);
      for (size_t i = 0; i < tokens; ++i) {
        const size_t key = members.first_key + members.offsets[i];
        std::memcpy(to + i * row, keys.key(key), row);
        std::memcpy(to + bytes / 2 + i * row, values.key(key), row);
      }
    }
  });
  for (const absl::Status& status : statuses) {
    if (!status.ok()) return status;
  }
  return absl::OkStatus();
}

absl::Status ClusterLookup::PutBlocks(absl::Span<const size_t> heads,
                                      absl::Span<const ColumnIndex> postings,
                                      absl::Span<const std::byte> blocks) {
  const size_t bytes = core_.options().BlockBytes();
  // By column and then by head, which is the order in which a step reads them.
  for (size_t c = 0; c < postings.size(); ++c) {
    for (size_t i = 0; i < heads.size(); ++i) {
      const BlockWrite write = {.id = core_.columns().block(postings[c], layer_, heads[i]),
                                .bytes = blocks.subspan((i * postings.size() + c) * bytes, bytes),
                                .retention = Retention::kOwned};
      if (absl::Status status = core_.tiers().Put({&write, 1}, {.lease_patience = kPatience});
          !status.ok()) {
        return status;
      }
    }
  }
  return absl::OkStatus();
}

absl::Status ClusterLookup::PutAgain(size_t kv_head, size_t cluster,
                                     absl::Span<const ColumnIndex> columns, ColumnIndex posting) {
  const size_t tokens = core_.block_tokens();
  const size_t bytes = core_.options().BlockBytes();
  const size_t row = core_.tail_layout().row_bytes();
  const ClusterTable::Members members = table(kv_head).members(cluster);
  std::vector<std::byte> block(bytes);
  for (size_t i = 0; i < tokens; ++i) {
    const size_t key = members.first_key + members.offsets[i];
    const BlockRead read = {.id =
                                core_.columns().block(columns[1 + key / tokens], layer_, kv_head)};
    const absl::StatusOr<Lease> lease =
        core_.tiers().Fetch({&read, 1}, {.target = Tier::kDram, .lease_patience = kPatience});
    if (!lease.ok()) return lease.status();
    if ((*lease)[0].outcome != BlockOutcome::kServed) {
      return core_.NotServed(read.id, absl::StrCat("layer ", layer_, ", KV head ", kv_head,
                                                   ": token ", tokens + key, " is lost"));
    }
    const std::byte* const from = (*lease)[0].data + key % tokens * row;
    std::memcpy(block.data() + i * row, from, row);
    std::memcpy(block.data() + bytes / 2 + i * row, from + bytes / 2, row);
  }
  const size_t heads[] = {kv_head};
  return PutBlocks(heads, {&posting, 1}, block);
}

size_t ClusterLookup::WholeSegments(size_t columns) const {
  if (columns >= columns_) return columns_;
  // Segments of all heads are the same, of whole columns each.
  return table(heads_[0]).WholeSegments(columns * core_.block_tokens()) / core_.block_tokens();
}

void ClusterLookup::Truncate(size_t columns) {
  columns_ = columns;
  for (const size_t head : heads_) {
    if (!tables_[head].has_value()) continue;
    if (columns == 0) {
      tables_[head].reset();
    } else {
      tables_[head]->Truncate(columns * core_.block_tokens());
      TERRACE_CHECK_EQ(tables_[head]->keys(), columns * core_.block_tokens());
    }
  }
  if (reads_tokens()) pinned_->Truncate(columns);
  // Less memory than before is always granted.
  Account().IgnoreError();
}

void ClusterLookup::Unpin() {
  if (reads_tokens()) pinned_->Truncate(0);
}

}  // namespace terrace
