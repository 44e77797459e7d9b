#include "runtime/attention_plan.h"

#include <algorithm>
#include <optional>

#include "absl/strings/str_cat.h"
#include "io/check.h"

namespace terrace {
namespace {

// The warps of a piece take 16 tokens each at a time, so pieces of other sizes leave some idle.
constexpr size_t kStepTokens = 64;

constexpr size_t kTensorAlignment = 16;

// Leaves kernels room to count a little beyond an end.
constexpr size_t kMaxCount = INT32_MAX;

absl::Status CheckCount(const char* what, size_t count) {
  if (count <= kMaxCount) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat("attention on the device: ", count, " ", what, " are more than ", kMaxCount));
}

size_t RoundUp(size_t value, size_t multiple) {
  return (value + multiple - 1) / multiple * multiple;
}

size_t RowTiles(const AttentionJob& job) { return (job.lse.size() + kPieceRows - 1) / kPieceRows; }

size_t Tokens(const AttentionJob& job) {
  size_t tokens = 0;
  for (const AttentionPart& part : job.parts) tokens += part.run.tokens;
  return tokens;
}

// The tokens of a part that some of these rows see, counted from its first.
size_t SeenTokens(const AttentionPart& part, size_t row, size_t rows) {
  if (part.visible.empty()) return part.run.tokens;
  const auto first = part.visible.begin() + row;
  return std::min(part.run.tokens, *std::max_element(first, first + rows));
}

bool IsAligned(const void* address, size_t stride) {
  return reinterpret_cast<uintptr_t>(address) % kTensorAlignment == 0 &&
         stride % kTensorAlignment == 0;
}

}  // namespace

absl::Status AttentionPlan::Make(absl::Span<const AttentionJob> jobs) {
  Clear();
  size_t row_tokens = 0;  // tokens of all ranges of rows
  for (const AttentionJob& job : jobs) row_tokens += RowTiles(job) * Tokens(job);
  for (const AttentionJob& job : jobs) {
    const size_t rows = job.lse.size();
    TERRACE_CHECK_EQ(job.queries.size(), rows * options_.head_dim);
    TERRACE_CHECK_EQ(job.out.size(), rows * options_.head_dim);
    if (absl::Status rows_status = CheckCount("rows", rows_ + rows); !rows_status.ok()) {
      Clear();
      return rows_status;
    }
    const size_t first_part = parts_.size();
    if (absl::Status parts_status = AddParts(job); !parts_status.ok()) {
      Clear();
      return parts_status;
    }
    // The job's share of the pieces, for each of its ranges, and their size to make them equal.
    const size_t tokens = Tokens(job);
    const size_t share =
        row_tokens == 0
            ? 0
            : static_cast<size_t>(static_cast<double>(options_.pieces) *
                                  static_cast<double>(tokens) / static_cast<double>(row_tokens));
    const size_t pieces = std::max<size_t>(1, share);
    const size_t piece_tokens =
        RoundUp(std::max(options_.min_tokens, (tokens + pieces - 1) / pieces), kStepTokens);
    for (size_t row = 0; row < rows; row += kPieceRows) {
      AddRange(job, first_part, row, std::min<size_t>(kPieceRows, rows - row), piece_tokens);
    }
  }
  absl::Status status = CheckCount("partial results", partial_rows_);
  if (!status.ok()) Clear();
  return status;
}

void AttentionPlan::Clear() {
  parts_.clear();
  for (std::vector<DevicePiece>& pieces : pieces_) pieces.clear();
  ranges_.clear();
  limits_.clear();
  rows_ = partial_rows_ = max_range_rows_ = 0;
}

absl::Status AttentionPlan::AddParts(const AttentionJob& job) {
  for (const AttentionPart& part : job.parts) {
    TERRACE_CHECK(part.run_lse.empty());
    TERRACE_CHECK(part.visible.empty() || part.visible.size() == job.lse.size());
    const KvRun run = part.run.WithStrides(options_.head_dim);
    if (absl::Status status = CheckCount("tokens of a run", run.tokens); !status.ok()) {
      return status;
    }
    const bool limited = std::any_of(part.visible.begin(), part.visible.end(),
                                     [&run](size_t limit) { return limit < run.tokens; });
    parts_.push_back({.keys = run.keys,
                      .values = run.values,
                      .key_stride = run.key_stride,
                      .value_stride = run.value_stride,
                      .tokens = static_cast<uint32_t>(run.tokens),
                      .limits = limited ? static_cast<uint32_t>(limits_.size()) : kNoLimits});
    for (size_t row = 0; limited && row < part.visible.size(); ++row) {
      limits_.push_back(static_cast<uint32_t>(std::min(part.visible[row], run.tokens)));
    }
    if (absl::Status status = CheckCount("limits", limits_.size()); !status.ok()) return status;
  }
  return CheckCount("runs", parts_.size());
}

void AttentionPlan::AddRange(const AttentionJob& job, size_t first_part, size_t row_of_job,
                             size_t rows, size_t piece_tokens) {
  DeviceRange range = {.first_row = static_cast<uint32_t>(rows_),
                       .rows = static_cast<uint32_t>(rows),
                       .partial_row = static_cast<uint32_t>(partial_rows_),
                       .pieces = 0};
  DevicePiece piece = {};  // under way while `open`, with room for so many more tokens
  size_t room = 0;
  AttentionKernel kernel = AttentionKernel::kPlainFloat32;
  bool open = false;
  const auto close = [&] {
    if (!open) return;
    pieces_[static_cast<size_t>(kernel)].push_back(piece);
    open = false;
  };
  for (size_t i = 0; i < job.parts.size(); ++i) {
    const AttentionPart& part = job.parts[i];
    const size_t seen = SeenTokens(part, row_of_job, rows);
    if (seen > 0 && KernelOf(part.run) != kernel) {
      close();
      kernel = KernelOf(part.run);
    }
    for (size_t token = 0; token < seen;) {
      if (!open) {
        piece = {.first_part = static_cast<uint32_t>(first_part + i),
                 .first_token = static_cast<uint32_t>(token),
                 .last_part = 0,
                 .end_token = 0,
                 .first_row = range.first_row,
                 .row_of_job = static_cast<uint32_t>(row_of_job),
                 .rows = range.rows,
                 .partial_row = static_cast<uint32_t>(partial_rows_)};
        partial_rows_ += rows;
        ++range.pieces;
        room = piece_tokens;
        open = true;
      }
      const size_t taken = std::min(room, seen - token);
      token += taken;
      room -= taken;
      piece.last_part = static_cast<uint32_t>(first_part + i);
      piece.end_token = static_cast<uint32_t>(token);
      if (room == 0) close();
    }
    // A piece has all tokens of the parts inside, so one that is not seen to its end ends it.
    if (seen < part.run.tokens) close();
  }
  close();
  rows_ += rows;
  max_range_rows_ = std::max(max_range_rows_, rows);
  ranges_.push_back(range);
}

AttentionKernel AttentionPlan::KernelOf(const KvRun& run) const {
  const KvRun strided = run.WithStrides(options_.head_dim);
  const bool tensor = options_.head_dim <= kMaxTensorHeadDim &&
                      IsAligned(strided.keys, strided.key_stride) &&
                      IsAligned(strided.values, strided.value_stride);
  switch (run.dtype) {
    case KvDtype::kFloat32:
      break;
    case KvDtype::kFloat16:
      return tensor ? AttentionKernel::kTensorFloat16 : AttentionKernel::kPlainFloat16;
    case KvDtype::kBfloat16:
      return tensor ? AttentionKernel::kTensorBfloat16 : AttentionKernel::kPlainBfloat16;
  }
  return AttentionKernel::kPlainFloat32;
}

}  // namespace terrace
