#include "tools/eval_session.h"

#include <algorithm>
#include <utility>

#include "tools/engine/context_attention.h"
#include "tools/engine/generate.h"
#include "tools/engine/plain_attention.h"
#include "tools/engine/sampler.h"

namespace terrace {
namespace {

// More than a question and its answer take.
constexpr size_t kQuestionTokens = 256;
// The text and its fork, so that asking moves no window to the tiers and back.
constexpr size_t kContexts = 2;
// For the reserve of the log, and room for blocks that are rewritten.
constexpr uint64_t kLeastNvmeBytes = uint64_t{64} << 20;
constexpr uint64_t kNvmeBytesPerKvByte = 4;

uint64_t KvBytes(const ModelShape& shape, size_t tokens) {
  return uint64_t{shape.layers} * shape.kv_heads * shape.BlockBytes(tokens);
}

// Gives the DRAM tier its share of the text, in whole blocks, and the rest to NVMe.
void ApplyShare(const EvalSessionOptions& options, RuntimeOptions& runtime) {
  const double share = *options.share;
  const uint64_t kv_bytes = KvBytes(runtime.shape, options.length_tokens);
  const auto wanted = static_cast<uint64_t>(share * static_cast<double>(kv_bytes));
  const uint64_t blocks = std::max<uint64_t>(wanted / runtime.BlockBytes(), runtime.shape.kv_heads);
  runtime.tiers.hbm_bytes = 0;
  runtime.tiers.hbm_device = HbmDevice::kEmulated;
  runtime.tiers.dram_bytes = blocks * runtime.BlockBytes();
  if (runtime.tiers.nvme_bytes == 0) {
    runtime.tiers.nvme_bytes = kLeastNvmeBytes + kNvmeBytesPerKvByte * kv_bytes;
  }
  const auto tokens = share * static_cast<double>(options.length_tokens);
  runtime.lookup.blocks =
      std::max<size_t>(static_cast<size_t>(tokens) / runtime.tokens_per_block, 1);
  runtime.lookup.keys = std::max<size_t>(static_cast<size_t>(tokens), 1);
  runtime.lookup.share = share;
}

}  // namespace

absl::StatusOr<std::unique_ptr<EvalSession>> EvalSession::Open(const EvalSessionOptions& options,
                                                               Engine& engine) {
  std::unique_ptr<EvalSession> session(new EvalSession(options, engine));
  if (options.policy.is_plain()) {
    const auto tokens = static_cast<int64_t>(options.length_tokens + kQuestionTokens);
    auto attention = PlainAttention::Create(engine.config(), {tokens});
    if (!attention.ok()) return attention.status();
    session->source_ = *std::move(attention);
    return session;
  }
  absl::StatusOr<RuntimeOptions> runtime_options =
      MakeRuntimeOptions(options.runtime, options.policy, engine, kContexts);
  if (!runtime_options.ok()) return runtime_options.status();
  runtime_options->tiers.nvme_dir = options.dir;
  if (options.share.has_value()) ApplyShare(options, *runtime_options);
  auto runtime = Runtime::Open(*runtime_options);
  if (!runtime.ok()) return runtime.status();
  session->runtime_ = *std::move(runtime);
  if (absl::Status status = session->Restart(); !status.ok()) return status;
  return session;
}

absl::Status EvalSession::Restart() {
  text_tokens_ = 0;
  if (runtime_ == nullptr) return source_->Truncate(0);
  source_.reset();
  if (context_ != nullptr) Finish(*context_);
  context_.reset();
  auto context = runtime_->NewContext();
  if (!context.ok()) return context.status();
  context_ = *std::move(context);
  source_ = std::make_unique<ContextAttention>(*context_, runtime_->options().shape.key_state);
  return absl::OkStatus();
}

absl::Status EvalSession::Prefill(absl::Span<const int32_t> tokens) {
  absl::Status status = engine_.Forward({tokens, text_tokens_, LogitsOf::kNone}, *source_, {});
  if (status.ok()) text_tokens_ += static_cast<int64_t>(tokens.size());
  return status;
}

absl::StatusOr<std::vector<int32_t>> EvalSession::Ask(absl::Span<const int32_t> question,
                                                      size_t count) {
  if (runtime_ == nullptr) {
    auto answer = Answer(question, count, *source_);
    const absl::Status status = source_->Truncate(text_tokens_);
    if (answer.ok() && !status.ok()) return status;
    return answer;
  }
  const auto fork = context_->Fork(text_tokens_);
  if (!fork.ok()) return fork.status();
  ContextAttention source(**fork, runtime_->options().shape.key_state);
  auto answer = Answer(question, count, source);
  Finish(**fork);
  return answer;
}

absl::StatusOr<std::vector<int32_t>> EvalSession::Answer(absl::Span<const int32_t> question,
                                                         size_t count, AttentionSource& source) {
  absl::StatusOr<Sampler> sampler = Sampler::Create({});
  if (!sampler.ok()) return sampler.status();
  int64_t position = text_tokens_;
  while (question.size() > options_.question_step) {
    const auto step = question.first(options_.question_step);
    absl::Status status = engine_.Forward({step, position, LogitsOf::kNone}, source, {});
    if (!status.ok()) return status;
    position += static_cast<int64_t>(step.size());
    question.remove_prefix(step.size());
  }
  std::vector<int32_t> answer;
  const auto take = [&](int32_t token) {
    answer.push_back(token);
    return true;
  };
  const auto result =
      Generate({question, position, static_cast<int64_t>(count)}, engine_, source, *sampler, take);
  if (!result.ok()) return result.status();
  return answer;
}

void EvalSession::Finish(const Context& context) {
  const ContextStats stats = context.Stats();
  finished_ += stats.Total().AllLookups();
  finished_indexes_.Add(stats, runtime_->Stats().index_bytes);
}

IndexCost EvalSession::Indexes() const {
  IndexCost all = finished_indexes_;
  if (context_ != nullptr) all.Add(context_->Stats(), runtime_->Stats().index_bytes);
  return all;
}

LookupStats EvalSession::Lookups() const {
  LookupStats all = finished_;
  if (context_ != nullptr) all += context_->Stats().Total().AllLookups();
  return all;
}

EvalBudget EvalSession::Budget() const {
  if (runtime_ == nullptr) return {};
  const RuntimeOptions& options = runtime_->options();
  const RuntimeStats stats = runtime_->Stats();
  const bool looks_up =
      options.lookup.kind == LookupKind::kInfllm || options.lookup.kind == LookupKind::kQuest;
  return {.kv_bytes = KvBytes(options.shape, options_.length_tokens),
          .dram_bytes = options.tiers.dram_bytes,
          .window_bytes = stats.window_bytes / kContexts,
          .summary_bytes = stats.summary_bytes / stats.column_capacity *
                           (options_.length_tokens / options.tokens_per_block),
          .lookup_blocks = looks_up ? options.lookup.blocks : 0,
          .lookup_keys = options.lookup.kind == LookupKind::kGraph ? options.lookup.keys : 0,
          .lookup_share = options.lookup.kind == LookupKind::kCluster ? options.lookup.share : 0};
}

}  // namespace terrace
