#ifndef TERRACE_RUNTIME_COLUMN_TABLE_H_
#define TERRACE_RUNTIME_COLUMN_TABLE_H_

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/container/flat_hash_map.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "absl/types/span.h"
#include "io/aligned_buffer.h"
#include "tiers/block_id.h"
#include "tiers/tier_manager.h"

namespace terrace {

// Names the tokens of a column: a hash of the whole chain of tokens up to its end, or a value that
// no other context has.
struct ColumnKey {
  uint64_t high = 0;
  uint64_t low = 0;

  friend bool operator==(const ColumnKey& a, const ColumnKey& b) = default;

  template <typename H>
  friend H AbslHashValue(H state, const ColumnKey& key) {
    return H::combine(std::move(state), key.high, key.low);
  }
};

enum class ColumnIndex : uint32_t {};

// The block of one layer and KV head of a column.
BlockId ColumnBlockId(const ColumnKey& key, size_t layer, size_t kv_head);

// The columns that contexts share: a column is the blocks of all layers and KV heads for the same
// tokens_per_block tokens, with the summaries that lookups keep of them. It counts the contexts
// that refer to a column and tells the tiers: while there are any its blocks are owned; afterwards
// those of a named column are cached, so that the next context which starts with the same tokens
// finds them, and others are dropped.
//
// A column is built by one context, layer by layer, and seen by others once it is complete. One
// that an earlier run left has blocks and no summaries, until somebody makes them from the blocks.
//
// Thread-safe. Summaries are written by the thread that builds a column, or by the one that
// BeginSummaries chose, before any context looks up with them, and are constant from then on.
class ColumnTable {
 public:
  struct Options {
    size_t columns = 0;   // that exist at once, those that are only cached included
    size_t postings = 0;  // of them, at most so many of clusters
    size_t layers = 0;
    size_t kv_heads = 0;
    size_t tokens = 0;  // a column
    // Of one block, by layer and KV head: [layers, kv_heads]; 0 for heads that look nothing up.
    std::vector<size_t> summary_bytes = {};
  };
  // kResourceExhausted when the memory is not there. `tiers` outlives the table.
  static absl::StatusOr<std::unique_ptr<ColumnTable>> Create(const Options& options,
                                                             TierManager& tiers);

  // Starts a column, referred to once. `parent` and `tokens`, [Options::tokens], name it for
  // Longest; without tokens it is private to its context and those that are forked from it.
  // kAlreadyExists when there is one of this key, kResourceExhausted when all are referred to.
  absl::StatusOr<ColumnIndex> Begin(const ColumnKey& key, const ColumnKey& parent,
                                    absl::Span<const int32_t> tokens) ABSL_LOCKS_EXCLUDED(mu_);
  // The same for one that an earlier run completed, whatever became of its blocks; referred to once
  // more where it is here already. Without summaries, unless it was here with them.
  absl::StatusOr<ColumnIndex> Restore(const ColumnKey& key, const ColumnKey& parent,
                                      absl::Span<const int32_t> tokens) ABSL_LOCKS_EXCLUDED(mu_);
  // All blocks were put, and all summaries are those of this runtime's lookups.
  void Complete(ColumnIndex column) ABSL_LOCKS_EXCLUDED(mu_);
  // Starts, or restores, a column of clusters, which are tokens stored once more: private, and no
  // more of them at once than Options::postings. kResourceExhausted.
  absl::StatusOr<ColumnIndex> BeginPosting(const ColumnKey& key) ABSL_LOCKS_EXCLUDED(mu_);
  absl::StatusOr<ColumnIndex> RestorePosting(const ColumnKey& key) ABSL_LOCKS_EXCLUDED(mu_);
  bool is_complete(ColumnIndex column) const ABSL_LOCKS_EXCLUDED(mu_);

  // A column that some context or run completed, all of whose blocks some tier holds, referred to
  // once more. It may lack summaries.
  std::optional<ColumnIndex> Acquire(const ColumnKey& key) ABSL_LOCKS_EXCLUDED(mu_);
  // A complete column, referred to once more, for a context that has all of its keys and values: it
  // puts the blocks back that no tier holds.
  std::optional<ColumnIndex> AcquireToSeal(const ColumnKey& key) ABSL_LOCKS_EXCLUDED(mu_);
  // As Acquire, the column after `parent` that has most tokens in common with `tokens`, and at
  // least one.
  struct Partial {
    ColumnIndex column;
    size_t tokens = 0;
  };
  std::optional<Partial> AcquireLongest(const ColumnKey& parent, absl::Span<const int32_t> tokens)
      ABSL_LOCKS_EXCLUDED(mu_);
  // Starts a named column whose blocks some tier holds already, all of them, without summaries.
  std::optional<ColumnIndex> Adopt(const ColumnKey& key, const ColumnKey& parent,
                                   absl::Span<const int32_t> tokens) ABSL_LOCKS_EXCLUDED(mu_);
  void AddReference(absl::Span<const ColumnIndex> columns) ABSL_LOCKS_EXCLUDED(mu_);
  void Release(absl::Span<const ColumnIndex> columns) ABSL_LOCKS_EXCLUDED(mu_);
  // The same, and leaves blocks as they are: somebody unknown may need them.
  void Abandon(absl::Span<const ColumnIndex> columns) ABSL_LOCKS_EXCLUDED(mu_);

  // Whether the caller is to make the summaries of an acquired column, and to call EndSummaries
  // then. False when they are there; waits while another thread makes them.
  bool BeginSummaries(ColumnIndex column) ABSL_LOCKS_EXCLUDED(mu_);
  // `made`: they are complete. Otherwise whoever wants them next makes them.
  void EndSummaries(ColumnIndex column, bool made) ABSL_LOCKS_EXCLUDED(mu_);

  // REQUIRES for all below: the caller refers to the column.
  ColumnKey key(ColumnIndex column) const { return columns_[Slot(column)].key; }
  ColumnKey parent(ColumnIndex column) const { return columns_[Slot(column)].parent; }
  // Empty for a private one.
  absl::Span<const int32_t> tokens(ColumnIndex column) const;
  BlockId block(ColumnIndex column, size_t layer, size_t kv_head) const {
    return ColumnBlockId(key(column), layer, kv_head);
  }
  // [summary_bytes] of the layer and head.
  absl::Span<std::byte> summary(ColumnIndex column, size_t layer, size_t kv_head) const;
  // Of all layers and heads.
  absl::Span<std::byte> summaries(ColumnIndex column) const;

  const Options& options() const { return options_; }
  // Of one column.
  size_t column_summary_bytes() const { return summary_offsets_.back(); }
  size_t used() const ABSL_LOCKS_EXCLUDED(mu_);
  // Reserved: summaries, tokens and keys.
  size_t memory_bytes() const { return summaries_.size() + token_ids_.size() * sizeof(int32_t); }

 private:
  enum class State : uint8_t {
    kBuilding,      // by one context
    kUnsummarised,  // of an earlier run
    kSummarising,   // the same, and one thread makes the summaries
    kComplete,
  };
  struct Column {
    ColumnKey key;
    ColumnKey parent;
    uint32_t references = 0;
    State state = State::kBuilding;
    bool named = false;
    bool is_posting = false;
    uint64_t released_at = 0;  // order of the last release
    uint32_t next_sibling = kNone;
  };
  static constexpr uint32_t kNone = UINT32_MAX;

  ColumnTable(const Options& options, TierManager& tiers, std::vector<size_t> summary_offsets,
              AlignedBuffer summaries);

  static size_t Slot(ColumnIndex column) { return static_cast<size_t>(column); }
  // Valid until the next call.
  absl::Span<const BlockId> Blocks(const ColumnKey& key) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  // Begin, of a column that nobody refers to yet.
  absl::StatusOr<uint32_t> Start(const ColumnKey& key, const ColumnKey& parent,
                                 absl::Span<const int32_t> tokens)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  absl::StatusOr<ColumnIndex> StartPosting(const ColumnKey& key) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  // False when a block is lost; the column is removed then, if nobody refers to it.
  bool Refer(uint32_t slot) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  // Drops its blocks, and frees the slot.
  void Remove(uint32_t slot) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void Free(uint32_t slot) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  std::optional<uint32_t> FreeSlot() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);

  const Options options_;
  TierManager& tiers_;
  // Where the summary of a head lies in those of its column, and how long these are: [layers *
  // kv_heads + 1].
  const std::vector<size_t> summary_offsets_;
  const AlignedBuffer summaries_;   // [columns, column_summary_bytes()]
  std::vector<int32_t> token_ids_;  // [columns, tokens]; of a column: constant while referred to

  mutable absl::Mutex mu_;
  // The key, parent and name of a column are constant while it is referred to.
  std::vector<Column> columns_;
  std::vector<uint32_t> free_ ABSL_GUARDED_BY(mu_);
  size_t postings_ ABSL_GUARDED_BY(mu_) = 0;
  absl::flat_hash_map<ColumnKey, uint32_t> by_key_ ABSL_GUARDED_BY(mu_);
  absl::flat_hash_map<ColumnKey, uint32_t> first_child_ ABSL_GUARDED_BY(mu_);  // named ones
  uint64_t releases_ ABSL_GUARDED_BY(mu_) = 0;
  std::vector<BlockId> blocks_ ABSL_GUARDED_BY(mu_);  // what Blocks returned, reused
  absl::CondVar summaries_ended_;
};

}  // namespace terrace

#endif  // TERRACE_RUNTIME_COLUMN_TABLE_H_
