#include "runtime/scoring_checks.h"

#include "absl/strings/str_cat.h"
#include "runtime/top_k.h"

namespace terrace {
namespace {

constexpr size_t kMaxKvHeads = 1024;
constexpr size_t kMaxHeadDim = 1024;
// Of the vectors of one head, so that numbers of them and of their scores fit 32 bits.
constexpr size_t kMaxVectors = size_t{1} << 30;
constexpr size_t kMaxRows = 1024;
constexpr size_t kMaxHeadRows = 65535;  // of all heads: a limit of CUDA's grids
// What one thread block of a device takes the best of.
constexpr size_t kMaxSummaryVectors = 256;

absl::Status NotFrom(const char* what, size_t value, size_t least, size_t most) {
  return absl::InvalidArgumentError(
      absl::StrCat(what, ": ", value, " is not from ", least, " to ", most));
}

absl::Status CheckShape(size_t kv_heads, size_t head_dim) {
  if (kv_heads == 0 || kv_heads > kMaxKvHeads) return NotFrom("kv_heads", kv_heads, 1, kMaxKvHeads);
  if (head_dim == 0 || head_dim % 8 != 0 || head_dim > kMaxHeadDim) {
    return absl::InvalidArgumentError(
        absl::StrCat("head_dim: ", head_dim, " is not a multiple of 8 up to ", kMaxHeadDim));
  }
  return absl::OkStatus();
}

}  // namespace

absl::Status CheckSummaryOptions(const BlockSummary& summary, const DeviceSummaryOptions& options) {
  if (absl::Status status = CheckShape(options.kv_heads, options.head_dim); !status.ok()) {
    return status;
  }
  const SummaryLayout layout = summary.layout();
  if (layout.dimensions != options.head_dim && layout.dimensions != 2 * options.head_dim) {
    return absl::InvalidArgumentError(absl::StrCat("head_dim: ", options.head_dim,
                                                   " for summaries of vectors with ",
                                                   layout.dimensions, " dimensions"));
  }
  if (layout.count > kMaxSummaryVectors) {
    return NotFrom("vectors of a summary", layout.count, 1, kMaxSummaryVectors);
  }
  const size_t most = kMaxVectors / layout.count;
  if (options.blocks == 0 || options.blocks > most) {
    return NotFrom("blocks", options.blocks, 1, most);
  }
  return absl::OkStatus();
}

absl::Status CheckClusterOptions(const DeviceClusterOptions& options) {
  if (absl::Status status = CheckShape(options.kv_heads, options.head_dim); !status.ok()) {
    return status;
  }
  if (options.clusters == 0 || options.clusters > kMaxVectors) {
    return NotFrom("clusters", options.clusters, 1, kMaxVectors);
  }
  return absl::OkStatus();
}

absl::Status CheckRows(size_t kv_heads, size_t head_dim, size_t queries, size_t each,
                       size_t results) {
  const size_t rows = queries / (kv_heads * head_dim);
  if (rows * kv_heads * head_dim != queries || rows == 0 || rows > kMaxRows ||
      kv_heads * rows > kMaxHeadRows) {
    return absl::InvalidArgumentError(
        absl::StrCat(queries, " elements of queries are not from 1 to ", kMaxRows, " rows of ",
                     head_dim, " for each of ", kv_heads, " KV heads"));
  }
  if (results != kv_heads * rows * each) {
    return absl::InvalidArgumentError(
        absl::StrCat("room for ", results, " results, not ", kv_heads * rows * each));
  }
  return absl::OkStatus();
}

absl::Status CheckTopK(size_t k, size_t count) {
  if (k == 0 || k > count || k > kMaxTopK) {
    return absl::InvalidArgumentError(absl::StrCat("k: ", k, " is not from 1 to the ", count,
                                                   " there are, and at most ", kMaxTopK));
  }
  return absl::OkStatus();
}

absl::Status CheckBestClusters(const DeviceClusterOptions& options, size_t queries, size_t k,
                               size_t best, size_t worth) {
  const size_t rows = queries / (options.kv_heads * options.head_dim);
  absl::Status status =
      CheckRows(options.kv_heads, options.head_dim, queries, 1, options.kv_heads * rows);
  if (!status.ok()) return status;
  if (best != options.kv_heads * k || (worth != 0 && worth != best)) {
    return absl::InvalidArgumentError(absl::StrCat("room for ", best, " clusters and ", worth,
                                                   " shares, not ", options.kv_heads * k));
  }
  return absl::OkStatus();
}

absl::Status CheckTables(const DeviceClusterOptions& options,
                         absl::Span<const ClusterTable* const> tables,
                         absl::Span<const size_t> segments, bool exactly) {
  if (tables.size() != options.kv_heads) {
    return absl::InvalidArgumentError(
        absl::StrCat(tables.size(), " tables for ", options.kv_heads, " KV heads"));
  }
  for (size_t head = 0; head < tables.size(); ++head) {
    const ClusterTable& table = *tables[head];
    const ClusterTable& first = *tables[0];
    bool fits =
        table.space().head_dim() == options.head_dim && table.segments() == first.segments() &&
        table.cluster_keys() == first.cluster_keys() &&
        (exactly ? table.segments() == segments.size() : table.segments() >= segments.size());
    for (size_t i = 0; fits && i < table.segments(); ++i) {
      fits = table.segment_means(i).clusters ==
             (i < segments.size() ? segments[i] : first.segment_means(i).clusters);
    }
    if (!fits) {
      return absl::InvalidArgumentError(
          absl::StrCat("the clusters of KV head ", head, " are not like those before"));
    }
  }
  return absl::OkStatus();
}

absl::Status CheckRoom(size_t have, size_t more, size_t room, const char* what) {
  if (more <= room - have) return absl::OkStatus();
  return absl::ResourceExhaustedError(
      absl::StrCat(more, " ", what, " beside ", have, ", with room for ", room));
}

}  // namespace terrace
