#include "tests/support/reference_attention.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "index/kv_convert.h"

namespace terrace {
namespace {

constexpr double kHidden = -std::numeric_limits<double>::infinity();

// Keys and values of all runs in fp32, [tokens, head_dim], and what each row sees.
struct Tokens {
  std::vector<float> keys;
  std::vector<float> values;
  std::vector<std::vector<bool>> visible;  // [rows][tokens]
};

Tokens Decode(size_t head_dim, size_t rows, absl::Span<const ReferenceRun> runs) {
  Tokens tokens;
  tokens.visible.resize(rows);
  std::vector<float> row(head_dim);
  for (const ReferenceRun& part : runs) {
    const KvRun run = part.run.WithStrides(head_dim);
    for (size_t t = 0; t < run.tokens; ++t) {
      const KvRun token = run.Slice(t, 1);
      DecodeKv(token.keys, token.dtype, head_dim, row.data());
      tokens.keys.insert(tokens.keys.end(), row.begin(), row.end());
      DecodeKv(token.values, token.dtype, head_dim, row.data());
      tokens.values.insert(tokens.values.end(), row.begin(), row.end());
      for (size_t i = 0; i < rows; ++i) {
        tokens.visible[i].push_back(part.visible.empty() || t < part.visible[i]);
      }
    }
  }
  return tokens;
}

}  // namespace

ReferenceResult ReferenceAttention(size_t head_dim, absl::Span<const float> queries,
                                   absl::Span<const ReferenceRun> runs) {
  const size_t rows = queries.size() / head_dim;
  const Tokens tokens = Decode(head_dim, rows, runs);
  const size_t count = tokens.keys.size() / head_dim;
  ReferenceResult result;
  result.out.assign(rows * head_dim, 0);
  result.lse.assign(rows, kHidden);
  result.scores.assign(rows * count, kHidden);
  for (size_t row = 0; row < rows; ++row) {
    const absl::Span<double> scores = absl::MakeSpan(result.scores).subspan(row * count, count);
    double max = kHidden;
    for (size_t t = 0; t < count; ++t) {
      if (!tokens.visible[row][t]) continue;
      double dot = 0;
      for (size_t i = 0; i < head_dim; ++i) {
        dot += double{queries[row * head_dim + i]} * double{tokens.keys[t * head_dim + i]};
      }
      scores[t] = dot / std::sqrt(static_cast<double>(head_dim));
      max = std::max(max, scores[t]);
    }
    if (max == kHidden) continue;
    double sum = 0;
    for (const double score : scores) sum += std::exp(score - max);
    result.lse[row] = max + std::log(sum);
    for (size_t t = 0; t < count; ++t) {
      const double weight = std::exp(scores[t] - result.lse[row]);
      for (size_t i = 0; i < head_dim; ++i) {
        result.out[row * head_dim + i] += weight * tokens.values[t * head_dim + i];
      }
    }
  }
  return result;
}

}  // namespace terrace
