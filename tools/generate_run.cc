#include "tools/generate_run.h"

#include <memory>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "tools/engine/byte_tokenizer.h"
#include "tools/engine/context_attention.h"
#include "tools/engine/plain_attention.h"
#include "tools/index_eval/qkv_dump_writer.h"
#include "tools/replay_report.h"

namespace terrace {
namespace {

// One run: what the tokens go through, and what it came to.
class Run {
 public:
  // products: that the engine uses. weights: null where the engine has all of its own. `share`: of
  // the disk with these, or null.
  Run(const GenerateSetup& setup, Engine& engine, const WeightProducts& products,
      const PagedFfn* weights, std::shared_ptr<DeviceShare> share, Sampler& sampler)
      : setup_(setup),
        engine_(engine),
        products_(products),
        weights_(weights),
        device_share_(std::move(share)),
        sampler_(sampler) {}

  absl::StatusOr<GenerateReport> Generate(const std::atomic<bool>& stop,
                                          absl::FunctionRef<absl::Status(const std::string&)> take);

 private:
  absl::Status StartPlain();
  absl::Status StartInTiers();
  // The saved context, and the prompt after it.
  absl::Status Load();
  // Runs the last generated token, which only a Save needs, and saves.
  absl::Status Save();
  // Notes what it took to come to the first generated token.
  void NotePrefill();
  void NoteWeights();
  // Has all that source_ is asked for dumped on the way.
  absl::Status StartDump();
  absl::Status NameTokens(absl::Span<const int32_t> tokens) {
    return context_ == nullptr ? absl::OkStatus()
                               : context_->AddTokenIds(context_->tokens(), tokens);
  }

  const GenerateSetup& setup_;
  Engine& engine_;
  const WeightProducts& products_;
  const PagedFfn* const weights_;
  const std::shared_ptr<DeviceShare> device_share_;
  Sampler& sampler_;
  // The context goes before its runtime, and the source before both.
  std::unique_ptr<Runtime> runtime_;
  std::unique_ptr<Context> context_;
  std::unique_ptr<AttentionSource> source_;
  std::unique_ptr<QkvDumpWriter> dump_;
  std::unique_ptr<DumpedAttention> dumped_source_;
  std::vector<int32_t> prompt_;  // what is to be run
  int64_t position_ = 0;         // of its first token
  GenerateReport report_;
};

absl::Status Run::StartPlain() {
  prompt_ = EncodeText(setup_.prompt);
  const auto tokens = static_cast<int64_t>(prompt_.size());
  auto attention = PlainAttention::Create(engine_.config(), {tokens + setup_.tokens});
  if (!attention.ok()) return attention.status();
  source_ = *std::move(attention);
  return absl::OkStatus();
}

absl::Status Run::StartInTiers() {
  absl::StatusOr<RuntimeOptions> options =
      MakeRuntimeOptions(setup_.runtime, setup_.policy, engine_, 1);
  if (!options.ok()) return options.status();
  options->tiers.reuse = setup_.reuse || !setup_.load.empty();
  options->tiers.device_share = device_share_;
  options->timeline = setup_.timeline;
  if (weights_ != nullptr) options->shape.model_id ^= weights_->Fingerprint();
  auto runtime = Runtime::Open(*options);
  if (!runtime.ok()) return runtime.status();
  runtime_ = *std::move(runtime);
  if (!setup_.load.empty()) {
    if (absl::Status status = Load(); !status.ok()) return status;
  } else {
    prompt_ = EncodeText(setup_.prompt);
    auto context = setup_.reuse ? runtime_->NewContext(prompt_) : runtime_->NewContext();
    if (!context.ok()) return context.status();
    context_ = *std::move(context);
    position_ = context_->tokens();
    report_.prefix_tokens = position_;
    prompt_.erase(prompt_.begin(), prompt_.begin() + static_cast<ptrdiff_t>(position_));
  }
  source_ = std::make_unique<ContextAttention>(*context_, options->shape.key_state);
  return NameTokens(prompt_);
}

absl::Status Run::Load() {
  auto context = runtime_->Load(setup_.load);
  if (!context.ok()) return context.status();
  context_ = *std::move(context);
  position_ = context_->tokens();
  report_.loaded_tokens = position_;
  AppendBytes(setup_.prompt, prompt_);
  if (!prompt_.empty()) return absl::OkStatus();
  // There must be a token to run, so the last one is run again.
  const std::vector<int32_t> saved = context_->TokenIds();
  if (saved.empty() || static_cast<int64_t>(saved.size()) != position_) {
    return absl::FailedPreconditionError(
        absl::StrCat("saved context '", setup_.load, "': ", saved.size(), " of its ", position_,
                     " tokens are known, so it cannot go on without a prompt"));
  }
  prompt_ = {saved.back()};
  --position_;
  return context_->Truncate(position_);
}

absl::Status Run::Save() {
  const ForwardStep step = {absl::MakeConstSpan(report_.tokens).last(1), context_->tokens(),
                            LogitsOf::kNone};
  if (absl::Status status = engine_.Forward(step, *source_, {}); !status.ok()) return status;
  return context_->Save(setup_.save);
}

absl::Status Run::StartDump() {
  if (!source_->rotated()) {
    return absl::InvalidArgumentError(absl::StrCat("--dump-qkv: --policy ", setup_.policy.name,
                                                   " takes keys before RoPE, a dump has them "
                                                   "after it"));
  }
  const auto prompt_tokens = static_cast<int64_t>(prompt_.size());
  auto dump = QkvDumpWriter::Create(setup_.dump_qkv, engine_.config(),
                                    {prompt_tokens, prompt_tokens + setup_.tokens});
  if (!dump.ok()) return dump.status();
  dump_ = *std::move(dump);
  dumped_source_ = std::make_unique<DumpedAttention>(*source_, *dump_);
  return absl::OkStatus();
}

void Run::NotePrefill() {
  report_.prefill = engine_.times();
  if (weights_ == nullptr) return;
  report_.weights.emplace().prefill = weights_->Stats();
}

void Run::NoteWeights() {
  if (!report_.weights.has_value()) return;
  report_.weights->predictor = setup_.weights.predictors;
  report_.weights->all = weights_->Stats();
  report_.weights->file_bytes = weights_->file().file_bytes();
  report_.weights->ffn_bytes = weights_->file().shape().weight_bytes();
}

absl::StatusOr<GenerateReport> Run::Generate(
    const std::atomic<bool>& stop, absl::FunctionRef<absl::Status(const std::string&)> take) {
  absl::Status status = setup_.policy.is_plain() ? StartPlain() : StartInTiers();
  if (status.ok() && !setup_.dump_qkv.empty()) status = StartDump();
  if (!status.ok()) return status;
  AttentionSource& source = dumped_source_ == nullptr ? *source_ : *dumped_source_;
  const auto take_token = [&](int32_t token) {
    if (report_.prefill.tokens == 0) NotePrefill();
    report_.tokens.push_back(token);
    status = NameTokens({token});
    if (status.ok()) status = take(DecodeTokens({token}));
    report_.interrupted = stop;
    return status.ok() && !report_.interrupted;
  };
  const absl::StatusOr<GenerateResult> result =
      terrace::Generate({prompt_, position_, setup_.tokens}, engine_, source, sampler_, take_token);
  if (!result.ok()) return result.status();
  if (status.ok() && dump_ != nullptr && !report_.interrupted) status = dump_->Finish();
  if (!status.ok()) return status;
  report_.policy = setup_.policy.name;
  report_.heads = engine_.config().layers * engine_.config().kv_heads;
  report_.streaming_heads = setup_.policy.StreamingHeadCount(report_.heads);
  report_.prompt_tokens = static_cast<int64_t>(prompt_.size());
  report_.result = *result;
  report_.all = engine_.times();
  report_.device = products_.name();
  report_.device_bytes = products_.device_bytes();
  report_.weight_bytes = engine_.weights().bytes();
  NoteWeights();
  if (context_ != nullptr) {
    const ContextStats stats = context_->Stats();
    report_.tiers.emplace().lookups = stats.Total().AllLookups();
    report_.tiers->indexes.Add(stats, runtime_->Stats().index_bytes);
    for (const LostTokens& lost : context_->Lost()) report_.tiers->lost_tokens += lost.count;
    if (!setup_.save.empty() && !report_.interrupted) status = Save();
    // What another process may start with.
    if (status.ok() && setup_.runtime.nvme > 0) status = runtime_->tiers().Flush();
    if (!status.ok()) return status;
    report_.tiers->runtime = runtime_->Stats();
  }
  report_.peak_memory_bytes = ProcessUsage::Now().peak_memory_bytes;
  return report_;
}

}  // namespace

absl::StatusOr<GenerateReport> RunGenerate(
    const GenerateSetup& setup, const std::atomic<bool>& stop,
    absl::FunctionRef<absl::Status(const std::string&)> take) {
  absl::StatusOr<Sampler> sampler = Sampler::Create(setup.sampler);
  if (!sampler.ok()) return sampler.status();
  const absl::StatusOr<std::unique_ptr<Engine>> engine = Engine::Load(
      setup.model, {.chunk_tokens = kChunkTokens,
                    .ffn = setup.weights.given() ? FfnWeights::kLeaveOut : FfnWeights::kLoad,
                    .timeline = setup.timeline});
  if (!engine.ok()) return engine.status();
  if (absl::Status status = CheckByteModel((*engine)->config()); !status.ok()) {
    return absl::Status(status.code(), absl::StrCat(setup.model, ": ", status.message()));
  }
  const auto products = UseDevice(setup.runtime, **engine);
  if (!products.ok()) return products.status();
  std::unique_ptr<PagedFfn> weights;
  std::shared_ptr<DeviceShare> share;
  if (setup.weights.given()) {
    // Both are on one disk as a rule, where keys and values go before weights.
    if (setup.runtime.nvme > 0)
      share = std::make_shared<DeviceShare>(TierManagerOptions().io_depth);
    PagedFfnOptions options = setup.weights.Options(setup.model)[0];
    options.device_share = share;
    options.timeline = setup.timeline;
    auto opened = PagedFfn::Open(options, (*engine)->config());
    if (!opened.ok()) return opened.status();
    weights = *std::move(opened);
    (*engine)->UseFfn(weights.get());
  }
  return Run(setup, **engine, **products, weights.get(), std::move(share), *sampler)
      .Generate(stop, take);
}

}  // namespace terrace
