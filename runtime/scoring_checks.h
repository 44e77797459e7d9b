#ifndef TERRACE_RUNTIME_SCORING_CHECKS_H_
#define TERRACE_RUNTIME_SCORING_CHECKS_H_

#include <cstddef>

#include "absl/status/status.h"
#include "absl/types/span.h"
#include "runtime/device_scoring.h"

namespace terrace {

// What both forms of device_scoring.h check of their arguments, so that they refuse the same.
// Private to runtime/. All are kInvalidArgument naming what does not fit, unless stated otherwise.

absl::Status CheckSummaryOptions(const BlockSummary& summary, const DeviceSummaryOptions& options);
absl::Status CheckClusterOptions(const DeviceClusterOptions& options);

// Queries of whole rows for every KV head, and as many results as they have for `each` a row.
absl::Status CheckRows(size_t kv_heads, size_t head_dim, size_t queries, size_t each,
                       size_t results);
absl::Status CheckTopK(size_t k, size_t count);
// The arguments of DeviceClusters::Best, by their sizes.
absl::Status CheckBestClusters(const DeviceClusterOptions& options, size_t queries, size_t k,
                               size_t best, size_t worth);
// Tables of the right head_dim, one for each KV head, whose first segments are as large as
// `segments` says. `exactly`: and that have no others.
absl::Status CheckTables(const DeviceClusterOptions& options,
                         absl::Span<const ClusterTable* const> tables,
                         absl::Span<const size_t> segments, bool exactly);
// kResourceExhausted where `more` find no room.
absl::Status CheckRoom(size_t have, size_t more, size_t room, const char* what);

}  // namespace terrace

#endif  // TERRACE_RUNTIME_SCORING_CHECKS_H_
