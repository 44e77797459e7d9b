#ifndef TERRACE_RUNTIME_RUNTIME_H_
#define TERRACE_RUNTIME_RUNTIME_H_

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "index/neighbour_search.h"
#include "runtime/context.h"
#include "runtime/runtime_options.h"
#include "tiers/tier_manager.h"

namespace terrace {

// A context that was saved.
struct SavedContext {
  std::string name;
  int64_t tokens = 0;
  absl::Status status;  // why it cannot be loaded
};

// One context of a batched Attend.
struct BatchedAttend {
  Context* context = nullptr;  // each at most once
  AttendInput input;
  AttendOutput output;
  absl::Status* status = nullptr;  // where not null, receives how this one ended
};

struct RuntimeStats {
  TierStats tiers;
  uint64_t window_bytes = 0;   // reserved for sinks and windows, beside the tiers
  uint64_t summary_bytes = 0;  // reserved for what lookups keep of blocks
  uint64_t index_bytes = 0;    // of graphs and clusters, of RuntimeOptions::IndexBytes
  // Of the keys of sample queries, on a device; none where the CPU does them all.
  NeighbourSearch::Counts neighbours;
  size_t columns = 0;  // of all contexts and cached prefixes
  size_t column_capacity = 0;
};

// The KV state of one model's sequences, over the tiers of one machine. Thread-safe.
class Runtime {
 public:
  // kInvalidArgument naming the option; kResourceExhausted when options.memory has not that much;
  // otherwise those of TierManager::Open and of memory.
  static absl::StatusOr<std::unique_ptr<Runtime>> Open(const RuntimeOptions& options) {
    return Open(options, {});
  }
  // The same with a device of the caller's, for tests.
  static absl::StatusOr<std::unique_ptr<Runtime>> Open(const RuntimeOptions& options,
                                                       TierManager::Parts parts);
  // REQUIRES: no context is left.
  ~Runtime();

  absl::StatusOr<std::unique_ptr<Context>> NewContext();
  // A context that begins with the longest prefix of `tokens` that is cached, at most all but the
  // last, which the engine must run anyhow: Context::tokens says how many it need not.
  absl::StatusOr<std::unique_ptr<Context>> NewContext(absl::Span<const int32_t> tokens);

  // Brings back what Context::Save saved. kNotFound; kDataLoss for a damaged manifest;
  // kFailedPrecondition when it was saved with another model, size of blocks or a larger window.
  absl::StatusOr<std::unique_ptr<Context>> Load(absl::string_view name);
  std::vector<SavedContext> Saved() const;
  // Deletes a saved context; blocks that nobody else refers to are dropped.
  absl::Status Forget(absl::string_view name);

  // Context::Attend for several contexts at once, as continuous batching has them: one set of jobs
  // for the threads, and the fetches of all under way together. The first error; other contexts of
  // the batch are served in spite of it, and BatchedAttend::status tells them apart.
  absl::Status Attend(size_t layer, absl::Span<const BatchedAttend> batch);

  const RuntimeOptions& options() const;
  TierManager& tiers();
  RuntimeStats Stats() const;

 private:
  explicit Runtime(std::unique_ptr<RuntimeCore> core);
  const std::unique_ptr<RuntimeCore> core_;
};

}  // namespace terrace

#endif  // TERRACE_RUNTIME_RUNTIME_H_
