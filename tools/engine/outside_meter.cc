#include "tools/engine/outside_meter.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "absl/types/span.h"
#include "io/check.h"
#include "tools/engine/engine_threads.h"
#include "tools/engine/matrix_product.h"

namespace terrace {
namespace {

// Of attention over all of `scores`, the share of those from `begin` to `end`.
double ShareOf(absl::Span<const float> scores, size_t begin, size_t end) {
  const float largest = *std::max_element(scores.begin(), scores.end());
  double all = 0;
  double part = 0;
  for (size_t i = 0; i < scores.size(); ++i) {
    const double weight = std::exp(static_cast<double>(scores[i]) - largest);
    all += weight;
    if (i >= begin && i < end) part += weight;
  }
  return part / all;
}

}  // namespace

OutsideMeter::OutsideMeter(const ModelConfig& config, const Options& options,
                           std::unique_ptr<PlainAttention> attention)
    : query_heads_(config.query_heads),
      kv_heads_(config.kv_heads),
      head_dim_(config.head_dim),
      options_(options),
      attention_(std::move(attention)),
      sums_(config.layers * config.kv_heads) {}

absl::StatusOr<std::unique_ptr<OutsideMeter>> OutsideMeter::Create(const ModelConfig& config,
                                                                   const Options& options) {
  TERRACE_CHECK(options.sink_tokens >= 0 && options.window_tokens >= 1);
  auto attention = PlainAttention::Create(config, {options.max_tokens});
  if (!attention.ok()) return attention.status();
  return std::unique_ptr<OutsideMeter>(new OutsideMeter(config, options, *std::move(attention)));
}

absl::Status OutsideMeter::Attend(const AttentionStep& step) {
  if (absl::Status status = attention_->Attend(step); !status.ok()) return status;
  if (!measures_) return absl::OkStatus();
  EngineThreads().ForEach(kv_heads_, [&](size_t kv_head, size_t /*worker*/) {
    MeasureHead(step, kv_head, sums_[step.layer * kv_heads_ + kv_head]);
  });
  if (step.layer == 0) {
    const int64_t end = step.position + static_cast<int64_t>(step.tokens);
    queries_ +=
        static_cast<uint64_t>(std::max<int64_t>(end - std::max(step.position, FirstPosition()), 0));
  }
  return absl::OkStatus();
}

void OutsideMeter::MeasureHead(const AttentionStep& step, size_t kv_head, Sum& sum) const {
  const size_t group = query_heads_ / kv_heads_;
  const absl::Span<const float> keys = attention_->keys(step.layer, kv_head);
  const float scale = 1 / std::sqrt(static_cast<float>(head_dim_));
  std::vector<float> scores;
  for (size_t token = 0; token < step.tokens; ++token) {
    const int64_t position = step.position + static_cast<int64_t>(token);
    if (position < FirstPosition()) continue;
    const auto visible = static_cast<size_t>(position) + 1;
    const auto begin = static_cast<size_t>(options_.sink_tokens);
    const size_t end = visible - static_cast<size_t>(options_.window_tokens);
    scores.resize(group * visible);
    const size_t query = (token * query_heads_ + kv_head * group) * head_dim_;
    MultiplyTransposed(scale, {step.query.data() + query, group, head_dim_, head_dim_},
                       {keys.data(), visible, head_dim_, head_dim_},
                       {scores.data(), group, visible, visible});
    for (size_t row = 0; row < group; ++row) {
      const double share =
          ShareOf(absl::MakeConstSpan(scores).subspan(row * visible, visible), begin, end);
      sum.outside += share;
      sum.largest = std::max(sum.largest, share);
    }
  }
}

std::vector<HeadProfile::Head> OutsideMeter::Heads() const {
  const double rows = static_cast<double>(queries_ * (query_heads_ / kv_heads_));
  std::vector<HeadProfile::Head> heads(sums_.size());
  for (size_t i = 0; i < heads.size() && queries_ > 0; ++i) {
    // A sum of shares that are all 1 may round to more.
    heads[i] = {.mean_outside = std::min(sums_[i].outside / rows, sums_[i].largest),
                .max_outside = sums_[i].largest};
  }
  return heads;
}

}  // namespace terrace
