#include <algorithm>
#include <cmath>
#include <limits>

#include "runtime/attend_pass.h"

namespace terrace {
namespace {

// Rows that a head looks up with. All of a decode step, and a spread of those of a chunk.
constexpr size_t kSampleRows = 64;
// The newest tokens tell how strong a logit must be to count for a row.
constexpr int64_t kLevelTokens = 64;
// exp of less adds nothing that a float of order one would show.
constexpr float kNegligible = -20;
// Next to so much, what is there is nothing.
constexpr double kAllMissed = 1e6;

}  // namespace

void AttendPass::Lookup(size_t kv_head, size_t worker) {
  const TimelineSpan span(core_.timeline(), "look up head", {"layer", layer_},
                          {"kv_head", kv_head});
  Head& head = heads_[kv_head];
  head.chosen.clear();
  if (head.indexed > 1) LookupInIndex(kv_head);
  if (!NeedsScores(head)) return;
  const BlockSummary& summary = *head.policy->summary();
  head.summaries.resize(blocks_);
  for (size_t block = 0; block < blocks_; ++block) {
    head.summaries[block] =
        core_.columns().summary(context_->columns_[block], layer_, kv_head).data();
  }
  TakeSample(head);
  const size_t samples = head.sample.size() / core_.shape().head_dim;
  head.scores.resize(samples * blocks_);
  head.ranks.resize(blocks_);
  head.levels.assign(samples, 0);
  summary.Score(head.sample, head.summaries, absl::MakeSpan(head.scores));
  if (!head.policy->shares_blocks()) FindLevels(kv_head, worker);
  head.policy->Rank(head.scores, head.levels, absl::MakeSpan(head.ranks));
  if (!head.policy->shares_blocks()) head.policy->Choose(head.ranks, head.chosen);
}

// Heads that share their blocks rank them by the sum over the queries, which is that of their mean.
void AttendPass::TakeSample(Head& head) const {
  const size_t head_dim = core_.shape().head_dim;
  const size_t group = core_.shape().group();
  const absl::Span<const float> queries = FarQueries(head);
  const float scale = 1 / std::sqrt(static_cast<float>(head_dim));
  head.sample_rows.clear();
  if (head.policy->shares_blocks()) {
    head.sample.assign(group * head_dim, 0);
    const float share = scale / static_cast<float>(positions_.size());
    for (size_t i = 0; i < queries.size(); ++i) {
      head.sample[i % head.sample.size()] += share * queries[i];
    }
    return;
  }
  // Evenly spaced, the last row always among them.
  const size_t samples = std::min(rows_, kSampleRows);
  head.sample.resize(samples * head_dim);
  for (size_t i = 0; i < samples; ++i) {
    const size_t row = (i + 1) * rows_ / samples - 1;
    head.sample_rows.push_back(row);
    for (size_t at = 0; at < head_dim; ++at) {
      head.sample[i * head_dim + at] = scale * queries[row * head_dim + at];
    }
  }
}

// The log-sum-exp over the newest tokens that each sampled row sees. Relative to it, rows and heads
// can be compared: a row that finds all it wants close by does not take blocks from the others.
void AttendPass::FindLevels(size_t kv_head, size_t worker) {
  Head& head = heads_[kv_head];
  const Tail& tail = context_->tail_;
  const size_t head_dim = core_.shape().head_dim;
  AttentionAccumulator& accumulator = core_.accumulator(worker);
  for (size_t i = 0; i < head.sample_rows.size(); ++i) {
    const size_t row = head.sample_rows[i];
    const int64_t end = positions_[row / core_.shape().group()] + 1;
    const int64_t begin = std::max(tail.first(layer_), end - kLevelTokens);
    accumulator.Reset(absl::MakeConstSpan(head.local).subspan(row * head_dim, head_dim));
    accumulator.Add(tail.RotatedRun(layer_, kv_head, begin, end));
    accumulator.Finish(absl::MakeSpan(head.part_out).first(head_dim),
                       absl::MakeSpan(&head.levels[i], 1));
  }
}

void AttendPass::ShareChoices() {
  Head& first = heads_[0];
  if (!first.policy->shares_blocks() || !NeedsScores(first)) return;
  for (size_t head = 1; head < heads_.size(); ++head) {
    for (size_t block = 0; block < blocks_; ++block) {
      first.ranks[block] += heads_[head].ranks[block];
    }
  }
  for (Head& head : heads_) head.policy->Choose(first.ranks, head.chosen);
}

// What the blocks that were left out would have added to each row, next to what it has. Of heads
// that share, the queries were means, so there is nothing to compare with.
void AttendPass::EstimateMissedMass(Head& head) const {
  if (!head.policy->looks_up()) return;
  if (!NeedsScores(head)) {
    head.stats.missed_mass_queries += rows_;
    return;
  }
  for (size_t i = 0; i < head.sample_rows.size(); ++i) {
    const float lse = head.lse[head.sample_rows[i]];
    const float* const scores = head.scores.data() + i * blocks_;
    double missed = 0;
    size_t next_chosen = 0;
    for (size_t block = 0; block < blocks_ && missed < kAllMissed; ++block) {
      if (next_chosen < head.chosen.size() && head.chosen[next_chosen] == block) {
        ++next_chosen;
      } else if (scores[block] - lse > kNegligible) {
        missed += std::exp(static_cast<double>(scores[block] - lse));
      }
    }
    head.stats.missed_mass += missed / (1 + missed);
    ++head.stats.missed_mass_queries;
  }
}

}  // namespace terrace
