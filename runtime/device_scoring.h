#ifndef TERRACE_RUNTIME_DEVICE_SCORING_H_
#define TERRACE_RUNTIME_DEVICE_SCORING_H_

#include <cstddef>
#include <cstdint>
#include <memory>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "index/block_summary.h"
#include "index/cluster_table.h"

namespace terrace {

// Lookups on a device: what tells which keys a query wants is copied there once, and every step
// sends queries and gets back what to read. Each has a host form, its twin. Private to runtime/.
//
// Thread-compatible. Calls return when their results are there. Errors: kInvalidArgument for shapes
// that do not fit, and those of CopyEngine; after an error of the device nothing is usable.

struct DeviceSummaryOptions {
  size_t kv_heads = 8;
  size_t head_dim = 128;
  size_t blocks = 0;   // room for so many of each KV head
  size_t threads = 1;  // of the host form
};

// The summaries of the blocks of all KV heads of a layer. Queries are [kv_heads, rows, head_dim],
// finite, and scaled by 1 / sqrt(head_dim).
class DeviceSummaries {
 public:
  virtual ~DeviceSummaries() = default;

  // Adds blocks behind those that are there: `summaries` is [blocks, kv_heads], of the form that
  // this was made for. kResourceExhausted, and nothing is added, beyond the room.
  virtual absl::Status Append(absl::Span<const std::byte* const> summaries) = 0;
  // Forgets the blocks from `blocks` on. REQUIRES: there are as many.
  virtual void Truncate(size_t blocks) = 0;
  virtual size_t blocks() const = 0;

  // `scores` is [kv_heads, rows, blocks()]: those of BlockSummary::Score, bit for bit.
  virtual absl::Status Score(absl::Span<const float> queries, absl::Span<float> scores) = 0;
  // Writes the k blocks with the largest scores, the best first, and among equals the first.
  // `best` is [kv_heads, rows, k], and k is from 1 to blocks() and at most kMaxTopK.
  virtual absl::Status Best(absl::Span<const float> queries, size_t k,
                            absl::Span<uint32_t> best) = 0;
  // What the last Score or Best took on the device, without copies to and from it.
  virtual double device_seconds() const = 0;
};

// `summary` outlives the result. kUnavailable where the library was built without CUDA or no device
// answers; kInvalidArgument naming the option, and for summaries of more than 256 vectors.
absl::StatusOr<std::unique_ptr<DeviceSummaries>> MakeCudaSummaries(
    const BlockSummary& summary, const DeviceSummaryOptions& options, int device);
absl::StatusOr<std::unique_ptr<DeviceSummaries>> MakeHostSummaries(
    const BlockSummary& summary, const DeviceSummaryOptions& options);

struct DeviceClusterOptions {
  size_t kv_heads = 8;
  size_t head_dim = 128;
  size_t clusters = 0;  // room for so many of each KV head
  size_t threads = 1;   // of the host form
};

// The mean keys of the clusters of all KV heads of a layer. `tables` has a table for each KV head,
// all with segments of the same sizes; queries are as for DeviceSummaries.
class DeviceClusters {
 public:
  virtual ~DeviceClusters() = default;

  // Adds the segments that `tables` have behind those that are here. kResourceExhausted, and
  // nothing is added, beyond the room.
  virtual absl::Status Extend(absl::Span<const ClusterTable* const> tables) = 0;
  // Forgets the segments from `segments` on. REQUIRES: there are as many.
  virtual void Truncate(size_t segments) = 0;
  virtual size_t clusters() const = 0;

  // `logits` is [kv_heads, rows, clusters()]: the logarithms of the mean exponentials of the keys
  // of each cluster, as ClusterTable::Score estimates them, bit for bit. `tables` are those of
  // Extend, which have the same segments.
  virtual absl::Status Score(absl::Span<const ClusterTable* const> tables,
                             absl::Span<const float> queries, absl::Span<float> logits) = 0;
  // Writes the k clusters with the largest shares of a row's mass, summed over the rows, the best
  // first, and among equals the first; it is what ClusterTable::Rank chooses for k clusters of a
  // table without residual codes. `best` is [kv_heads, k], and `worth` is empty or [kv_heads, k],
  // for the shares. k is from 1 to clusters() and at most kMaxTopK.
  virtual absl::Status Best(absl::Span<const ClusterTable* const> tables,
                            absl::Span<const float> queries, size_t k, absl::Span<uint32_t> best,
                            absl::Span<float> worth) = 0;
  // What the last Score or Best took on the device, without copies to and from it.
  virtual double device_seconds() const = 0;
};

// Errors as for summaries.
absl::StatusOr<std::unique_ptr<DeviceClusters>> MakeCudaClusters(
    const DeviceClusterOptions& options, int device);
absl::StatusOr<std::unique_ptr<DeviceClusters>> MakeHostClusters(
    const DeviceClusterOptions& options);

}  // namespace terrace

#endif  // TERRACE_RUNTIME_DEVICE_SCORING_H_
