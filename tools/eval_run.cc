#include "tools/eval_run.h"

#include <stdlib.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <filesystem>
#include <memory>
#include <system_error>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "tools/engine/byte_tokenizer.h"
#include "tools/engine/needle.h"
#include "tools/eval_inputs.h"
#include "tools/progress.h"
#include "tools/table.h"

namespace terrace {
namespace {

constexpr double kFirstDepth = 0.05;
constexpr double kLastDepth = 0.95;

// A new folder inside of another one, removed at the end with everything in it.
class ScratchFolder {
 public:
  static absl::StatusOr<std::unique_ptr<ScratchFolder>> Create(const std::string& parent) {
    std::string path = absl::StrCat(parent, "/terrace-eval-XXXXXX");
    if (::mkdtemp(path.data()) == nullptr) {
      return absl::ErrnoToStatus(errno, absl::StrCat("--dir: ", path, ": mkdtemp"));
    }
    return std::unique_ptr<ScratchFolder>(new ScratchFolder(std::move(path)));
  }
  ~ScratchFolder() {
    std::error_code error;
    std::filesystem::remove_all(path_, error);
  }
  ScratchFolder(const ScratchFolder&) = delete;
  ScratchFolder& operator=(const ScratchFolder&) = delete;

  const std::string& path() const { return path_; }

 private:
  explicit ScratchFolder(std::string path) : path_(std::move(path)) {}
  const std::string path_;
};

// KV heads of all layers.
size_t HeadCount(const ModelConfig& config) { return config.layers * config.kv_heads; }

// The texts and questions are the same for every policy: they follow from seed, length and number.
class Evaluation {
 public:
  Evaluation(const EvalSetup& setup, const std::atomic<bool>& stop, Engine& engine,
             std::string text, std::string dir)
      : setup_(setup),
        stop_(stop),
        engine_(engine),
        text_(std::move(text)),
        dir_(std::move(dir)),
        depths_(NeedleDepths(setup.needles.depths)) {}

  absl::StatusOr<PolicyResult> Measure(const AttentionPolicy& policy);
  absl::StatusOr<WeightsResult> MeasureWeights(PagedFfnOptions options);

 private:
  absl::StatusOr<std::unique_ptr<EvalSession>> Open(const AttentionPolicy& policy, size_t length) {
    return EvalSession::Open({.policy = policy,
                              .runtime = setup_.runtime,
                              .length_tokens = length,
                              .share = setup_.share,
                              .dir = dir_,
                              .question_step = setup_.needles.question_step},
                             engine_);
  }
  absl::StatusOr<PolicyResult::Text> MeasureText(const AttentionPolicy& policy);
  absl::StatusOr<NeedleRow> MeasureNeedles(const AttentionPolicy& policy, size_t length);
  // One text with all of its questions; answers are counted in `row`.
  absl::Status AskAbout(size_t number, EvalSession& session, NeedleRow& row);
  // The index of the depth of a key: the keys of one text are spread, and every depth comes up as
  // often as the others.
  size_t DepthOf(size_t text, size_t key) const {
    return (text + key * depths_.size() / setup_.needles.keys) % depths_.size();
  }
  static EvalCost CostOf(const EvalSession& session, absl::Time start) {
    return {.seconds = absl::ToDoubleSeconds(absl::Now() - start),
            .lookups = session.Lookups(),
            .indexes = session.Indexes(),
            .budget = session.Budget()};
  }

  const EvalSetup& setup_;
  const std::atomic<bool>& stop_;
  Engine& engine_;
  const std::string text_;
  const std::string dir_;
  const std::vector<double> depths_;
  ProgressLine progress_ = ProgressLine(stderr);
};

absl::StatusOr<PolicyResult> Evaluation::Measure(const AttentionPolicy& policy) {
  PolicyResult result;
  result.policy = policy.name;
  result.label = policy.Label();
  result.streaming_heads = policy.StreamingHeadCount(HeadCount(engine_.config()));
  if (setup_.perplexity.has_value()) {
    auto text = MeasureText(policy);
    if (!text.ok()) return text.status();
    result.text = *std::move(text);
  }
  if (setup_.needles.questions == 0) return result;
  for (const size_t length : setup_.needles.lengths) {
    auto row = MeasureNeedles(policy, length);
    if (!row.ok()) return row.status();
    result.needles.push_back(*std::move(row));
  }
  return result;
}

absl::StatusOr<PolicyResult::Text> Evaluation::MeasureText(const AttentionPolicy& policy) {
  progress_.Update(absl::Now(), absl::StrCat(policy.Label(), ": perplexity"));
  if (stop_) return absl::CancelledError("interrupted by a signal");
  const auto session = Open(policy, setup_.perplexity->window_tokens);
  if (!session.ok()) return session.status();
  const absl::Time start = absl::Now();
  const auto perplexity =
      MeasurePerplexity(text_, *setup_.perplexity, engine_, (*session)->source());
  if (!perplexity.ok()) return perplexity.status();
  return PolicyResult::Text{.perplexity = *perplexity, .cost = CostOf(**session, start)};
}

absl::StatusOr<WeightsResult> Evaluation::MeasureWeights(PagedFfnOptions options) {
  const AttentionPolicy& policy = setup_.policies[0];
  progress_.Update(absl::Now(), absl::StrCat("paged weights, ",
                                             PredictorKindName(options.predictor), ": perplexity"));
  if (stop_) return absl::CancelledError("interrupted by a signal");
  options.measure = true;
  const auto weights = PagedFfn::Open(options, engine_.config());
  if (!weights.ok()) return weights.status();
  const auto session = Open(policy, setup_.perplexity->window_tokens);
  if (!session.ok()) return session.status();
  PerplexityOptions windows = *setup_.perplexity;
  windows.step_tokens = 1;
  // Core takes its neurons from a prompt; the others need none.
  if (options.predictor == PredictorKind::kCore) {
    windows.prompt_tokens = std::max<size_t>(windows.window_tokens / 4, 1);
  }
  const absl::Time start = absl::Now();
  engine_.UseFfn(weights->get());
  const auto perplexity = MeasurePerplexity(text_, windows, engine_, (*session)->source());
  engine_.UseFfn(nullptr);
  if (!perplexity.ok()) return perplexity.status();
  return WeightsResult{.predictor = options.predictor,
                       .perplexity = *perplexity,
                       .seconds = absl::ToDoubleSeconds(absl::Now() - start),
                       .prompt_tokens = windows.prompt_tokens,
                       .stats = (*weights)->Stats(),
                       .ffn_bytes = (*weights)->file().shape().weight_bytes(),
                       .dram_bytes = options.dram_bytes};
}

absl::StatusOr<NeedleRow> Evaluation::MeasureNeedles(const AttentionPolicy& policy, size_t length) {
  const auto session = Open(policy, length);
  if (!session.ok()) return session.status();
  NeedleRow row = {.length_tokens = length, .cells = {}, .cost = {}};
  for (const double depth : depths_) row.cells.push_back({.depth = depth});
  const absl::Time start = absl::Now();
  const size_t texts = setup_.needles.questions / setup_.needles.keys;
  for (size_t i = 0; i < texts; ++i) {
    progress_.Update(absl::Now(), absl::StrCat(policy.Label(), ": ", FormatCount(length),
                                               " tokens, text ", i + 1, " of ", texts));
    if (stop_) return absl::CancelledError("interrupted by a signal");
    if (absl::Status status = AskAbout(i, **session, row); !status.ok()) return status;
  }
  row.cost = CostOf(**session, start);
  return row;
}

absl::Status Evaluation::AskAbout(size_t number, EvalSession& session, NeedleRow& row) {
  std::vector<double> depths;
  for (size_t key = 0; key < setup_.needles.keys; ++key) {
    depths.push_back(depths_[DepthOf(number, key)]);
  }
  constexpr uint64_t kMaxTexts = uint64_t{1} << 32;
  const NeedleText text = DrawNeedleText({.length_tokens = row.length_tokens,
                                          .depths = depths,
                                          .seed = setup_.needles.seed * kMaxTexts + number},
                                         text_.size());
  const absl::StatusOr<std::vector<int32_t>> tokens = NeedleTokens(text, text_);
  if (!tokens.ok()) return tokens.status();
  absl::Status status = session.Restart();
  if (status.ok()) status = session.Prefill(*tokens);
  if (!status.ok()) return status;
  for (size_t key = 0; key < text.keys.size(); ++key) {
    const PassKey& wanted = text.keys[key];
    const auto answer = session.Ask(NeedleQuestion(wanted.colour), wanted.digits.size());
    if (!answer.ok()) return answer.status();
    NeedleCell& cell = row.cells[DepthOf(number, key)];
    ++cell.asked;
    if (DecodeTokens(*answer) == wanted.digits) ++cell.answered;
  }
  return absl::OkStatus();
}

}  // namespace

NeedleCell NeedleRow::Total() const {
  NeedleCell total;
  for (const NeedleCell& cell : cells) {
    total.asked += cell.asked;
    total.answered += cell.answered;
  }
  return total;
}

NeedleCell PolicyResult::NeedleTotal() const {
  NeedleCell total;
  for (const NeedleRow& row : needles) {
    total.asked += row.Total().asked;
    total.answered += row.Total().answered;
  }
  return total;
}

double PolicyResult::Seconds() const {
  double seconds = text.has_value() ? text->cost.seconds : 0;
  for (const NeedleRow& row : needles) seconds += row.cost.seconds;
  return seconds;
}

LookupStats PolicyResult::Lookups() const {
  LookupStats all;
  if (text.has_value()) all += text->cost.lookups;
  for (const NeedleRow& row : needles) all += row.cost.lookups;
  return all;
}

std::vector<double> NeedleDepths(size_t count) {
  if (count == 1) return {(kFirstDepth + kLastDepth) / 2};
  std::vector<double> depths;
  for (size_t i = 0; i < count; ++i) {
    depths.push_back(kFirstDepth + (kLastDepth - kFirstDepth) * static_cast<double>(i) /
                                       static_cast<double>(count - 1));
  }
  return depths;
}

absl::StatusOr<EvalReport> RunEval(const EvalSetup& setup, const std::atomic<bool>& stop) {
  const absl::StatusOr<EvalInputs> inputs = LoadEvalInputs(setup.model, setup.text, setup.runtime);
  if (!inputs.ok()) return inputs.status();
  std::unique_ptr<ScratchFolder> folder;
  if (!setup.runtime.dir.empty()) {
    auto created = ScratchFolder::Create(setup.runtime.dir);
    if (!created.ok()) return created.status();
    folder = *std::move(created);
  }
  EvalReport report = {.model = setup.model,
                       .text = setup.text,
                       .device = inputs->products->name(),
                       .share = setup.share,
                       .keys = setup.needles.keys,
                       .heads = HeadCount(inputs->engine->config()),
                       .policies = {},
                       .weights = {}};
  Evaluation evaluation(setup, stop, *inputs->engine, inputs->text,
                        folder == nullptr ? "" : folder->path());
  for (const AttentionPolicy& policy : setup.policies) {
    auto result = evaluation.Measure(policy);
    if (!result.ok()) {
      return absl::Status(result.status().code(),
                          absl::StrCat(policy.Label(), ": ", result.status().message()));
    }
    report.policies.push_back(*std::move(result));
  }
  for (const PagedFfnOptions& weights : setup.weights) {
    auto result = evaluation.MeasureWeights(weights);
    if (!result.ok()) {
      return absl::Status(result.status().code(),
                          absl::StrCat("paged weights, ", PredictorKindName(weights.predictor),
                                       ": ", result.status().message()));
    }
    report.weights.push_back(*std::move(result));
  }
  return report;
}

}  // namespace terrace
