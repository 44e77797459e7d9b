#ifndef TERRACE_RUNTIME_CONTEXT_H_
#define TERRACE_RUNTIME_CONTEXT_H_

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/container/flat_hash_set.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/synchronization/mutex.h"
#include "absl/types/span.h"
#include "index/kv_dtype.h"
#include "runtime/column_table.h"
#include "runtime/context_stats.h"
#include "runtime/lost_tokens.h"
#include "runtime/tail.h"
#include "tiers/lease.h"

namespace terrace {

class ContextIndex;
class RuntimeCore;

// One block that a KV head attends to.
struct FarBlock {
  bool is_cluster = false;
  uint32_t column = 0;  // from the start of the context, or the number of the cluster
  uint32_t kv_head = 0;

  friend auto operator<=>(const FarBlock&, const FarBlock&) = default;
};

// Keys and values of consecutive tokens of one layer. Borrowed until the call returns.
struct KvInput {
  const void* keys = nullptr;    // [tokens, kv_heads, head_dim] of dtype, in ModelShape::key_state
  const void* values = nullptr;  // the same
  size_t tokens = 0;
  KvDtype dtype = KvDtype::kFloat32;
};

// Queries of tokens that were appended. Borrowed until the call returns.
struct AttendInput {
  const void* queries = nullptr;  // [positions, query_heads, head_dim] of dtype, in key_state
  // Where in the context each query stands, ascending; it sees the tokens up to there.
  absl::Span<const int64_t> positions;
  KvDtype dtype = KvDtype::kFloat32;
};

struct AttendOutput {
  absl::Span<float> out;  // [positions, query_heads, head_dim]
  // [positions, query_heads], the natural logarithm of the sum of exp(logit) over all tokens that
  // were attended to; may be empty.
  absl::Span<float> lse = {};
};

// The KV state of one sequence: the engine appends the keys and values that its model computes,
// layer by layer, and asks for attention over them. Sinks and the local window are in memory; older
// tokens are blocks in the tiers, and a lookup finds the few that a query needs.
//
// A step of a model with tokens t .. t + n is, for each layer, Append of n tokens and then Attend
// with their n queries, n up to RuntimeOptions::max_append_tokens. Attention that is not yet in a
// block is exact; blocks are attended to as the lookup of the layer and head decides. Blocks that
// the tiers lost are left out, the step completes, and LostTokens names them.
//
// Thread-safe, one call at a time; use a context from one thread and several contexts from several.
// Must not outlive its Runtime. After Drop, and after an error that lost the window, every call
// fails with kFailedPrecondition.
class Context {
 public:
  // Drops the context unless it was saved: what is saved stays on NVMe.
  ~Context();
  Context(const Context&) = delete;
  Context& operator=(const Context&) = delete;

  // Says which tokens stand at positions `first` and after, before Append brings them, so that
  // contexts which start with the same tokens share their blocks. Tokens that were named and not
  // appended yet are named anew, as when a step is tried again; tokens appended without a name end
  // the sharing. kInvalidArgument for a gap, or another id for a token that was appended.
  absl::Status AddTokenIds(int64_t first, absl::Span<const int32_t> tokens)
      ABSL_LOCKS_EXCLUDED(mu_);

  // Appends to one layer; all or nothing. kInvalidArgument for a layer, dtype or number of tokens
  // that does not fit, or an element that is not finite in the stored dtype, naming it;
  // kResourceExhausted when the tiers have no room for the blocks that leave the window.
  absl::Status Append(size_t layer, const KvInput& input) ABSL_LOCKS_EXCLUDED(mu_);

  // Attention of the queries over the tokens of their layer. kInvalidArgument for shapes or
  // positions that do not fit or a query that is not finite; kResourceExhausted when DRAM cannot
  // hold one block for each KV head.
  absl::Status Attend(size_t layer, const AttendInput& input, const AttendOutput& output)
      ABSL_LOCKS_EXCLUDED(mu_);

  // Shows the indexes of a layer what its queries look like, for engines that compute the attention
  // of a prompt by themselves; Attend does the same with its queries. Positions need not have been
  // appended. kInvalidArgument for a layer or shapes that do not fit.
  absl::Status ObserveQueries(size_t layer, const AttendInput& input) ABSL_LOCKS_EXCLUDED(mu_);
  // Indexes all sealed tokens of one layer for its heads with policies graph and cluster. Attend
  // does it by itself when there is enough to index, in the call that finds it so; this is for
  // engines that want to choose the time, or to know how it went. kResourceExhausted where there is
  // no room, kDataLoss where a block is lost; what is not indexed is attended to exactly.
  absl::Status BuildIndex(size_t layer) ABSL_LOCKS_EXCLUDED(mu_);

  // Forgets the tokens from `tokens` on, in all layers, as when speculative tokens are rejected or
  // a step ended in an error; no more than the shortest layer has can stay. What was in the window
  // before is fetched back. kDataLoss when a block that must come back is lost, which loses the
  // context. After kResourceExhausted the next call that needs the window goes on with it.
  absl::Status Truncate(int64_t tokens) ABSL_LOCKS_EXCLUDED(mu_);
  // A context of the first `tokens` tokens of this one. Sealed blocks are shared, the window is
  // copied. Errors as Truncate.
  absl::StatusOr<std::unique_ptr<Context>> Fork(int64_t tokens) ABSL_LOCKS_EXCLUDED(mu_);

  // Makes the context durable under a name, from which Runtime::Load brings it back, in another
  // process too. Blocks stay where they are. Replaces an older one of that name, in one step.
  // kFailedPrecondition without an NVMe tier or while layers differ in length.
  absl::Status Save(absl::string_view name) ABSL_LOCKS_EXCLUDED(mu_);

  // Puts keys and values of whole blocks back that were lost: `first_token` and the tokens are
  // multiples of tokens_per_block, below the window. The lost ranges they cover are forgotten.
  absl::Status Refill(size_t layer, int64_t first_token, const KvInput& input)
      ABSL_LOCKS_EXCLUDED(mu_);

  // Moves sinks and window to the tiers until the next call that needs them.
  absl::Status Park() ABSL_LOCKS_EXCLUDED(mu_);
  // Forgets everything; cached prefixes stay for others.
  void Drop() ABSL_LOCKS_EXCLUDED(mu_);

  // Tokens in all layers, and in one.
  int64_t tokens() const ABSL_LOCKS_EXCLUDED(mu_);
  int64_t tokens(size_t layer) const ABSL_LOCKS_EXCLUDED(mu_);
  // The first tokens, as far as AddTokenIds named them, in the life before a Load too.
  std::vector<int32_t> TokenIds() const ABSL_LOCKS_EXCLUDED(mu_);
  // What lookups asked for and the tiers had lost, oldest first, until it is refilled.
  std::vector<LostTokens> Lost() const ABSL_LOCKS_EXCLUDED(mu_);
  ContextStats Stats() const ABSL_LOCKS_EXCLUDED(mu_);

 private:
  friend class AttendPass;
  friend class SavedContexts;
  friend class Runtime;
  friend class RuntimeCore;

  enum class State : uint8_t { kActive, kParked, kDropped, kBroken };

  explicit Context(RuntimeCore& core);

  int64_t TokensLocked() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  // The sealed columns of a layer.
  absl::Span<const ColumnIndex> SealedColumns(size_t layer) const
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  // Brings the window into memory; fails for a context that is gone.
  absl::Status MakeReady() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  absl::Status CheckLayer(size_t layer) const;
  // The block in which the window of the last of `tokens` tokens begins, as its first token.
  int64_t WindowBeginOf(int64_t tokens) const;
  // Seals in each layer what any layer has sealed below `tokens`, so that those columns are whole.
  absl::Status SealColumns(int64_t tokens) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  // Layers of the same length, and every column complete.
  absl::Status EvenOut(absl::string_view what) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void ReleaseAll() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  // Keys for the whole blocks of token_ids_ that have none yet.
  void ExtendChain() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void ForgetTokenIds(int64_t tokens) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);

  // Of contexts that nobody uses just now, the one whose last use is longest ago among those with a
  // window in memory, locked; nullptr when there is none.
  static Context* LockIdlest(const absl::flat_hash_set<Context*>& contexts)
      ABSL_NO_THREAD_SAFETY_ANALYSIS;
  static absl::Status ParkAndUnlock(Context& context) ABSL_NO_THREAD_SAFETY_ANALYSIS;

  // context_append.cc
  absl::Status CheckInput(size_t layer, const KvInput& input) const;
  absl::Status SealUpTo(size_t layer, int64_t tokens) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  absl::Status SealBlock(size_t layer) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  absl::Status PutBlock(size_t layer, ColumnIndex column) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  absl::StatusOr<ColumnIndex> ColumnAt(size_t index) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  absl::Status EncodeBlock(size_t layer, size_t kv_head, const KvInput& input, size_t from,
                           absl::Span<std::byte> block) const;
  void Summarise(ColumnIndex column, size_t layer) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);

  // context_park.cc
  absl::Status ParkLocked() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  absl::Status Unpark() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  std::vector<BlockId> ParkedBlocks() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);

  // context_rewind.cc
  // Makes a new context the one that `tokens` come to. Takes over a reference to each of `columns`,
  // whatever it returns.
  absl::Status StartWith(std::vector<ColumnIndex> columns, absl::Span<const int32_t> tokens)
      ABSL_LOCKS_EXCLUDED(mu_);
  // Forgets the tokens from `tokens` on, given that each layer of the tail ends at `tokens` or has
  // none: fetches what the window lacks from columns_, and releases the columns that it then holds.
  absl::Status ReturnTo(int64_t tokens) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  absl::Status FetchFront(size_t layer, int64_t begin) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  absl::Status FetchSinks(size_t layer) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  absl::StatusOr<Lease> FetchRow(size_t layer, size_t column) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);

  RuntimeCore& core_;
  mutable absl::Mutex mu_;
  State state_ ABSL_GUARDED_BY(mu_) = State::kParked;
  uint64_t last_use_ ABSL_GUARDED_BY(mu_) = 0;
  absl::Status broken_ ABSL_GUARDED_BY(mu_);

  Tail tail_ ABSL_GUARDED_BY(mu_);
  std::byte* memory_ ABSL_GUARDED_BY(mu_) = nullptr;  // of the tail, while active
  // Where a return was on its way to when there was no room for it.
  std::optional<int64_t> rewind_to_ ABSL_GUARDED_BY(mu_);
  // Names the blocks that hold a parked tail; nullopt when there is nothing to hold.
  bool has_sinks_ ABSL_GUARDED_BY(mu_) = true;
  std::optional<ColumnKey> parked_ ABSL_GUARDED_BY(mu_);

  // Sealed blocks: layer l has sealed those of the first tail_.first(l) / tokens_per_block columns.
  std::vector<ColumnIndex> columns_ ABSL_GUARDED_BY(mu_);
  // Layers that have sealed their block of each column; kShared for one that was complete already.
  static constexpr uint32_t kShared = UINT32_MAX;
  std::vector<uint32_t> sealed_layers_ ABSL_GUARDED_BY(mu_);
  std::vector<int32_t> token_ids_ ABSL_GUARDED_BY(mu_);  // of the first tokens, as far as named
  std::vector<ColumnKey> chain_ ABSL_GUARDED_BY(mu_);    // a key for each whole block of them

  // What the last call attended to first, by layer: what the next step probably wants.
  std::vector<std::vector<FarBlock>> last_blocks_ ABSL_GUARDED_BY(mu_);
  LostTokenList lost_ ABSL_GUARDED_BY(mu_);
  const std::unique_ptr<ContextIndex> index_ ABSL_PT_GUARDED_BY(mu_);
  ContextStats stats_ ABSL_GUARDED_BY(mu_);
};

}  // namespace terrace

#endif  // TERRACE_RUNTIME_CONTEXT_H_
