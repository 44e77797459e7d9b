#include "tools/index_eval/decode_eval.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <filesystem>
#include <memory>
#include <numeric>
#include <system_error>
#include <utility>

#include "absl/strings/str_cat.h"
#include "runtime/runtime.h"

namespace terrace {
namespace {

using Clock = std::chrono::steady_clock;

constexpr size_t kChunk = 512;
constexpr size_t kWindow = 128;
// A cluster is a block on NVMe, so those have few tokens; larger ones suit everything else.
constexpr size_t kClusterTokens = 16;
constexpr size_t kBlockTokens = 128;
// Beyond what a call looks up with, so that it attends to everything.
constexpr size_t kSweepPositions = 17;
constexpr uint64_t kSlack = uint64_t{64} << 20;

double SecondsSince(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

double Median(std::vector<double> values) {
  if (values.empty()) return 0;
  const auto middle = values.begin() + static_cast<ptrdiff_t>(values.size() / 2);
  std::nth_element(values.begin(), middle, values.end());
  return *middle;
}

// One policy with its runtime and context.
class Contender {
 public:
  Contender(absl::Span<const EvalHead> heads, const DecodeEvalOptions& options, LookupKind kind)
      : heads_(heads), options_(options), kind_(kind) {
    result_.name = LookupKindName(kind);
  }
  ~Contender() {
    sweeper_.reset();
    context_.reset();
    runtime_.reset();
    std::error_code ignored;
    if (!directory_.empty()) std::filesystem::remove_all(directory_, ignored);
  }

  absl::Status Open() {
    RuntimeOptions options;
    options.shape = {.layers = 1,
                     .query_heads = static_cast<uint32_t>(heads_.size() * heads_[0].group),
                     .kv_heads = static_cast<uint32_t>(heads_.size()),
                     .head_dim = static_cast<uint32_t>(heads_[0].head_dim)};
    const bool in_dram = options_.dram_share >= 1;
    const bool stores_clusters = kind_ == LookupKind::kCluster && !in_dram;
    options.tokens_per_block = stores_clusters ? kClusterTokens : kBlockTokens;
    options.sink_tokens = 0;
    options.window_tokens = kWindow;
    options.max_append_tokens = kChunk;
    options.lookup = options_.lookup;
    options.lookup.kind = kind_;
    options.threads = options_.threads;
    options.active_contexts = 2;
    const uint64_t kv = options.shape.BlockBytes(heads_[0].key_count()) * heads_.size();
    // Clusters are stored once more.
    const uint64_t stored = stores_clusters ? 2 * kv : kv;
    if (in_dram) {
      options.tiers.dram_bytes = stored + stored / 8 + kSlack;
      options.index_bytes = kv;
    } else {
      const std::string directory = absl::StrCat(options_.dir, "/decode-", result_.name);
      std::error_code error;
      // One that is there is somebody's, and is not removed at the end either.
      if (!std::filesystem::create_directory(directory, error)) {
        return Explain(absl::UnavailableError(absl::StrCat(
            directory, ": ", error ? error.message() : "is there already; remove it first")));
      }
      directory_ = directory;
      options.tiers.dram_bytes =
          static_cast<uint64_t>(options_.dram_share * static_cast<double>(kv));
      options.tiers.nvme_bytes = stored + stored / 4 + 2 * options.tiers.dram_bytes + 4 * kSlack;
      options.tiers.nvme_dir = directory_;
      options.tiers.coalesce_read_bytes = 1 << 20;
      options.index_bytes = kv;
    }
    if (options_.hbm_share > 0) {
      options.tiers.hbm_device = options_.hbm_device;
      options.tiers.hbm_bytes =
          static_cast<uint64_t>(options_.hbm_share * static_cast<double>(kv)) +
          heads_.size() * options.BlockBytes();
      options.tiers.hbm_bytes += options.HbmWindowBytes();
    }
    auto runtime = Runtime::Open(options);
    if (!runtime.ok()) return Explain(runtime.status());
    runtime_ = *std::move(runtime);
    auto context = runtime_->NewContext();
    if (!context.ok()) return Explain(context.status());
    context_ = *std::move(context);
    if (absl::Status status = Fill(*context_, heads_[0].key_count()); !status.ok()) return status;
    if (absl::Status status = Observe(); !status.ok()) return status;
    const Clock::time_point start = Clock::now();
    if (absl::Status status = context_->BuildIndex(0); !status.ok()) return Explain(status);
    result_.index_seconds = SecondsSince(start);
    result_.index_bytes_per_key = static_cast<double>(runtime_->Stats().index_bytes) /
                                  static_cast<double>(heads_.size() * heads_[0].key_count());
    if (options_.dram_share < 1) {
      if (absl::Status status = runtime_->tiers().Flush(); !status.ok()) return Explain(status);
      // As much as DRAM holds, which reading it fills DRAM with.
      auto sweeper = runtime_->NewContext();
      if (!sweeper.ok()) return Explain(sweeper.status());
      sweeper_ = *std::move(sweeper);
      const uint64_t token = options.shape.BlockBytes(1) * heads_.size();
      const size_t tokens = options.tiers.dram_bytes / token / kChunk * kChunk + 2 * kChunk;
      if (absl::Status status = Fill(*sweeper_, std::min(tokens, heads_[0].key_count()));
          !status.ok()) {
        return status;
      }
      if (absl::Status status = runtime_->tiers().Flush(); !status.ok()) return Explain(status);
    }
    return absl::OkStatus();
  }

  // Takes a step; `out` is [query heads, head_dim].
  absl::StatusOr<double> Step(size_t step, std::vector<float>& out) {
    const size_t rows = heads_[0].group * heads_[0].head_dim;
    queries_.resize(heads_.size() * rows);
    for (size_t head = 0; head < heads_.size(); ++head) {
      const absl::Span<const float> from = heads_[head].step_queries(step);
      std::copy(from.begin(), from.end(), queries_.begin() + static_cast<ptrdiff_t>(head * rows));
    }
    out.resize(queries_.size());
    const int64_t position = context_->tokens() - 1;
    const Clock::time_point start = Clock::now();
    const absl::Status status = context_->Attend(
        0, {.queries = queries_.data(), .positions = {&position, 1}}, {.out = absl::MakeSpan(out)});
    const double seconds = SecondsSince(start);
    if (!status.ok()) return Explain(status);
    return seconds;
  }

  // Whether there is a call that reads everything, which Sweep needs.
  bool can_sweep() const {
    return kind_ == LookupKind::kFull || kind_ == LookupKind::kGraph ||
           kind_ == LookupKind::kCluster;
  }
  // Leaves nothing of the context in DRAM.
  absl::Status Sweep() {
    std::vector<int64_t> positions(kSweepPositions);
    std::iota(positions.begin(), positions.end(),
              sweeper_->tokens() - static_cast<int64_t>(kSweepPositions));
    const std::vector<float> queries(kSweepPositions * heads_.size() * heads_[0].group *
                                     heads_[0].head_dim);
    std::vector<float> out(queries.size());
    return Explain(sweeper_->Attend(0, {.queries = queries.data(), .positions = positions},
                                    {.out = absl::MakeSpan(out)}));
  }

  LayerStats Stats() const { return context_->Stats().Total(); }
  size_t block_tokens() const { return runtime_->options().tokens_per_block; }
  std::string hbm_device() const { return runtime_->tiers().Stats().copy_engine; }
  uint64_t refusals() const { return context_->Stats().index_refusals; }
  DecodePolicyResult& result() { return result_; }

 private:
  absl::Status Explain(const absl::Status& status) const {
    if (status.ok()) return status;
    return absl::Status(status.code(),
                        absl::StrCat("policy ", result_.name, ": ", status.message()));
  }

  absl::Status Fill(Context& context, size_t tokens) {
    const size_t dim = heads_[0].head_dim;
    std::vector<uint16_t> keys(kChunk * heads_.size() * dim);
    std::vector<uint16_t> values(keys.size());
    for (size_t first = 0; first < tokens; first += kChunk) {
      const size_t count = std::min(kChunk, tokens - first);
      for (size_t i = 0; i < count; ++i) {
        for (size_t head = 0; head < heads_.size(); ++head) {
          const auto to = static_cast<ptrdiff_t>((i * heads_.size() + head) * dim);
          std::copy_n(heads_[head].keys.data() + (first + i) * dim, dim, keys.begin() + to);
          std::copy_n(heads_[head].values.data() + (first + i) * dim, dim, values.begin() + to);
        }
      }
      const absl::Status status = context.Append(0, {.keys = keys.data(),
                                                     .values = values.data(),
                                                     .tokens = count,
                                                     .dtype = KvDtype::kFloat16});
      if (!status.ok()) return Explain(status);
    }
    return absl::OkStatus();
  }

  absl::Status Observe() {
    const size_t rows = heads_[0].group * heads_[0].head_dim;
    const size_t samples = heads_[0].samples.size() / rows;
    std::vector<float> queries(heads_.size() * rows);
    for (size_t i = 0; i < samples; ++i) {
      for (size_t head = 0; head < heads_.size(); ++head) {
        std::copy_n(heads_[head].samples.data() + i * rows, rows,
                    queries.begin() + static_cast<ptrdiff_t>(head * rows));
      }
      const auto position = static_cast<int64_t>(i);
      const absl::Status status =
          context_->ObserveQueries(0, {.queries = queries.data(), .positions = {&position, 1}});
      if (!status.ok()) return Explain(status);
    }
    return absl::OkStatus();
  }

  const absl::Span<const EvalHead> heads_;
  const DecodeEvalOptions& options_;
  const LookupKind kind_;
  DecodePolicyResult result_;
  std::string directory_;
  std::unique_ptr<Runtime> runtime_;
  std::unique_ptr<Context> context_;
  std::unique_ptr<Context> sweeper_;
  std::vector<float> queries_;
};

// Adds the relative error of each query head.
void AddErrors(const std::vector<float>& out, const std::vector<float>& exact, size_t dim,
               std::vector<double>& errors) {
  for (size_t at = 0; at < out.size(); at += dim) {
    double apart = 0, size = 0;
    for (size_t i = at; i < at + dim; ++i) {
      apart += std::pow(double{out[i]} - double{exact[i]}, 2);
      size += double{exact[i]} * double{exact[i]};
    }
    if (size > 0) errors.push_back(std::sqrt(apart / size));
  }
}

class DecodeEval {
 public:
  DecodeEval(absl::Span<const EvalHead> heads, const DecodeEvalOptions& options,
             const std::atomic<bool>& stop, absl::FunctionRef<void(absl::string_view)> progress)
      : heads_(heads), options_(options), stop_(stop), progress_(progress) {}

  absl::StatusOr<DecodeEvalResult> Run() {
    contenders_.push_back(std::make_unique<Contender>(heads_, options_, LookupKind::kFull));
    for (const LookupKind kind : options_.policies) {
      contenders_.push_back(std::make_unique<Contender>(heads_, options_, kind));
    }
    for (const auto& contender : contenders_) {
      progress_(absl::StrCat("filling and indexing, ", contender->result().name));
      if (absl::Status status = contender->Open(); !status.ok()) return status;
      if (stop_) return absl::CancelledError("interrupted by a signal");
    }
    outs_.resize(contenders_.size());
    seconds_.resize(contenders_.size());
    errors_.resize(contenders_.size());
    if (absl::Status status = TakeSteps(); !status.ok()) return status;
    if (options_.dram_share < 1) {
      if (absl::Status status = TakeColdSteps(); !status.ok()) return status;
    }
    DecodeEvalResult result;
    result.kv_heads = heads_.size();
    result.tokens = heads_[0].key_count();
    result.head_dim = heads_[0].head_dim;
    result.group = heads_[0].group;
    result.steps = timed_steps();
    result.threads = options_.threads;
    result.dram_share = options_.dram_share;
    result.hbm_share = options_.hbm_share;
    if (options_.hbm_share > 0) result.hbm_device = contenders_[0]->hbm_device();
    for (const auto& contender : contenders_) result.policies.push_back(contender->result());
    return result;
  }

 private:
  size_t steps() const { return heads_[0].steps(); }
  size_t timed_steps() const { return steps() - steps() / 2; }

  // Every contender takes the step, in one order and the other in turn.
  absl::Status TakeStep(size_t step) {
    for (size_t i = 0; i < contenders_.size(); ++i) {
      const size_t at = step % 2 == 0 ? i : contenders_.size() - 1 - i;
      const absl::StatusOr<double> seconds = contenders_[at]->Step(step, outs_[at]);
      if (!seconds.ok()) return seconds.status();
      seconds_[at].push_back(*seconds);
    }
    for (size_t i = 0; i < contenders_.size(); ++i) {
      AddErrors(outs_[i], outs_[0], heads_[0].head_dim, errors_[i]);
    }
    if (stop_) return absl::CancelledError("interrupted by a signal");
    return absl::OkStatus();
  }

  void Forget() {
    for (auto& seconds : seconds_) seconds.clear();
    for (auto& errors : errors_) errors.clear();
  }

  // The median over the steps of how many times faster than full.
  double TimesFull(size_t contender) const {
    std::vector<double> ratios;
    for (size_t i = 0; i < seconds_[0].size(); ++i) {
      ratios.push_back(seconds_[0][i] / seconds_[contender][i]);
    }
    return Median(std::move(ratios));
  }

  absl::Status TakeSteps() {
    std::vector<LayerStats> before;
    for (size_t step = 0; step < steps(); ++step) {
      progress_(absl::StrCat("step ", step + 1, " of ", steps()));
      if (step == steps() - timed_steps()) {
        Forget();
        before.clear();
        for (const auto& contender : contenders_) before.push_back(contender->Stats());
      }
      if (absl::Status status = TakeStep(step); !status.ok()) return status;
    }
    for (size_t i = 0; i < contenders_.size(); ++i) Conclude(i, before[i]);
    return absl::OkStatus();
  }

  void Conclude(size_t number, const LayerStats& before) {
    Contender& contender = *contenders_[number];
    DecodePolicyResult& result = contender.result();
    result.step_seconds = Median(seconds_[number]);
    result.times_full = TimesFull(number);
    const std::vector<double>& errors = errors_[number];
    result.error_mean = std::accumulate(errors.begin(), errors.end(), 0.0) /
                        static_cast<double>(std::max<size_t>(errors.size(), 1));
    result.error_max = errors.empty() ? 0 : *std::max_element(errors.begin(), errors.end());
    const LayerStats layer = contender.Stats();
    const auto timed = static_cast<double>(timed_steps());
    result.lookup_seconds = (layer.lookup_seconds - before.lookup_seconds) / timed;
    result.wait_seconds = (layer.wait_seconds - before.wait_seconds) / timed;
    result.attend_seconds = (layer.attend_seconds - before.attend_seconds) / timed;
    const LookupStats now = layer.AllLookups();
    const LookupStats then = before.AllLookups();
    const auto since = [](uint64_t later, uint64_t earlier) {
      return static_cast<double>(later - earlier);
    };
    const double attended =
        since(now.blocks, then.blocks) * static_cast<double>(contender.block_tokens()) +
        since(now.tokens, then.tokens);
    result.attended_share = attended / timed / static_cast<double>(heads_.size()) /
                            static_cast<double>(heads_[0].key_count());
    result.fetched_bytes = since(now.fetched_bytes, then.fetched_bytes) / timed;
    const double degraded =
        since(now.late_blocks + now.lost_blocks, then.late_blocks + then.lost_blocks);
    const double wanted = since(now.blocks, then.blocks) + degraded;
    result.degraded_share = wanted > 0 ? degraded / wanted : 0;
    const double queries = since(now.missed_mass_queries, then.missed_mass_queries);
    result.missed_mass = queries > 0 ? (now.missed_mass - then.missed_mass) / queries : 0;
    result.index_refusals = contender.refusals();
  }

  absl::Status TakeColdSteps() {
    Forget();
    const size_t cold = std::min(options_.cold_steps, steps());
    for (size_t step = 0; step < cold; ++step) {
      progress_(absl::StrCat("cold step ", step + 1, " of ", cold));
      for (const auto& contender : contenders_) {
        if (!contender->can_sweep()) continue;
        if (absl::Status status = contender->Sweep(); !status.ok()) return status;
      }
      // Spread over the steps, so that queries differ.
      if (absl::Status status = TakeStep(step * steps() / cold); !status.ok()) return status;
    }
    for (size_t i = 0; i < contenders_.size() && cold > 0; ++i) {
      if (!contenders_[i]->can_sweep()) continue;
      contenders_[i]->result().cold_seconds = Median(seconds_[i]);
      contenders_[i]->result().cold_times_full = TimesFull(i);
    }
    return absl::OkStatus();
  }

  const absl::Span<const EvalHead> heads_;
  const DecodeEvalOptions& options_;
  const std::atomic<bool>& stop_;
  const absl::FunctionRef<void(absl::string_view)> progress_;
  std::vector<std::unique_ptr<Contender>> contenders_;  // full first
  std::vector<std::vector<float>> outs_;
  std::vector<std::vector<double>> seconds_;
  std::vector<std::vector<double>> errors_;
};

}  // namespace

absl::StatusOr<DecodeEvalResult> RunDecodeEval(
    absl::Span<const EvalHead> heads, const DecodeEvalOptions& options,
    const std::atomic<bool>& stop, absl::FunctionRef<void(absl::string_view)> progress) {
  return DecodeEval(heads, options, stop, progress).Run();
}

}  // namespace terrace
