#include <algorithm>

#include "absl/time/clock.h"
#include "runtime/attend_pass.h"

namespace terrace {

// The window is one job for each head and group of queries. What is outside but not in a block yet,
// and the sinks, join it where queries are the same for both; else they are a job of their own.
void AttendPass::ListLocalJobs() {
  jobs_.clear();
  for (Head& head : heads_) {
    head.parts.clear();
    // Jobs refer to parts, which must not move: at most three of a group.
    head.parts.reserve(3 * groups_.size());
  }
  for (size_t head = 0; head < heads_.size(); ++head) {
    for (const QueryGroup& group : groups_) AddLocalJobs(head, group);
  }
}

absl::Status AttendPass::BeginLocally() {
  if (device_ == nullptr) return absl::OkStatus();
  const TimelineSpan span(core_.timeline(), "start locally", {"layer", layer_});
  const absl::Time start = absl::Now();
  const DeviceTails& mirror = *core_.device_tails();
  absl::Status status = mirror.Bring(context_->tail_, layer_, device_scratch_);
  if (status.ok()) {
    ListLocalJobs();
    for (Head& head : heads_) {
      for (AttentionPart& part : head.parts) part.run = mirror.Mirrored(part.run);
    }
    status = StartOnDevice();
  }
  attend_seconds_ += absl::ToDoubleSeconds(absl::Now() - start);
  return status;
}

absl::Status AttendPass::StartOnDevice() {
  device_begin_ = Timeline::Now();
  return device_->Start(jobs_);
}

// The device begins about when Start returns and takes as long as it says; what is emulated works
// in Finish, where spans of threads show it.
absl::Status AttendPass::FinishOnDevice() {
  const bool started = device_->started();
  const absl::Status status = device_->Finish();
  const auto busy = static_cast<int64_t>(1e9 * device_->device_seconds());
  if (started && status.ok() && busy > 0 && core_.timeline() != nullptr) {
    core_.timeline()->Record(device_track_, "attention", device_begin_, device_begin_ + busy,
                             {"layer", layer_}, {"jobs", jobs_.size()});
  }
  return status;
}

absl::Status AttendPass::AttendLocally() {
  const TimelineSpan span(core_.timeline(), "attend locally", {"layer", layer_});
  const absl::Time start = absl::Now();
  const size_t head_dim = core_.shape().head_dim;
  if (device_ != nullptr) {
    // Else BeginLocally failed, and there is nothing to go on with.
    const bool started = device_->started();
    if (absl::Status status = FinishOnDevice(); !status.ok() || !started) return status;
  } else {
    ListLocalJobs();
    attention_->Run(jobs_);
  }
  if (std::any_of(heads_.begin(), heads_.end(), WantsMasses)) {
    core_.compute().ForEach(heads_.size(), [&](size_t head, size_t worker) {
      if (WantsMasses(heads_[head])) AddMasses(head, worker);
    });
  }
  if (separate_far()) {
    for (Head& head : heads_) {
      MergePartials(head_dim, head.part_out, head.part_lse, absl::MakeSpan(head.out),
                    absl::MakeSpan(head.lse));
    }
  }
  attend_seconds_ += absl::ToDoubleSeconds(absl::Now() - start);
  return absl::OkStatus();
}

void AttendPass::AddLocalJobs(size_t kv_head, const QueryGroup& group) {
  Head& head = heads_[kv_head];
  const Tail& tail = context_->tail_;
  const size_t head_dim = core_.shape().head_dim;
  const size_t row = group.first * core_.shape().group();
  const size_t rows = group.count * core_.shape().group();
  const int64_t begin = group.window_begin;
  const int64_t end = positions_[group.first + group.count - 1] + 1;
  const int64_t sinks = std::min(static_cast<int64_t>(core_.options().sink_tokens), begin);

  const auto job = [&](absl::Span<const float> queries, size_t first_part, bool is_part) {
    jobs_.push_back({.queries = queries.subspan(row * head_dim, rows * head_dim),
                     .parts = absl::MakeConstSpan(head.parts).subspan(first_part),
                     .out = absl::MakeSpan(is_part ? head.part_out : head.out)
                                .subspan(row * head_dim, rows * head_dim),
                     .lse = absl::MakeSpan(is_part ? head.part_lse : head.lse).subspan(row, rows)});
  };
  const size_t first_part = head.parts.size();
  if (sinks > 0) {
    head.parts.push_back({.run = tail.Sinks(layer_, kv_head, static_cast<size_t>(sinks))});
  }
  // Blocks that an earlier query of this call still has in its window.
  const int64_t rest = std::max(tail.first(layer_), sinks);
  if (rest < begin && head.policy->kind() != LookupKind::kStreaming) {
    head.parts.push_back({.run = tail.Run(layer_, kv_head, rest, begin)});
  }
  size_t window_part = first_part;
  if (separate_far()) {
    job(head.far, first_part, true);
    window_part = head.parts.size();
  }
  head.parts.push_back({.run = tail.RotatedRun(layer_, kv_head, begin, end),
                        .visible = absl::MakeConstSpan(visible_).subspan(row, rows)});
  job(head.local, window_part, false);
  for (size_t part = first_part; part < head.parts.size(); ++part) {
    context_->stats_.layers[layer_].local_tokens += head.parts[part].run.tokens;
  }
}

// head.lse is that of the window alone here, where keys are before RoPE.
void AttendPass::AddMasses(size_t kv_head, size_t worker) {
  const Head& head = heads_[kv_head];
  const size_t head_dim = core_.shape().head_dim;
  AttentionAccumulator& accumulator = core_.accumulator(worker);
  for (const QueryGroup& group : groups_) {
    const size_t row = group.first * core_.shape().group();
    const size_t rows = group.count * core_.shape().group();
    const int64_t begin = group.window_begin;
    const int64_t end = positions_[group.first + group.count - 1] + 1;
    accumulator.Reset(absl::MakeConstSpan(head.local).subspan(row * head_dim, rows * head_dim));
    accumulator.AddColumnMass(context_->tail_.RotatedRun(layer_, kv_head, begin, end),
                              absl::MakeConstSpan(visible_).subspan(row, rows),
                              absl::MakeConstSpan(head.lse).subspan(row, rows),
                              context_->tail_.Masses(layer_, kv_head, begin, end));
  }
}

}  // namespace terrace
