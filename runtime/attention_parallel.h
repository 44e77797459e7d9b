#ifndef TERRACE_RUNTIME_ATTENTION_PARALLEL_H_
#define TERRACE_RUNTIME_ATTENTION_PARALLEL_H_

#include <cstddef>
#include <memory>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "index/compute_pool.h"
#include "runtime/attention.h"
#include "runtime/kv_run.h"

namespace terrace {

// A run of a job; see AttentionAccumulator::AddWithLse.
struct AttentionPart {
  KvRun run;
  absl::Span<const size_t> visible = {};  // empty, or [rows]: leading tokens that a row may see
  absl::Span<float> run_lse = {};         // empty, or [rows]: receives the run's own log-sum-exp
};

// The attention of the rows of one KV head. All is borrowed until Run returns.
struct AttentionJob {
  absl::Span<const float> queries;  // [rows, head_dim], not scaled
  absl::Span<const AttentionPart> parts;
  absl::Span<float> out;  // [rows, head_dim], written
  absl::Span<float> lse;  // [rows], written
};

// Runs attention jobs on several threads. Jobs are cut into pieces by rows and by bytes, and the
// results of the pieces are merged in their order. Neither depends on the number of threads or on
// timing, so the same jobs give the same bits always.
//
// Thread-compatible. Memory grows with the largest call so far; a call that is no larger than one
// before allocates nothing.
class ParallelAttention {
 public:
  struct Options {
    size_t head_dim = 128;
    // Threads that compute, the caller's among them, as far as there are processors; with 1
    // everything runs in the caller.
    size_t threads = 1;
  };

  // Errors of AttentionAccumulator::Create; kInvalidArgument for no threads or more than 1024.
  static absl::StatusOr<std::unique_ptr<ParallelAttention>> Create(const Options& options);
  ~ParallelAttention();

  void Run(absl::Span<const AttentionJob> jobs);

 private:
  // Where a piece begins: a token of a part.
  struct Cursor {
    size_t part = 0;
    size_t token = 0;
  };

  // Consecutive tokens of a job, for some of its rows.
  struct Piece {
    const AttentionJob* job;
    size_t first_row;
    size_t rows;
    Cursor begin;
    Cursor end;
    // Where the result goes: the job's own memory where it is the only piece, else partials_.
    absl::Span<float> out;  // [rows, head_dim]
    absl::Span<float> lse;  // [rows]
  };

  // Some rows of a job, and the pieces that make up their tokens.
  struct RowRange {
    const AttentionJob* job;
    size_t first_row;
    size_t rows;
    size_t first_piece;
    size_t pieces;
  };

  // What one thread works with.
  struct Worker {
    explicit Worker(AttentionAccumulator accumulator);
    AttentionAccumulator accumulator;
    std::vector<size_t> visible;  // scratch, [rows]
  };

  ParallelAttention(size_t head_dim, std::vector<Worker> workers);

  void Plan(absl::Span<const AttentionJob> jobs);
  void PlanRows(const AttentionJob& job, size_t first_row, size_t rows);
  // The end of a piece of about `bytes` bytes from `begin` on.
  Cursor Advance(const AttentionJob& job, Cursor begin, size_t bytes) const;
  // Gives the pieces of a range with several of them their place in partials_.
  void PlacePartials();
  void RunPiece(const Piece& piece, Worker& worker) const;
  // Adds tokens [first, end) of a part to the worker's accumulator.
  void AddTokens(const Piece& piece, Cursor first, size_t end, Worker& worker) const;
  void Merge(const RowRange& range) const;

  const size_t head_dim_;
  std::vector<Worker> workers_;  // [threads]
  ComputePool pool_;

  // The plan of the call under way.
  std::vector<Piece> pieces_;
  std::vector<RowRange> ranges_;
  std::vector<float> partials_;
  size_t planned_floats_ = 0;  // of partials_
};

}  // namespace terrace

#endif  // TERRACE_RUNTIME_ATTENTION_PARALLEL_H_
