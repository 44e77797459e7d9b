#include <algorithm>
#include <cmath>
#include <limits>

#include "absl/time/clock.h"
#include "io/check.h"
#include "runtime/attend_pass.h"
#include "runtime/context_index.h"

// The part of heads whose policies have an index.
namespace terrace {
namespace {

// Calls with more positions attend to everything: their rows together want a good part of it.
constexpr size_t kLookupPositions = 16;
// Clusters that are looked at key by key for each that is chosen: the means name most of the best,
// and the keys decide among those that are close. At least so many altogether.
constexpr size_t kScannedOfChosen = 8;
constexpr size_t kMinScanned = 256;
// Tokens that are copied together: half a megabyte in the usual shape, which stays in the cache.
constexpr size_t kPieceTokens = 1024;

}  // namespace

void AttendPass::UseIndexes(size_t layer) {
  index_seconds_ = 0;
  ContextIndex& index = *context_->index_;
  patience_ = absl::InfiniteDuration();
  const bool decoding = positions_.size() <= kLookupPositions;
  bool any = false;
  for (size_t kv_head = 0; kv_head < heads_.size(); ++kv_head) {
    const Head& head = heads_[kv_head];
    if (!head.policy->has_index()) continue;
    index.AddQueries(layer, kv_head, head.local);
    any = true;
  }
  if (any) {
    const absl::Time start = absl::Now();
    index.Extend(layer, context_->SealedColumns(layer), decoding);
    index_seconds_ = absl::ToDoubleSeconds(absl::Now() - start);
  }
  for (Head& head : heads_) {
    head.indexed = 1;
    head.read.clear();
    head.tokens.clear();
    if (!head.policy->has_index() || !decoding) continue;
    if (head.policy->kind() == LookupKind::kGraph) {
      head.indexed = index.graphs(layer)->end_column();
    } else {
      head.indexed = index.clusters(layer)->end_column();
      patience_ = std::min(patience_, head.policy->options().patience);
    }
  }
}

void AttendPass::LookupInIndex(size_t kv_head) {
  Head& head = heads_[kv_head];
  const LookupOptions& options = head.policy->options();
  if (head.policy->kind() == LookupKind::kGraph) {
    // As wide as finds nearly all of the best ones.
    const size_t effort = options.effort > 0 ? options.effort : options.keys * 5 / 2;
    const absl::Status status = context_->index_->graphs(layer_)->Search(
        kv_head, head.local, {.k = options.keys, .effort = effort}, head.found);
    TERRACE_CHECK(status.ok());  // queries were checked
    head.tokens.assign(head.found.keys.begin(), head.found.keys.end());
    std::sort(head.tokens.begin(), head.tokens.end());
    head.tokens.erase(std::unique(head.tokens.begin(), head.tokens.end()), head.tokens.end());
    if (!head.tokens.empty() && head.tokens.back() == KeySearchResult::kNoKey) {
      head.tokens.pop_back();
    }
    return;
  }
  const ClusterLookup& clusters = *context_->index_->clusters(layer_);
  const ClusterTable& table = clusters.table(kv_head);
  const float scale = 1 / std::sqrt(static_cast<float>(core_.shape().head_dim));
  head.sample.resize(head.local.size());
  std::transform(head.local.begin(), head.local.end(), head.sample.begin(),
                 [&](float element) { return scale * element; });
  const double budget = std::ceil(options.share * static_cast<double>(table.keys()));
  const auto keys = static_cast<size_t>(budget);
  const ClusterBudget read = {.keys = keys, .min_share = static_cast<float>(options.min_share)};
  table.Score(head.sample, head.cluster_scores,
              std::max(kScannedOfChosen * (keys / table.cluster_keys()), kMinScanned));
  if (clusters.reads_tokens()) {
    table.RankKeys(head.cluster_scores, read, head.key_choice);
    table.ListKeys(head.key_choice, head.tokens);
    return;
  }
  table.Rank(head.cluster_scores, read, head.chosen);
  std::sort(head.chosen.begin(), head.chosen.end());
}

// In pieces that do not depend on the number of threads, each of which copies its tokens together
// and attends to them while they are in the cache.
void AttendPass::AttendTokens() {
  token_pieces_.clear();
  for (size_t kv_head = 0; kv_head < heads_.size(); ++kv_head) {
    const size_t tokens = heads_[kv_head].tokens.size();
    heads_[kv_head].stats.tokens += tokens;
    for (size_t begin = 0; begin < tokens; begin += kPieceTokens) {
      token_pieces_.push_back({kv_head, begin, std::min(tokens, begin + kPieceTokens)});
    }
  }
  if (token_pieces_.empty()) return;
  const TimelineSpan span(core_.timeline(), "attend tokens", {"layer", layer_});
  const absl::Time start = absl::Now();
  const size_t head_dim = core_.shape().head_dim;
  const size_t row = core_.tail_layout().row_bytes();
  const ContextIndex& index = *context_->index_;
  token_rows_.resize(core_.compute().threads());
  token_out_.resize(token_pieces_.size() * rows_ * head_dim);
  token_lse_.resize(token_pieces_.size() * rows_);
  const absl::Span<float> outs = absl::MakeSpan(token_out_);
  const absl::Span<float> lses = absl::MakeSpan(token_lse_);
  core_.compute().ForEach(token_pieces_.size(), [&](size_t number, size_t worker) {
    const TokenPiece& piece = token_pieces_[number];
    const Head& head = heads_[piece.kv_head];
    const absl::Span<const uint32_t> tokens =
        absl::MakeConstSpan(head.tokens).subspan(piece.begin, piece.end - piece.begin);
    std::vector<std::byte>& rows = token_rows_[worker];
    rows.resize(2 * kPieceTokens * row);
    index.tokens(layer_, piece.kv_head)->Gather(piece.kv_head, tokens, rows.data());
    const KvRun run = {.keys = rows.data(),
                       .values = rows.data() + tokens.size() * row,
                       .tokens = tokens.size(),
                       .dtype = core_.shape().dtype};
    AttentionAccumulator& accumulator = core_.accumulator(worker);
    accumulator.Reset(head.local);
    accumulator.Add(run.WithStrides(head_dim));
    accumulator.Finish(outs.subspan(number * rows_ * head_dim, rows_ * head_dim),
                       lses.subspan(number * rows_, rows_));
  });
  attend_seconds_ += absl::ToDoubleSeconds(absl::Now() - start);
}

void AttendPass::MergeTokens() {
  const size_t head_dim = core_.shape().head_dim;
  const absl::Span<const float> outs = absl::MakeConstSpan(token_out_);
  const absl::Span<const float> lses = absl::MakeConstSpan(token_lse_);
  for (size_t number = 0; number < token_pieces_.size(); ++number) {
    Head& head = heads_[token_pieces_[number].kv_head];
    MergePartials(head_dim, outs.subspan(number * rows_ * head_dim, rows_ * head_dim),
                  lses.subspan(number * rows_, rows_), absl::MakeSpan(head.out),
                  absl::MakeSpan(head.lse));
  }
}

// What was estimated is what the call may have got wrong.
void AttendPass::EstimateClusters() {
  const TimelineSpan span(core_.timeline(), "estimate clusters", {"layer", layer_});
  const absl::Time start = absl::Now();
  const ContextIndex& index = *context_->index_;
  core_.compute().ForEach(heads_.size(), [&](size_t kv_head, size_t) {
    Head& head = heads_[kv_head];
    if (head.policy->kind() != LookupKind::kCluster || head.indexed <= 1) return;
    const ClusterLookup& clusters = *index.clusters(layer_);
    const ClusterTable& table = clusters.table(kv_head);
    const absl::Span<float> out = absl::MakeSpan(head.part_out);
    const absl::Span<float> lse = absl::MakeSpan(head.part_lse);
    if (clusters.reads_tokens()) {
      table.Estimate(head.cluster_scores, head.key_choice, out, lse);
    } else {
      table.Estimate(head.cluster_scores, head.read, out, lse);
    }
    MergePartials(core_.shape().head_dim, head.part_out, head.part_lse, absl::MakeSpan(head.out),
                  absl::MakeSpan(head.lse));
    for (size_t i = 0; i < rows_; ++i) {
      head.stats.missed_mass += std::exp(static_cast<double>(head.part_lse[i] - head.lse[i]));
    }
    head.stats.missed_mass_queries += rows_;
  });
  attend_seconds_ += absl::ToDoubleSeconds(absl::Now() - start);
}

}  // namespace terrace
