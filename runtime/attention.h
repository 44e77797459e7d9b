#ifndef TERRACE_RUNTIME_ATTENTION_H_
#define TERRACE_RUNTIME_ATTENTION_H_

#include <cstddef>

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "io/aligned_buffer.h"
#include "runtime/attention_kernels.h"
#include "runtime/kv_run.h"

namespace terrace {

// The dimensions that attention supports: multiples of 8 up to here.
inline constexpr size_t kMaxAttentionHeadDim = 512;

// Partial attention of one KV head: the softmax-weighted mean of the values of all runs added so
// far, and the natural logarithm of the sum of the exponentials of their scores, which is what it
// takes to merge it with the partial attention over other tokens. The softmax is computed online, a
// tile of tokens after the other ("Online normalizer calculation for softmax", Milakov and
// Gimelshein, 2018; FlashAttention, Dao et al., 2022, section 3.1), and each tile is read once for
// all rows.
//
// Rows are query vectors that attend to the same KV head: `group` for one token, tokens x group
// for a chunk of a prompt.
//
// Keys, values and queries are finite; then no result is NaN, however large the scores. The sum of
// the values of all tokens stays within fp32, as that of fp16 values does.
//
// All memory is reserved by Create. Thread-compatible.
class AttentionAccumulator {
 public:
  // For up to max_rows rows. kInvalidArgument for a head_dim that is not a multiple of 8 from 8 to
  // kMaxAttentionHeadDim, or no rows; kResourceExhausted when there is no memory.
  static absl::StatusOr<AttentionAccumulator> Create(size_t max_rows, size_t head_dim);

  size_t head_dim() const { return head_dim_; }
  size_t max_rows() const { return max_rows_; }
  // The rows of the last Reset.
  size_t rows() const { return rows_; }

  // Begins anew with no tokens and these queries, which are copied and scaled by
  // 1 / sqrt(head_dim): [rows, head_dim], at most max_rows rows.
  void Reset(absl::Span<const float> queries);

  // Adds the tokens of a run. `visible`, [rows], says how many of its first tokens each row may
  // see, as a causal mask wants it; counts beyond the run mean all of it; empty means all of it for
  // every row. `next` is the run that will be added after this one, if it is known: its first
  // tokens are asked from memory in time, which makes short runs as fast as long ones.
  void Add(const KvRun& run, absl::Span<const size_t> visible = {}, const KvRun& next = {});

  // The same, and writes the log-sum-exp of this run alone to `run_lse`, [rows]; -infinity for a
  // row that sees none of it. exp(run_lse - lse) is the share of the attention that the run gets.
  void AddWithLse(const KvRun& run, absl::Span<const size_t> visible, absl::Span<float> run_lse,
                  const KvRun& next = {});

  // Writes the result so far, `out` [rows, head_dim] and `lse` [rows]. A row that has seen no token
  // gets zeros and -infinity. More runs may be added afterwards.
  void Finish(absl::Span<float> out, absl::Span<float> lse);

  // Adds to mass[t] the attention that token t of the run receives from all rows together: the sum
  // over the rows of exp(score - lse of the row). `lse`, [rows], is what Finish gave for all tokens
  // that take part; rows with -infinity add nothing. `mass` is [run.tokens]. Uses the queries of
  // the last Reset and the keys of the run, and changes no result.
  void AddColumnMass(const KvRun& run, absl::Span<const size_t> visible,
                     absl::Span<const float> lse, absl::Span<float> mass);

 private:
  AttentionAccumulator(size_t max_rows, size_t head_dim, AlignedBuffer memory);

  // Clears what was added since the last Settle.
  void Clear();
  // Moves what was added since the last Settle over to settled_. Sums of a bounded number of tokens
  // are added to sums of many that way, or else a long context would drown its last tokens in
  // rounding errors.
  void Settle();

  // Constant after construction.
  size_t max_rows_;
  size_t head_dim_;
  AlignedBuffer memory_;

  size_t rows_ = 0;
  size_t recent_tokens_ = 0;  // in recent_
  bool any_settled_ = false;  // whether settled_ holds anything
  float* queries_ = nullptr;  // [padded rows, head_dim], scaled
  SoftmaxState recent_;       // the tokens since the last Settle
  SoftmaxState settled_;      // all tokens before
  float* scratch_ = nullptr;  // of the kernels
};

// Merges one more partition into (out, lse), which hold a partition or the merged result of
// several, over other tokens: [rows, head_dim] and [rows]. Rows for which either side is empty (an
// lse of -infinity) become the other side. Associative and commutative up to rounding.
void MergePartials(size_t head_dim, absl::Span<const float> partial_out,
                   absl::Span<const float> partial_lse, absl::Span<float> out,
                   absl::Span<float> lse);

}  // namespace terrace

#endif  // TERRACE_RUNTIME_ATTENTION_H_
