#include "runtime/attention_parallel.h"

#include <algorithm>
#include <thread>
#include <utility>

#include "absl/strings/str_cat.h"
#include "io/check.h"

namespace terrace {
namespace {

constexpr size_t kMaxThreads = 1024;

// Rows of a piece: enough for a tile of keys and values to be converted once for many of them, few
// enough for their state to stay in the second-level cache.
constexpr size_t kMaxRows = 64;

// A piece has at least so many bytes, some 10 us of reading from memory, which is many times the
// cost of a task.
constexpr size_t kMinPieceBytes = size_t{256} << 10;

// The results of the pieces of some rows are together at most as large as those of so many rows.
constexpr size_t kMaxPartialRows = 256;

// Floats that are merged sooner than another thread has woken up.
constexpr size_t kMaxMergedHere = size_t{64} << 10;

size_t TokenBytes(const KvRun& run, size_t head_dim) {
  return 2 * head_dim * KvDtypeBytes(run.dtype);
}

size_t JobBytes(const AttentionJob& job, size_t head_dim) {
  size_t bytes = 0;
  for (const AttentionPart& part : job.parts) {
    bytes += part.run.tokens * TokenBytes(part.run, head_dim);
  }
  return bytes;
}

}  // namespace

ParallelAttention::Worker::Worker(AttentionAccumulator accumulator)
    : accumulator(std::move(accumulator)), visible(kMaxRows) {}

absl::StatusOr<std::unique_ptr<ParallelAttention>> ParallelAttention::Create(
    const Options& options) {
  if (options.threads == 0 || options.threads > kMaxThreads) {
    return absl::InvalidArgumentError(
        absl::StrCat("threads: ", options.threads, " is not from 1 to ", kMaxThreads));
  }
  const size_t processors = std::max(1u, std::thread::hardware_concurrency());
  const size_t threads = std::min(options.threads, processors);
  std::vector<Worker> workers;
  workers.reserve(threads);
  for (size_t i = 0; i < threads; ++i) {
    absl::StatusOr<AttentionAccumulator> accumulator =
        AttentionAccumulator::Create(kMaxRows, options.head_dim);
    if (!accumulator.ok()) return accumulator.status();
    workers.emplace_back(*std::move(accumulator));
  }
  return std::unique_ptr<ParallelAttention>(
      new ParallelAttention(options.head_dim, std::move(workers)));
}

ParallelAttention::ParallelAttention(size_t head_dim, std::vector<Worker> workers)
    : head_dim_(head_dim), workers_(std::move(workers)), pool_(workers_.size()) {}

ParallelAttention::~ParallelAttention() = default;

void ParallelAttention::Run(absl::Span<const AttentionJob> jobs) {
  Plan(jobs);
  pool_.ForEach(pieces_.size(),
                [this](size_t i, size_t worker) { RunPiece(pieces_[i], workers_[worker]); });
  if (planned_floats_ <= kMaxMergedHere) {
    for (const RowRange& range : ranges_) Merge(range);
  } else {
    pool_.ForEach(ranges_.size(), [this](size_t i, size_t) { Merge(ranges_[i]); });
  }
}

void ParallelAttention::Plan(absl::Span<const AttentionJob> jobs) {
  pieces_.clear();
  ranges_.clear();
  for (const AttentionJob& job : jobs) {
    const size_t rows = job.lse.size();
    TERRACE_CHECK_EQ(job.queries.size(), rows * head_dim_);
    TERRACE_CHECK_EQ(job.out.size(), rows * head_dim_);
    for (const AttentionPart& part : job.parts) {
      TERRACE_CHECK(part.visible.empty() || part.visible.size() == rows);
      TERRACE_CHECK(part.run_lse.empty() || part.run_lse.size() == rows);
    }
    for (size_t row = 0; row < rows; row += kMaxRows) {
      PlanRows(job, row, std::min(kMaxRows, rows - row));
    }
  }
  PlacePartials();
}

void ParallelAttention::PlanRows(const AttentionJob& job, size_t first_row, size_t rows) {
  const size_t bytes = JobBytes(job, head_dim_);
  const size_t max_pieces = kMaxPartialRows / rows;
  const size_t piece_bytes = std::max(kMinPieceBytes, (bytes + max_pieces - 1) / max_pieces);
  RowRange range = {.job = &job,
                    .first_row = first_row,
                    .rows = rows,
                    .first_piece = pieces_.size(),
                    .pieces = 0};
  Cursor begin;
  do {
    const Cursor end = Advance(job, begin, piece_bytes);
    pieces_.push_back({.job = &job,
                       .first_row = first_row,
                       .rows = rows,
                       .begin = begin,
                       .end = end,
                       .out = job.out.subspan(first_row * head_dim_, rows * head_dim_),
                       .lse = job.lse.subspan(first_row, rows)});
    begin = end;
  } while (begin.part < job.parts.size());
  range.pieces = pieces_.size() - range.first_piece;
  ranges_.push_back(range);
}

ParallelAttention::Cursor ParallelAttention::Advance(const AttentionJob& job, Cursor begin,
                                                     size_t bytes) const {
  Cursor end = begin;
  while (end.part < job.parts.size()) {
    const AttentionPart& part = job.parts[end.part];
    const size_t token_bytes = TokenBytes(part.run, head_dim_);
    const size_t left = part.run.tokens - end.token;
    // Whole tiles; a run whose own log-sum-exp is wanted stays whole.
    const size_t tiles = (bytes / token_bytes + kAttentionTileTokens - 1) / kAttentionTileTokens;
    const size_t fitting = tiles * kAttentionTileTokens;
    if (fitting < left && part.run_lse.empty()) {
      end.token += fitting;
      return end;
    }
    bytes -= std::min(bytes, left * token_bytes);
    end = {.part = end.part + 1, .token = 0};
    if (bytes == 0) return end;
  }
  return end;
}

void ParallelAttention::PlacePartials() {
  planned_floats_ = 0;
  for (const RowRange& range : ranges_) {
    if (range.pieces > 1) planned_floats_ += range.pieces * range.rows * (head_dim_ + 1);
  }
  if (planned_floats_ > partials_.size()) partials_.resize(planned_floats_);
  absl::Span<float> free = absl::MakeSpan(partials_);
  const auto take = [&free](size_t count) {
    const absl::Span<float> taken = free.first(count);
    free.remove_prefix(count);
    return taken;
  };
  for (const RowRange& range : ranges_) {
    if (range.pieces == 1) continue;
    for (Piece& piece : absl::MakeSpan(pieces_).subspan(range.first_piece, range.pieces)) {
      piece.out = take(range.rows * head_dim_);
      piece.lse = take(range.rows);
    }
  }
}

void ParallelAttention::RunPiece(const Piece& piece, Worker& worker) const {
  worker.accumulator.Reset(
      piece.job->queries.subspan(piece.first_row * head_dim_, piece.rows * head_dim_));
  Cursor at = piece.begin;
  for (; at.part < piece.end.part; at = {.part = at.part + 1, .token = 0}) {
    AddTokens(piece, at, piece.job->parts[at.part].run.tokens, worker);
  }
  if (at.token < piece.end.token) AddTokens(piece, at, piece.end.token, worker);
  worker.accumulator.Finish(piece.out, piece.lse);
}

void ParallelAttention::AddTokens(const Piece& piece, Cursor first, size_t end,
                                  Worker& worker) const {
  const AttentionPart& part = piece.job->parts[first.part];
  const KvRun run = part.run.WithStrides(head_dim_).Slice(first.token, end - first.token);
  absl::Span<const size_t> visible = part.visible;
  if (!visible.empty()) visible = visible.subspan(piece.first_row, piece.rows);
  if (first.token > 0 && !visible.empty()) {
    for (size_t row = 0; row < piece.rows; ++row) {
      worker.visible[row] = visible[row] - std::min(visible[row], first.token);
    }
    visible = absl::MakeConstSpan(worker.visible).first(piece.rows);
  }
  KvRun next;
  if (end < part.run.tokens) {
    next = part.run.WithStrides(head_dim_).Slice(end, part.run.tokens - end);
  } else if (first.part + 1 < piece.job->parts.size()) {
    next = piece.job->parts[first.part + 1].run;
  }
  absl::Span<float> run_lse = part.run_lse;
  if (!run_lse.empty()) run_lse = run_lse.subspan(piece.first_row, piece.rows);
  worker.accumulator.AddWithLse(run, visible, run_lse, next);
}

void ParallelAttention::Merge(const RowRange& range) const {
  if (range.pieces == 1) return;
  const absl::Span<float> out =
      range.job->out.subspan(range.first_row * head_dim_, range.rows * head_dim_);
  const absl::Span<float> lse = range.job->lse.subspan(range.first_row, range.rows);
  const Piece& first = pieces_[range.first_piece];
  std::copy(first.out.begin(), first.out.end(), out.begin());
  std::copy(first.lse.begin(), first.lse.end(), lse.begin());
  for (size_t i = 1; i < range.pieces; ++i) {
    const Piece& piece = pieces_[range.first_piece + i];
    MergePartials(head_dim_, piece.out, piece.lse, out, lse);
  }
}

}  // namespace terrace
