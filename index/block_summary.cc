#include "index/block_summary.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <numeric>
#include <vector>

#include "absl/container/inlined_vector.h"
#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "index/kv_convert.h"
#include "index/summary_scores.h"

namespace terrace {
namespace {

constexpr size_t kMaxHeadDim = 1024;
constexpr size_t kMaxTokens = 4096;
constexpr size_t kPrefetchBlocks = 4;  // how far ahead of the scores summaries are brought in

absl::Status OutOfRange(absl::string_view field, size_t value, absl::string_view limit) {
  return absl::InvalidArgumentError(absl::StrCat(field, ": ", value, " is not ", limit));
}

absl::Status ValidateBlock(size_t head_dim, size_t tokens) {
  if (head_dim == 0 || head_dim % 8 != 0 || head_dim > kMaxHeadDim) {
    return OutOfRange("head_dim", head_dim, absl::StrCat("a multiple of 8 up to ", kMaxHeadDim));
  }
  if (tokens == 0 || tokens > kMaxTokens) {
    return OutOfRange("tokens", tokens, absl::StrCat("from 1 to ", kMaxTokens));
  }
  return absl::OkStatus();
}

const std::byte* Row(const void* keys, KvDtype dtype, size_t head_dim, size_t token) {
  return static_cast<const std::byte*>(keys) + token * head_dim * KvDtypeBytes(dtype);
}

// Scores of all summaries, sorted into [rows, summaries].
void ScoreAll(const SummaryQueries& queries, absl::Span<const std::byte* const> summaries,
              absl::Span<float> scores) {
  absl::InlinedVector<float, 64> best(queries.rows());
  for (size_t block = 0; block < summaries.size(); ++block) {
    const size_t next = std::min(block + kPrefetchBlocks, summaries.size() - 1);
    queries.Score(summaries[block], summaries[next], best.data());
    for (size_t row = 0; row < best.size(); ++row) {
      scores[row * summaries.size() + block] = best[row];
    }
  }
}

class Representatives final : public BlockSummary {
 public:
  explicit Representatives(const RepresentativeOptions& options)
      : options_(options),
        layout_({.count = options.averaged ? 1 : options.count, .dimensions = options.head_dim}) {}

  size_t bytes() const override { return layout_.bytes(); }
  bool wants_masses() const override {
    return options_.choice == RepresentativeChoice::kMostMass && options_.count < options_.tokens;
  }

  void Summarise(const void* keys, KvDtype dtype, absl::Span<const float> masses,
                 absl::Span<std::byte> summary) const override {
    absl::InlinedVector<float, 256> row(options_.head_dim);
    absl::InlinedVector<float, 256> sum(options_.head_dim, 0.0f);
    size_t vector = 0;
    for (const size_t token : Chosen(keys, dtype, masses)) {
      DecodeKv(Row(keys, dtype, options_.head_dim, token), dtype, row.size(), row.data());
      if (!options_.averaged) {
        layout_.Store(vector++, row, 0, 0, summary.data());
        continue;
      }
      for (size_t i = 0; i < row.size(); ++i) sum[i] += row[i] / static_cast<float>(options_.count);
    }
    if (options_.averaged) layout_.Store(0, sum, 0, 0, summary.data());
  }

  void Score(absl::Span<const float> queries, absl::Span<const std::byte* const> summaries,
             absl::Span<float> scores) const override {
    ScoreAll(Prepare(queries), summaries, scores);
  }

  SummaryLayout layout() const override { return layout_; }
  SummaryQueries Prepare(absl::Span<const float> queries) const override {
    return SummaryQueries(layout_, queries);
  }

 private:
  using Tokens = absl::InlinedVector<size_t, 128>;

  Tokens Chosen(const void* keys, KvDtype dtype, absl::Span<const float> masses) const {
    if (options_.choice == RepresentativeChoice::kLargestNorm) return Strongest(Norms(keys, dtype));
    if (!masses.empty()) return Strongest(masses);
    Tokens evenly(options_.count);
    for (size_t i = 0; i < options_.count; ++i) {
      evenly[i] = (2 * i + 1) * options_.tokens / (2 * options_.count);
    }
    return evenly;
  }

  // The squares of the norms, which rank alike.
  absl::InlinedVector<float, 128> Norms(const void* keys, KvDtype dtype) const {
    absl::InlinedVector<float, 256> row(options_.head_dim);
    absl::InlinedVector<float, 128> norms(options_.tokens);
    for (size_t token = 0; token < options_.tokens; ++token) {
      DecodeKv(Row(keys, dtype, options_.head_dim, token), dtype, row.size(), row.data());
      norms[token] = std::inner_product(row.begin(), row.end(), row.begin(), 0.0f);
    }
    return norms;
  }

  // The tokens with the largest weights, the earlier first among equals.
  Tokens Strongest(absl::Span<const float> weights) const {
    Tokens tokens(options_.tokens);
    std::iota(tokens.begin(), tokens.end(), size_t{0});
    const auto stronger = [&](size_t a, size_t b) {
      return weights[a] != weights[b] ? weights[a] > weights[b] : a < b;
    };
    std::partial_sort(tokens.begin(), tokens.begin() + static_cast<ptrdiff_t>(options_.count),
                      tokens.end(), stronger);
    tokens.resize(options_.count);
    return tokens;
  }

  const RepresentativeOptions options_;
  const SummaryLayout layout_;
};

// A page is one vector of 2 * head_dim elements, the largest and then the smallest of each channel:
// its inner product with the positive part of a query followed by the negative part is the bound.
// Bounds are rounded outwards.
class KeyBounds final : public BlockSummary {
 public:
  explicit KeyBounds(const KeyBoundOptions& options)
      : options_(options),
        layout_(
            {.count = options.tokens / options.page_tokens, .dimensions = 2 * options.head_dim}) {}

  size_t bytes() const override { return layout_.bytes(); }
  bool wants_masses() const override { return false; }

  void Summarise(const void* keys, KvDtype dtype, absl::Span<const float>,
                 absl::Span<std::byte> summary) const override {
    const size_t head_dim = options_.head_dim;
    absl::InlinedVector<float, 256> row(head_dim);
    absl::InlinedVector<float, 512> bounds(layout_.dimensions);
    for (size_t page = 0; page < layout_.count; ++page) {
      for (size_t i = 0; i < options_.page_tokens; ++i) {
        const size_t token = page * options_.page_tokens + i;
        DecodeKv(Row(keys, dtype, head_dim, token), dtype, head_dim, row.data());
        for (size_t channel = 0; channel < head_dim; ++channel) {
          float& largest = bounds[channel];
          float& smallest = bounds[head_dim + channel];
          largest = i == 0 ? row[channel] : std::max(largest, row[channel]);
          smallest = i == 0 ? row[channel] : std::min(smallest, row[channel]);
        }
      }
      layout_.Store(page, bounds, /*up=*/head_dim, /*down=*/head_dim, summary.data());
    }
  }

  void Score(absl::Span<const float> queries, absl::Span<const std::byte* const> summaries,
             absl::Span<float> scores) const override {
    ScoreAll(Prepare(queries), summaries, scores);
  }

  SummaryLayout layout() const override { return layout_; }
  SummaryQueries Prepare(absl::Span<const float> queries) const override {
    const size_t head_dim = options_.head_dim;
    absl::InlinedVector<float, 2048> parts(2 * queries.size());
    for (size_t i = 0; i < queries.size(); ++i) {
      float* const row = parts.data() + i / head_dim * layout_.dimensions;
      row[i % head_dim] = std::max(queries[i], 0.0f);
      row[head_dim + i % head_dim] = std::min(queries[i], 0.0f);
    }
    return SummaryQueries(layout_, parts);
  }

 private:
  const KeyBoundOptions options_;
  const SummaryLayout layout_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<BlockSummary>> MakeRepresentatives(
    const RepresentativeOptions& options) {
  if (absl::Status status = ValidateBlock(options.head_dim, options.tokens); !status.ok()) {
    return status;
  }
  if (options.count == 0 || options.count > options.tokens) {
    return OutOfRange("representatives", options.count,
                      absl::StrCat("from 1 to the ", options.tokens, " tokens of a block"));
  }
  return std::make_unique<Representatives>(options);
}

absl::StatusOr<std::unique_ptr<BlockSummary>> MakeKeyBounds(const KeyBoundOptions& options) {
  if (absl::Status status = ValidateBlock(options.head_dim, options.tokens); !status.ok()) {
    return status;
  }
  if (options.page_tokens == 0 || options.tokens % options.page_tokens != 0) {
    return OutOfRange("page_tokens", options.page_tokens,
                      absl::StrCat("a divisor of the ", options.tokens, " tokens of a block"));
  }
  return std::make_unique<KeyBounds>(options);
}

}  // namespace terrace
