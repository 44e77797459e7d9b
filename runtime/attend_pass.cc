#include "runtime/attend_pass.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <utility>

#include "absl/container/inlined_vector.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "index/kv_convert.h"
#include "io/check.h"

namespace terrace {
namespace {

// Calls with more positions are prefill, where an estimate for every row would cost too much.
constexpr size_t kEstimatedPositions = 4;

}  // namespace

absl::StatusOr<std::unique_ptr<AttendPass>> AttendPass::Create(RuntimeCore& core) {
  auto attention = ParallelAttention::Create(
      {.head_dim = core.shape().head_dim, .threads = core.compute().threads()});
  if (!attention.ok()) return attention.status();
  std::unique_ptr<DeviceAttention> device;
  if (core.device_tails() != nullptr) {
    auto made = core.MakeDeviceAttention();
    if (!made.ok()) return made.status();
    device = *std::move(made);
  }
  return std::unique_ptr<AttendPass>(
      new AttendPass(core, *std::move(attention), std::move(device)));
}

AttendPass::AttendPass(RuntimeCore& core, std::unique_ptr<ParallelAttention> attention,
                       std::unique_ptr<DeviceAttention> device)
    : core_(core),
      heads_(core.shape().kv_heads),
      token_(size_t{core.shape().query_heads} * core.shape().head_dim),
      cosines_(core.shape().head_dim / 2),
      sines_(core.shape().head_dim / 2),
      attention_(std::move(attention)),
      device_(std::move(device)) {
  // What grows with the context has room for the longest there can be, so that a decode step does
  // not allocate when one more block was sealed.
  if (device_ != nullptr && core.timeline() != nullptr) {
    device_track_ = core.timeline()->Track("HBM attention");
  }
  const size_t columns = core.columns().options().columns;
  for (Head& head : heads_) {
    head.summaries.reserve(columns);
    head.scores.reserve(columns * core.shape().group());
    head.ranks.reserve(columns);
    head.chosen.reserve(columns);
    head.parts.reserve(std::min(kMaxRoundBlocks, columns));
  }
  far_.reserve(columns * core.shape().kv_heads);
  reads_.reserve(kMaxRoundBlocks);
  hints_.reserve(kMaxRoundBlocks);
}

absl::Status AttendPass::Check(size_t layer, const AttendInput& input,
                               const AttendOutput& output) const {
  if (absl::Status status = context_->CheckLayer(layer); !status.ok()) return status;
  const size_t positions = input.positions.size();
  if (input.queries == nullptr || positions == 0) {
    return absl::InvalidArgumentError(absl::StrCat("layer ", layer, ": no queries"));
  }
  if (positions > core_.options().max_append_tokens) {
    return absl::InvalidArgumentError(absl::StrCat(
        "layer ", layer, ": ", positions, " queries at once are more than max_append_tokens, ",
        core_.options().max_append_tokens));
  }
  const size_t lse = positions * core_.shape().query_heads;
  if (output.out.size() != lse * core_.shape().head_dim ||
      (!output.lse.empty() && output.lse.size() != lse)) {
    return absl::InvalidArgumentError(absl::StrCat(
        "layer ", layer, ": ", positions, " queries need room for ", lse * core_.shape().head_dim,
        " elements and ", lse, " lse, not ", output.out.size(), " and ", output.lse.size()));
  }
  int64_t before = -1;
  for (const int64_t position : input.positions) {
    if (position <= before || position >= context_->tail_.tokens(layer)) {
      return absl::InvalidArgumentError(
          absl::StrCat("layer ", layer, ": query position ", position, " is not above ", before,
                       " and below the ", context_->tail_.tokens(layer), " tokens of the layer"));
    }
    before = position;
  }
  if (core_.WindowBegin(input.positions[0]) < context_->tail_.first(layer)) {
    return absl::InvalidArgumentError(
        absl::StrCat("layer ", layer, ": the window of query position ", input.positions[0],
                     " begins at ", core_.WindowBegin(input.positions[0]), ", and tokens before ",
                     context_->tail_.first(layer), " have left it; truncate the context first"));
  }
  return absl::OkStatus();
}

absl::Status AttendPass::Begin(Context& context, size_t layer, const AttendInput& input,
                               const AttendOutput& output) {
  context_ = &context;
  if (absl::Status status = Check(layer, input, output); !status.ok()) return status;
  layer_ = layer;
  output_ = output;
  positions_.assign(input.positions.begin(), input.positions.end());
  rows_ = positions_.size() * core_.shape().group();
  blocks_ = static_cast<size_t>(context.tail_.first(layer)) / core_.block_tokens();
  for (size_t head = 0; head < heads_.size(); ++head) {
    heads_[head].policy = &core_.policy(layer, head);
    heads_[head].stats = {};
  }
  far_.clear();
  attended_ = requested_ = 0;
  lookup_seconds_ = wait_seconds_ = attend_seconds_ = 0;
  GroupQueries();
  if (absl::Status status = TakeQueries(input); !status.ok()) return status;
  UseIndexes(layer);
  return absl::OkStatus();
}

void AttendPass::GroupQueries() {
  groups_.clear();
  visible_.clear();
  for (size_t i = 0; i < positions_.size(); ++i) {
    const int64_t begin = core_.WindowBegin(positions_[i]);
    if (groups_.empty() || groups_.back().window_begin != begin) {
      groups_.push_back({.first = i, .count = 0, .window_begin = begin});
    }
    ++groups_.back().count;
    visible_.insert(visible_.end(), core_.shape().group(),
                    static_cast<size_t>(positions_[i] + 1 - begin));
  }
}

// Converts to fp32, sorts by KV head and rotates. Where keys are before RoPE, a query stands at its
// position for the tokens in the window, and `window_tokens` behind everything else, which is not
// rotated: so far away InfLLM puts what is outside.
absl::Status AttendPass::TakeQueries(const AttendInput& input) {
  const size_t head_dim = core_.shape().head_dim;
  const size_t group = core_.shape().group();
  for (Head& head : heads_) {
    head.local.resize(rows_ * head_dim);
    if (separate_far()) head.far.resize(rows_ * head_dim);
    head.out.resize(rows_ * head_dim);
    head.lse.resize(rows_);
    head.part_out.resize(rows_ * head_dim);
    head.part_lse.resize(rows_);
  }
  for (size_t i = 0; i < positions_.size(); ++i) {
    const auto* const from = static_cast<const std::byte*>(input.queries) +
                             i * token_.size() * KvDtypeBytes(input.dtype);
    DecodeKv(from, input.dtype, token_.size(), token_.data());
    for (size_t at = 0; at < token_.size(); ++at) {
      if (std::isfinite(token_[at])) continue;
      return absl::InvalidArgumentError(
          absl::StrCat("queries of layer ", layer_, ": position ", positions_[i], ", query head ",
                       at / head_dim, ", element ", at % head_dim, " is not finite"));
    }
    const size_t row = i * group * head_dim;
    for (size_t head = 0; head < heads_.size(); ++head) {
      const float* const rows = token_.data() + head * group * head_dim;
      std::copy_n(rows, group * head_dim, heads_[head].local.begin() + static_cast<ptrdiff_t>(row));
      if (separate_far()) {
        std::copy_n(rows, group * head_dim, heads_[head].far.begin() + static_cast<ptrdiff_t>(row));
      }
    }
    if (!separate_far()) continue;
    for (const bool far : {false, true}) {
      core_.rope().Angles(far ? static_cast<int64_t>(core_.options().window_tokens) : positions_[i],
                          absl::MakeSpan(cosines_), absl::MakeSpan(sines_));
      for (Head& head : heads_) {
        Rope::Rotate(cosines_, sines_,
                     absl::MakeSpan(far ? head.far : head.local).subspan(row, group * head_dim));
      }
    }
  }
  return absl::OkStatus();
}

void AttendPass::Run(RuntimeCore& core, absl::Span<AttendPass* const> passes) {
  const size_t heads = core.shape().kv_heads;
  for (AttendPass* const pass : passes) pass->status_ = pass->BeginLocally();
  const absl::Time start = absl::Now();
  TimelineSpan lookup_span(core.timeline(), "lookup", {"contexts", passes.size()});
  core.compute().ForEach(passes.size() * heads, [&](size_t job, size_t worker) {
    passes[job / heads]->Lookup(job % heads, worker);
  });
  lookup_span.End();
  const double lookup_seconds = absl::ToDoubleSeconds(absl::Now() - start);
  for (AttendPass* const pass : passes) {
    pass->lookup_seconds_ = lookup_seconds / static_cast<double>(passes.size());
    pass->ShareChoices();
    pass->ListBlocks();
    pass->deadline_ = absl::Now() + pass->patience_;
    if (pass->status_.ok()) pass->status_ = pass->RequestRounds();
  }
  for (AttendPass* const pass : passes) {
    if (pass->device_ != nullptr && pass->status_.ok()) pass->AttendTokens();
    pass->status_.Update(pass->AttendLocally());
  }
  for (AttendPass* const pass : passes) {
    if (pass->status_.ok()) pass->status_ = pass->AttendBlocks(passes);
    if (pass->status_.ok()) {
      if (pass->device_ == nullptr) pass->AttendTokens();
      pass->MergeTokens();
      pass->EstimateClusters();
      pass->Finish();
    } else {
      pass->ForgetRequests();
    }
  }
}

absl::Status AttendPass::RunOne(Context& context, size_t layer, const AttendInput& input,
                                const AttendOutput& output) {
  const TimelineSpan span(core_.timeline(), "attend", {"layer", layer},
                          {"positions", input.positions.size()});
  if (absl::Status status = Begin(context, layer, input, output); !status.ok()) return status;
  AttendPass* const passes[] = {this};
  Run(core_, passes);
  return status_;
}

absl::Status AttendPass::RunBatch(RuntimeCore& core, size_t layer,
                                  absl::Span<const BatchedAttend> batch,
                                  absl::Span<Context* const> contexts) {
  const TimelineSpan span(core.timeline(), "attend batch", {"layer", layer},
                          {"contexts", contexts.size()});
  for (Context* const context : contexts) context->mu_.Lock();
  // Of the batch, in its order; null for those that did not begin.
  absl::InlinedVector<std::unique_ptr<AttendPass>, kUsualBatch> owned(batch.size());
  absl::InlinedVector<AttendPass*, kUsualBatch> ready;
  absl::Status first_error;
  const auto end = [&](const BatchedAttend& one, const absl::Status& status) {
    if (one.status != nullptr) *one.status = status;
    first_error.Update(status);
  };
  for (size_t i = 0; i < batch.size(); ++i) {
    const BatchedAttend& one = batch[i];
    absl::Status status = one.context->MakeReady();
    if (status.ok()) {
      absl::StatusOr<std::unique_ptr<AttendPass>> pass = core.TakePass();
      status = pass.status();
      if (pass.ok()) owned[i] = *std::move(pass);
    }
    if (status.ok()) status = owned[i]->Begin(*one.context, layer, one.input, one.output);
    if (status.ok()) {
      ready.push_back(owned[i].get());
      continue;
    }
    end(one, status);
    if (owned[i] != nullptr) core.GivePass(std::exchange(owned[i], nullptr));
  }
  Run(core, ready);
  for (size_t i = 0; i < batch.size(); ++i) {
    if (owned[i] == nullptr) continue;
    end(batch[i], owned[i]->status_);
    core.GivePass(std::move(owned[i]));
  }
  for (Context* const context : contexts) context->mu_.Unlock();
  return first_error;
}

void AttendPass::Finish() {
  const TimelineSpan span(core_.timeline(), "finish", {"layer", layer_});
  const size_t head_dim = core_.shape().head_dim;
  const size_t group = core_.shape().group();
  const size_t query_heads = core_.shape().query_heads;
  LayerStats& stats = context_->stats_.layers[layer_];
  for (size_t kv_head = 0; kv_head < heads_.size(); ++kv_head) {
    Head& head = heads_[kv_head];
    if (positions_.size() <= kEstimatedPositions) EstimateMissedMass(head);
    stats.lookups[static_cast<size_t>(head.policy->kind())] += head.stats;
    for (size_t row = 0; row < rows_; ++row) {
      const size_t to = row / group * query_heads + kv_head * group + row % group;
      std::copy_n(head.out.data() + row * head_dim, head_dim, output_.out.data() + to * head_dim);
      if (!output_.lse.empty()) output_.lse[to] = head.lse[row];
    }
  }
  PrefetchNextLayer();
  ++stats.calls;
  stats.queries += positions_.size();
  stats.index_seconds += index_seconds_;
  stats.lookup_seconds += lookup_seconds_;
  stats.wait_seconds += wait_seconds_;
  stats.attend_seconds += attend_seconds_;
}

}  // namespace terrace
