#ifndef TERRACE_RUNTIME_ATTENTION_PLAN_H_
#define TERRACE_RUNTIME_ATTENTION_PLAN_H_

#include <array>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "absl/status/status.h"
#include "absl/types/span.h"
#include "runtime/attention_parallel.h"
#include "runtime/attention_pieces.h"

namespace terrace {

// Tensor cores are used up to this head_dim; beyond it queries and sums would not fit registers.
inline constexpr size_t kMaxTensorHeadDim = 128;

// Cuts attention jobs into pieces of about the same size, so that a device is busy to the end with
// any mixture of jobs ("Flash-Decoding", Dao, Haziza, Massa, Sizov, 2023; FlashAttention-2, section
// 3.2). A piece has up to kPieceRows rows, and runs that one kernel takes; the results of the
// pieces of a range of rows are merged in their order. The plan depends on nothing but the jobs and
// the options.
//
// Thread-compatible. Memory grows with the largest plan so far.
class AttentionPlan {
 public:
  struct Options {
    size_t head_dim = 128;
    // About how many pieces all jobs together are cut into, if they have tokens enough.
    size_t pieces = 1024;
    // A piece has at least so many tokens, unless the job ends or its kernel changes.
    size_t min_tokens = 128;
  };

  explicit AttentionPlan(const Options& options) : options_(options) {}

  // Plans these jobs, whose lines it keeps no reference to. kInvalidArgument for more rows, tokens
  // of a run or limits than 32 bits count. REQUIRES: no part wants its `run_lse`.
  absl::Status Make(absl::Span<const AttentionJob> jobs);

  // Of the last plan that could be made.
  absl::Span<const DevicePart> parts() const { return parts_; }
  absl::Span<const DevicePiece> pieces(AttentionKernel kernel) const {
    return pieces_[static_cast<size_t>(kernel)];
  }
  absl::Span<const DeviceRange> ranges() const { return ranges_; }
  absl::Span<const uint32_t> limits() const { return limits_; }
  size_t rows() const { return rows_; }                  // of all jobs
  size_t partial_rows() const { return partial_rows_; }  // of all pieces
  size_t max_range_rows() const { return max_range_rows_; }

 private:
  void Clear();
  absl::Status AddParts(const AttentionJob& job);
  // Cuts the tokens of some rows of a job whose parts, from parts_[first_part] on, are `job.parts`.
  void AddRange(const AttentionJob& job, size_t first_part, size_t row_of_job, size_t rows,
                size_t piece_tokens);
  AttentionKernel KernelOf(const KvRun& run) const;

  const Options options_;
  std::vector<DevicePart> parts_;
  std::array<std::vector<DevicePiece>, kAttentionKernels> pieces_;
  std::vector<DeviceRange> ranges_;
  std::vector<uint32_t> limits_;
  size_t rows_ = 0;
  size_t partial_rows_ = 0;
  size_t max_range_rows_ = 0;
};

}  // namespace terrace

#endif  // TERRACE_RUNTIME_ATTENTION_PLAN_H_
