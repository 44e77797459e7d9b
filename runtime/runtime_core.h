#ifndef TERRACE_RUNTIME_RUNTIME_CORE_H_
#define TERRACE_RUNTIME_RUNTIME_CORE_H_

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/container/flat_hash_set.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "absl/types/span.h"
#include "index/compute_pool.h"
#include "index/neighbour_search.h"
#include "io/aligned_buffer.h"
#include "runtime/attention.h"
#include "runtime/column_table.h"
#include "runtime/device_attention.h"
#include "runtime/device_tails.h"
#include "runtime/lookup_policy.h"
#include "runtime/rope.h"
#include "runtime/runtime_options.h"
#include "runtime/tail.h"
#include "tiers/tier_manager.h"

namespace terrace {

class AttendPass;
class Context;
class SavedContexts;

// What all contexts of a runtime share. Private to runtime/.
//
// Thread-safe. Its lock is never held across I/O, and never while the lock of a context is waited
// for.
class RuntimeCore {
 public:
  // How long a call that holds no blocks waits for calls of other contexts to let go of theirs.
  // They always do: who holds blocks attends to them and waits for nobody.
  static constexpr absl::Duration kLeasePatience = absl::Seconds(30);

  // `options` validate.
  static absl::StatusOr<std::unique_ptr<RuntimeCore>> Open(RuntimeOptions options,
                                                           TierManager::Parts parts);
  ~RuntimeCore();

  const RuntimeOptions& options() const { return options_; }
  const ModelShape& shape() const { return options_.shape; }
  Timeline* timeline() const { return options_.timeline.get(); }
  TierManager& tiers() { return *tiers_; }
  ColumnTable& columns() { return *columns_; }
  SavedContexts& saved() { return *saved_; }
  const ColumnKey& chain_root() const { return chain_root_; }
  ComputePool& compute() { return compute_; }
  // What builds graphs faster than compute(), where HBM is on a device that does; null elsewhere.
  NeighbourSearch* neighbours() const { return neighbours_.get(); }
  const Rope& rope() const { return rope_; }
  const TailLayout& tail_layout() const { return tail_layout_; }
  // Where tails are mirrored for attention in HBM; null without such a tier.
  const DeviceTails* device_tails() const { return device_tails_.get(); }
  // Where blocks are attended to.
  Tier far_tier() const { return device_tails_ != nullptr ? Tier::kHbm : Tier::kDram; }
  // Attention in HBM. Errors of MakeCudaAttention and MakeHostDeviceAttention.
  absl::StatusOr<std::unique_ptr<DeviceAttention>> MakeDeviceAttention() const;
  const LookupPolicy& policy(size_t layer, size_t kv_head) const {
    return *policies_[layer * options_.shape.kv_heads + kv_head];
  }
  // The KV heads of a layer that have such a policy, ascending.
  std::vector<size_t> HeadsOf(size_t layer, LookupKind kind) const;
  // The block in which the window of a query at `position` begins, as its first token.
  int64_t WindowBegin(int64_t position) const;
  size_t block_tokens() const { return options_.tokens_per_block; }

  // --- Contexts and the memory of their tails ---
  void Register(Context& context) ABSL_LOCKS_EXCLUDED(mu_);
  void Unregister(Context& context) ABSL_LOCKS_EXCLUDED(mu_);
  // Memory for one tail, and one block for each KV head behind it. Parks the context that was idle
  // longest where none is free. kResourceExhausted when every other context is at work.
  absl::StatusOr<std::byte*> TakeTail() ABSL_LOCKS_EXCLUDED(mu_);
  void GiveTail(std::byte* memory) ABSL_LOCKS_EXCLUDED(mu_);
  uint64_t NextUse() ABSL_LOCKS_EXCLUDED(mu_);
  // A key that nobody else has.
  ColumnKey NewKey() ABSL_LOCKS_EXCLUDED(mu_);

  // --- The state of calls to Attend ---
  absl::StatusOr<std::unique_ptr<AttendPass>> TakePass() ABSL_LOCKS_EXCLUDED(mu_);
  void GivePass(std::unique_ptr<AttendPass> pass) ABSL_LOCKS_EXCLUDED(mu_);
  // Of a thread of compute(). Holds [max_append_tokens * group] rows.
  AttentionAccumulator& accumulator(size_t worker) { return accumulators_[worker]; }

  // Makes the summaries that columns of earlier runs lack, from their blocks and without token
  // masses; all columns are complete then. To be called with what the caller acquired, before any
  // context has it. kDataLoss when a block is lost.
  absl::Status CompleteSummaries(absl::Span<const ColumnIndex> columns);
  // Why a block was not served: kDataLoss with this text, or kUnavailable where it is there still
  // and a copy from or to HBM failed, so that whoever asks again may get it.
  absl::Status NotServed(const BlockId& id, absl::string_view text);
  uint64_t window_bytes() const { return tails_.size(); }

  // --- What indexes of contexts take ---
  // Memory beside the tiers, up to RuntimeOptions::IndexBytes. kResourceExhausted beyond.
  absl::Status TakeIndexMemory(uint64_t bytes) ABSL_LOCKS_EXCLUDED(mu_);
  void GiveIndexMemory(uint64_t bytes) ABSL_LOCKS_EXCLUDED(mu_);
  uint64_t index_bytes() const ABSL_LOCKS_EXCLUDED(mu_);
  // Blocks of the DRAM tier that leases may hold for as long as a context is active. Some remain
  // for everybody else: kResourceExhausted before that.
  absl::Status TakePins(size_t blocks) ABSL_LOCKS_EXCLUDED(mu_);
  void GivePins(size_t blocks) ABSL_LOCKS_EXCLUDED(mu_);
  // Blocks of the DRAM tier that are not held so.
  size_t UnpinnedBlocks() const ABSL_LOCKS_EXCLUDED(mu_);

 private:
  explicit RuntimeCore(RuntimeOptions options, Rope rope);
  absl::Status MakePolicies();
  absl::Status OpenTiers(TierManager::Parts parts);
  absl::Status MakeMemory();
  void MakeNeighbours();
  absl::Status Summarise(ColumnIndex column);
  // Takes bytes of the memory that is shared with others, if any is.
  absl::Status Reserve(uint64_t bytes);

  const RuntimeOptions options_;
  std::vector<MemoryReservation> reservations_;
  const Rope rope_;
  TailLayout tail_layout_;
  std::vector<std::unique_ptr<LookupPolicy>> policies_;  // [layers, kv_heads]
  ComputePool compute_;
  std::unique_ptr<NeighbourSearch> neighbours_;
  std::vector<AttentionAccumulator> accumulators_;  // [threads]
  std::unique_ptr<TierManager> tiers_;
  std::unique_ptr<ColumnTable> columns_;
  std::unique_ptr<SavedContexts> saved_;
  ColumnKey chain_root_;  // of prefixes
  AlignedBuffer tails_;
  std::unique_ptr<DeviceTails> device_tails_;

  mutable absl::Mutex mu_;
  uint64_t index_bytes_ ABSL_GUARDED_BY(mu_) = 0;
  size_t pins_ ABSL_GUARDED_BY(mu_) = 0;
  absl::flat_hash_set<Context*> contexts_ ABSL_GUARDED_BY(mu_);
  std::vector<std::byte*> free_tails_ ABSL_GUARDED_BY(mu_);
  std::vector<std::unique_ptr<AttendPass>> passes_ ABSL_GUARDED_BY(mu_);
  uint64_t uses_ ABSL_GUARDED_BY(mu_) = 0;
  ColumnKey key_seed_ ABSL_GUARDED_BY(mu_);
};

}  // namespace terrace

#endif  // TERRACE_RUNTIME_RUNTIME_CORE_H_
