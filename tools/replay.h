#ifndef TERRACE_TOOLS_REPLAY_H_
#define TERRACE_TOOLS_REPLAY_H_

#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "absl/types/span.h"
#include "io/latency_histogram.h"
#include "io/timeline.h"
#include "tiers/tier_manager.h"
#include "tools/ops_log.h"
#include "tools/trace.h"

namespace terrace {

struct ReplayOptions {
  uint64_t seed = 1;              // of the block generator
  std::optional<uint64_t> space;  // that blocks are put in, to be encrypted
  uint64_t flush_every = 64;      // requests; 0 never
  std::string flush_log;          // file that flushed hash ids are appended to; empty for none
  std::string export_ops;         // file for the block operations, see OpsLog; empty for none
  std::shared_ptr<Timeline> timeline = {};  // of requests; null for none
  double pace = 0;  // times the speed of the trace's clock; 0 as fast as possible
};

struct ReplayResult {
  uint64_t requests = 0;
  uint64_t block_refs = 0;
  uint64_t reused_blocks = 0;
  uint64_t computed_blocks = 0;
  std::array<uint64_t, kTierCount> hits = {};
  uint64_t corrupt_blocks = 0;   // served with wrong bytes
  uint64_t unstored_blocks = 0;  // computed, but no tier took them
  uint64_t failed_flushes = 0;
  absl::Status flush_error;  // of the first failed flush
  bool interrupted = false;
  double wall_seconds = 0;
  double fetch_seconds = 0;        // spent in Fetch
  LatencyHistogram fetch_latency;  // of each Fetch, a batch of blocks

  // Adds what another replay did.
  void Add(const ReplayResult& other);
};

// Replays a trace through real tiers: for each request the leading blocks that some tier holds are
// fetched and verified byte for byte against their generator, and the others are generated and put,
// as an engine would compute them. Requests longer than the fast tier stream through it in batches.
// Thread-compatible.
class Replay {
 public:
  // Called after every request. May be empty.
  using ProgressFunction = std::function<void(const ReplayResult& so_far)>;

  // Borrows all three for its lifetime. `stop` may be set from a signal handler: the replay then
  // ends after the request at hand.
  Replay(TierManager& tiers, const Trace& trace, const std::atomic<bool>& stop,
         ReplayOptions options);

  // Errors are of the log files and of tiers that cannot go on. The result is valid either way.
  absl::Status Run(const ProgressFunction& progress);
  const ReplayResult& result() const { return result_; }

 private:
  absl::Status RunRequests(const ProgressFunction& progress, absl::Time start);
  absl::Status RunRequest(absl::Span<const uint64_t> hash_ids);
  // Reuses what it can from the front and returns how many blocks that was.
  absl::StatusOr<size_t> ReuseLeading(absl::Span<const uint64_t> hash_ids);
  absl::StatusOr<size_t> ReuseBatch(absl::Span<const uint64_t> hash_ids);
  absl::Status Verify(uint64_t hash_id, const LeasedBlock& block);
  absl::Status ComputeBlock(uint64_t hash_id);
  absl::Status Flush();
  void WaitForArrival(const TraceRequest& request, absl::Time start) const;
  BlockId IdOf(uint64_t hash_id) const { return {options_.seed, hash_id}; }

  TierManager& tiers_;
  const Trace& trace_;
  const std::atomic<bool>& stop_;
  const ReplayOptions options_;
  const size_t batch_blocks_;
  std::vector<BlockId> ids_;      // of the request at hand
  std::vector<std::byte> block_;  // one block, for generating and verifying
  std::vector<uint64_t> unflushed_;
  OpsLog ops_;
  ReplayResult result_;
};

}  // namespace terrace

#endif  // TERRACE_TOOLS_REPLAY_H_
