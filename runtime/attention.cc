#include "runtime/attention.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <utility>

#include "absl/strings/str_cat.h"
#include "io/check.h"

namespace terrace {
namespace {

constexpr float kEmpty = -std::numeric_limits<float>::infinity();

// Sums of so many tokens are kept apart from the sums of all tokens before them.
constexpr size_t kTokensToSettle = 4096;

// So that every array starts on its own cache line.
constexpr size_t kFloatsPerLine = 16;

size_t PaddedRows(size_t rows) {
  return (rows + kAttentionRowBlock - 1) / kAttentionRowBlock * kAttentionRowBlock;
}

size_t PaddedFloats(size_t floats) {
  return (floats + kFloatsPerLine - 1) / kFloatsPerLine * kFloatsPerLine;
}

// log(exp(a) + exp(b)).
float LogAddExp(float a, float b) {
  const float max = std::max(a, b);
  if (max == kEmpty) return kEmpty;
  return max + std::log(std::exp(a - max) + std::exp(b - max));
}

float LogSumExp(float max, float sum) { return sum > 0 ? max + std::log(sum) : kEmpty; }

// to = to_factor * to + from_factor * from, [count].
void Mix(float from_factor, const float* from, float to_factor, float* to, size_t count) {
  for (size_t i = 0; i < count; ++i) to[i] = to_factor * to[i] + from_factor * from[i];
}

}  // namespace

absl::StatusOr<AttentionAccumulator> AttentionAccumulator::Create(size_t max_rows,
                                                                  size_t head_dim) {
  if (head_dim == 0 || head_dim % 8 != 0 || head_dim > kMaxAttentionHeadDim) {
    return absl::InvalidArgumentError(absl::StrCat(
        "head_dim: ", head_dim, " is not a multiple of 8 from 8 to ", kMaxAttentionHeadDim));
  }
  constexpr size_t kMaxRows = size_t{1} << 24;
  if (max_rows == 0 || max_rows > kMaxRows) {
    return absl::InvalidArgumentError(
        absl::StrCat("max_rows: ", max_rows, " is not from 1 to ", kMaxRows));
  }
  const size_t rows = PaddedRows(max_rows);
  const size_t floats =
      3 * PaddedFloats(rows * head_dim) + 4 * PaddedFloats(rows) + AttentionScratchFloats(head_dim);
  absl::StatusOr<AlignedBuffer> memory = AlignedBuffer::Create(floats * sizeof(float));
  if (!memory.ok()) return memory.status();
  return AttentionAccumulator(max_rows, head_dim, *std::move(memory));
}

AttentionAccumulator::AttentionAccumulator(size_t max_rows, size_t head_dim, AlignedBuffer memory)
    : max_rows_(max_rows), head_dim_(head_dim), memory_(std::move(memory)) {
  float* next = reinterpret_cast<float*>(memory_.data());
  const auto take = [&next](size_t floats) {
    return std::exchange(next, next + PaddedFloats(floats));
  };
  const size_t rows = PaddedRows(max_rows);
  queries_ = take(rows * head_dim);
  recent_.out = take(rows * head_dim);
  settled_.out = take(rows * head_dim);
  for (SoftmaxState* state : {&recent_, &settled_}) {
    state->max = take(rows);
    state->sum = take(rows);
  }
  scratch_ = take(AttentionScratchFloats(head_dim));
}

void AttentionAccumulator::Reset(absl::Span<const float> queries) {
  TERRACE_CHECK_EQ(queries.size() % head_dim_, 0);
  rows_ = queries.size() / head_dim_;
  TERRACE_CHECK(rows_ <= max_rows_);
  const float scale = 1 / std::sqrt(static_cast<float>(head_dim_));
  for (size_t i = 0; i < queries.size(); ++i) queries_[i] = queries[i] * scale;
  std::fill(queries_ + queries.size(), queries_ + PaddedRows(rows_) * head_dim_, 0.0f);
  any_settled_ = false;
  Clear();
}

void AttentionAccumulator::Clear() {
  const size_t rows = PaddedRows(rows_);
  std::fill_n(recent_.max, rows, kEmpty);
  std::fill_n(recent_.sum, rows, 0.0f);
  std::fill_n(recent_.out, rows * head_dim_, 0.0f);
  recent_tokens_ = 0;
}

void AttentionAccumulator::Settle() {
  if (recent_tokens_ == 0) return;
  if (!std::exchange(any_settled_, true)) {
    std::swap(recent_, settled_);
    return Clear();
  }
  for (size_t row = 0; row < rows_; ++row) {
    const float max = std::max(recent_.max[row], settled_.max[row]);
    if (max == kEmpty) continue;
    const float recent = std::exp(recent_.max[row] - max);
    const float settled = std::exp(settled_.max[row] - max);
    settled_.max[row] = max;
    Mix(recent, recent_.sum + row, settled, settled_.sum + row, 1);
    Mix(recent, recent_.out + row * head_dim_, settled, settled_.out + row * head_dim_, head_dim_);
  }
  Clear();
}

void AttentionAccumulator::Add(const KvRun& run, absl::Span<const size_t> visible,
                               const KvRun& next) {
  AddWithLse(run, visible, {}, next);
}

void AttentionAccumulator::AddWithLse(const KvRun& run, absl::Span<const size_t> visible,
                                      absl::Span<float> run_lse, const KvRun& next) {
  TERRACE_CHECK(visible.empty() || visible.size() == rows_);
  TERRACE_CHECK(run_lse.empty() || run_lse.size() == rows_);
  const AttentionRows rows = {.rows = rows_, .head_dim = head_dim_, .queries = queries_};
  const KvRun strided = run.WithStrides(head_dim_);
  std::fill(run_lse.begin(), run_lse.end(), kEmpty);
  for (size_t first = 0; first < run.tokens;) {
    if (!run_lse.empty() || recent_tokens_ >= kTokensToSettle) Settle();
    const size_t count = std::min(run.tokens - first, kTokensToSettle - recent_tokens_);
    const size_t end = first + count;
    const KvRun following =
        end < run.tokens ? strided.Slice(end, run.tokens - end) : next.WithStrides(head_dim_);
    AttendRun(rows, strided.Slice(first, count), {.limits = visible, .skipped = first}, following,
              recent_, scratch_);
    recent_tokens_ += count;
    first = end;
    for (size_t row = 0; row < run_lse.size(); ++row) {
      run_lse[row] = LogAddExp(run_lse[row], LogSumExp(recent_.max[row], recent_.sum[row]));
    }
  }
}

void AttentionAccumulator::Finish(absl::Span<float> out, absl::Span<float> lse) {
  TERRACE_CHECK_EQ(out.size(), rows_ * head_dim_);
  TERRACE_CHECK_EQ(lse.size(), rows_);
  Settle();
  for (size_t row = 0; row < rows_; ++row) {
    const bool empty = !any_settled_ || settled_.max[row] == kEmpty;
    lse[row] = empty ? kEmpty : LogSumExp(settled_.max[row], settled_.sum[row]);
    const float factor = empty ? 0 : 1 / settled_.sum[row];
    const float* from = settled_.out + row * head_dim_;
    float* to = out.data() + row * head_dim_;
    for (size_t i = 0; i < head_dim_; ++i) to[i] = empty ? 0 : factor * from[i];
  }
}

void AttentionAccumulator::AddColumnMass(const KvRun& run, absl::Span<const size_t> visible,
                                         absl::Span<const float> lse, absl::Span<float> mass) {
  TERRACE_CHECK(visible.empty() || visible.size() == rows_);
  TERRACE_CHECK_EQ(lse.size(), rows_);
  TERRACE_CHECK_EQ(mass.size(), run.tokens);
  const AttentionRows rows = {.rows = rows_, .head_dim = head_dim_, .queries = queries_};
  AddRunColumnMass(rows, run.WithStrides(head_dim_), {.limits = visible}, lse, mass, scratch_);
}

void MergePartials(size_t head_dim, absl::Span<const float> partial_out,
                   absl::Span<const float> partial_lse, absl::Span<float> out,
                   absl::Span<float> lse) {
  TERRACE_CHECK_EQ(partial_lse.size(), lse.size());
  TERRACE_CHECK_EQ(partial_out.size(), lse.size() * head_dim);
  TERRACE_CHECK_EQ(out.size(), lse.size() * head_dim);
  for (size_t row = 0; row < lse.size(); ++row) {
    const float merged = LogAddExp(lse[row], partial_lse[row]);
    if (merged == kEmpty) continue;
    Mix(std::exp(partial_lse[row] - merged), partial_out.data() + row * head_dim,
        std::exp(lse[row] - merged), out.data() + row * head_dim, head_dim);
    lse[row] = merged;
  }
}

}  // namespace terrace
