#include "tools/engine/paged_ffn.h"

#include <algorithm>
#include <array>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "tools/engine/checkpoint.h"
#include "tools/engine/engine_threads.h"
#include "xxhash.h"

namespace terrace {
namespace {

constexpr std::array kKinds = {PredictorKind::kOracle, PredictorKind::kLowRank,
                               PredictorKind::kCore, PredictorKind::kGateFirst,
                               PredictorKind::kAll};

double Share(uint64_t part, uint64_t whole) {
  return whole == 0 ? 0 : static_cast<double>(part) / static_cast<double>(whole);
}

absl::Status CheckShape(const BundleFile& file, const ModelConfig& config) {
  const BundleShape& shape = file.shape();
  const auto same = [&](const char* field, uint64_t found, uint64_t expected) {
    if (found == expected) return absl::OkStatus();
    return absl::InvalidArgumentError(
        absl::StrCat(file.path(), ": ", field, ": has ", found, ", the model ", expected));
  };
  absl::Status status = same("layers", shape.layers, config.layers);
  if (status.ok()) status = same("experts", shape.experts, 1);
  if (status.ok()) status = same("neurons", shape.neurons, config.ffn);
  if (status.ok()) status = same("width", shape.width, config.hidden);
  if (status.ok()) status = same("parts", shape.parts(), 3);
  if (status.ok() && shape.activation != config.activation) {
    status = absl::InvalidArgumentError(
        absl::StrCat(file.path(), ": activation: has ", ActivationName(shape.activation),
                     ", the model ", ActivationName(config.activation)));
  }
  return status;
}

// Whether it was packed from this model.
absl::Status CheckModel(const BundleFile& file, const PagedFfnOptions& options,
                        const ModelConfig& config) {
  if (absl::Status status = CheckShape(file, config); !status.ok()) return status;
  const absl::StatusOr<Checkpoint> checkpoint = Checkpoint::Open(options.model);
  if (!checkpoint.ok()) return checkpoint.status();
  const absl::StatusOr<uint64_t> fingerprint = checkpoint->Fingerprint();
  if (!fingerprint.ok()) return fingerprint.status();
  return file.CheckModel(*fingerprint);
}

absl::StatusOr<std::unique_ptr<NeuronPredictor>> MakePredictor(
    std::shared_ptr<const BundleFile> file, const PagedFfnOptions& options) {
  switch (options.predictor) {
    case PredictorKind::kOracle:
      return MakeOraclePredictor(std::move(file), &EngineThreads());
    case PredictorKind::kLowRank:
      return MakeLowRankPredictor(std::move(file), &EngineThreads());
    case PredictorKind::kCore:
      return MakeCorePredictor(std::move(file), options.core);
    case PredictorKind::kGateFirst:
      if (absl::Status status = CheckPredictable(*file); !status.ok()) return status;
      if (file->shape().layout != BundleLayout::kGateFirst) {
        return absl::InvalidArgumentError(absl::StrCat(file->path(), ": its layout is ",
                                                       BundleLayoutName(file->shape().layout),
                                                       ", not gate-first"));
      }
      return MakeAllPredictor(file->shape());
    case PredictorKind::kAll:
      return MakeAllPredictor(file->shape());
  }
  return absl::InternalError("unknown predictor");
}

// What is left of the budget for the pager.
absl::StatusOr<WeightPagerOptions> PagerOptions(const BundleFile& file,
                                                const PagedFfnOptions& options) {
  WeightPagerOptions pager;
  pager.window_tokens = options.window_tokens;
  pager.gate_first = options.predictor == PredictorKind::kGateFirst;
  pager.pool = &EngineThreads();
  pager.device_share = options.device_share;
  pager.timeline = options.timeline;
  const uint64_t directory = file.memory_bytes();
  const uint64_t needed = directory + WeightPager::MinDramBytes(file.shape(), pager);
  if (options.dram_bytes < needed) {
    return absl::InvalidArgumentError(
        absl::StrCat(file.path(), ": needs ", needed, " bytes of memory, ", directory,
                     " of them for its directory, and was given ", options.dram_bytes));
  }
  pager.dram_bytes = options.dram_bytes - directory;
  return pager;
}

}  // namespace

const char* PredictorKindName(PredictorKind kind) {
  switch (kind) {
    case PredictorKind::kOracle:
      return "oracle";
    case PredictorKind::kLowRank:
      return "low-rank";
    case PredictorKind::kCore:
      return "core";
    case PredictorKind::kGateFirst:
      return "gate-first";
    case PredictorKind::kAll:
      return "all";
  }
  return "unknown";
}

std::optional<PredictorKind> ParsePredictorKind(absl::string_view name) {
  for (const PredictorKind kind : kKinds) {
    if (name == PredictorKindName(kind)) return kind;
  }
  return std::nullopt;
}

double PagedFfnStats::predicted_share() const { return Share(predicted, neurons); }
double PagedFfnStats::firing_share() const { return Share(firing, neurons); }
double PagedFfnStats::missed_share() const { return Share(missed, firing); }
double PagedFfnStats::lost_share() const { return Share(lost, firing); }
uint64_t PagedFfnStats::read_bytes_per_token() const {
  const uint64_t tokens = predictions / layers;
  return tokens == 0 ? 0 : (pager.read_bytes - prompt_read_bytes) / tokens;
}

absl::StatusOr<std::unique_ptr<PagedFfn>> PagedFfn::Open(const PagedFfnOptions& options,
                                                         const ModelConfig& config) {
  absl::StatusOr<std::unique_ptr<const BundleFile>> opened =
      BundleFile::Open(options.bundles, options.dram_bytes);
  if (!opened.ok()) return opened.status();
  const std::shared_ptr<const BundleFile> file = *std::move(opened);
  if (absl::Status status = CheckModel(*file, options, config); !status.ok()) return status;
  auto predictor = MakePredictor(file, options);
  if (!predictor.ok()) return predictor.status();
  std::unique_ptr<NeuronPredictor> oracle;
  if (options.measure && CheckPredictable(*file).ok()) {
    auto made = MakeOraclePredictor(file, &EngineThreads());
    if (!made.ok()) return made.status();
    oracle = *std::move(made);
  }
  const absl::StatusOr<WeightPagerOptions> pager_options = PagerOptions(*file, options);
  if (!pager_options.ok()) return pager_options.status();
  absl::StatusOr<std::unique_ptr<WeightPager>> pager = WeightPager::Open(file, *pager_options);
  if (!pager.ok()) return pager.status();
  return std::unique_ptr<PagedFfn>(
      new PagedFfn(options, *std::move(pager), *std::move(predictor), std::move(oracle)));
}

PagedFfn::PagedFfn(const PagedFfnOptions& options, std::unique_ptr<WeightPager> pager,
                   std::unique_ptr<NeuronPredictor> predictor,
                   std::unique_ptr<NeuronPredictor> oracle)
    : options_(options),
      pager_(std::move(pager)),
      predictor_(std::move(predictor)),
      oracle_(std::move(oracle)) {}

absl::Status PagedFfn::Run(const FfnStep& step) {
  if (step.layer == 0) pager_->BeginToken();
  return step.tokens > 1 || step.position == 0 ? RunPrompt(step) : RunPredicted(step);
}

absl::Status PagedFfn::RunPrompt(const FfnStep& step) {
  const absl::Time start = absl::Now();
  const auto layer = static_cast<uint32_t>(step.layer);
  absl::Status status = predictor_->Observe(layer, step.position == 0, step.x);
  const uint64_t read_before = pager_->Stats().read_bytes;
  if (status.ok()) status = pager_->DenseFfn(layer, step.x, step.out);
  stats_.prompt_read_bytes += pager_->Stats().read_bytes - read_before;
  if (step.layer == 0) stats_.prompt_tokens += step.tokens;
  stats_.prompt_seconds += absl::ToDoubleSeconds(absl::Now() - start);
  return status;
}

absl::Status PagedFfn::Predict(uint32_t layer, absl::Span<const float> x) {
  const absl::Time start = absl::Now();
  absl::Status status = predictor_->Predict(layer, x, places_);
  stats_.predict_seconds += absl::ToDoubleSeconds(absl::Now() - start);
  return status;
}

absl::Status PagedFfn::RunPredicted(const FfnStep& step) {
  const auto layer = static_cast<uint32_t>(step.layer);
  if (absl::Status status = Predict(layer, step.x); !status.ok()) return status;
  ++stats_.predictions;
  stats_.neurons += file().shape().neurons;
  stats_.predicted += places_.size();
  if (oracle_ != nullptr) {
    if (absl::Status status = Measure(layer, step.x); !status.ok()) return status;
  }
  if (absl::Status status = pager_->Require(layer, places_); !status.ok()) return status;
  if (options_.prefetch && layer + 1 < file().shape().layers) {
    if (absl::Status status = Predict(layer + 1, step.x); !status.ok()) return status;
    pager_->Prefetch(layer + 1, places_);
  }
  return pager_->Ffn(layer, step.x, step.out);
}

absl::Status PagedFfn::Measure(uint32_t layer, absl::Span<const float> x) {
  if (absl::Status status = oracle_->Predict(layer, x, firing_); !status.ok()) return status;
  const BundleShape& shape = file().shape();
  stats_.firing += firing_.size();
  // Both are ascending.
  auto next = places_.begin();
  for (const uint32_t place : firing_) {
    const uint32_t first = shape.group_of(place) * shape.group_neurons;
    while (next != places_.end() && *next < first) ++next;
    bool computed = false;
    bool predicted = false;
    for (auto at = next; at != places_.end() && *at < first + shape.group_neurons; ++at) {
      computed = true;
      predicted |= *at == place;
    }
    stats_.missed += predicted ? 0 : 1;
    stats_.lost += computed ? 0 : 1;
  }
  return absl::OkStatus();
}

uint64_t PagedFfn::Fingerprint() const {
  const BundleFile& bundles = file();
  std::string what = KvDtypeName(bundles.shape().dtype);
  uint64_t factors = 0;
  switch (options_.predictor) {
    case PredictorKind::kOracle:
    case PredictorKind::kAll:
    case PredictorKind::kGateFirst:
      break;
    case PredictorKind::kCore:
      absl::StrAppend(&what, " core ", options_.core.token_share, " ", options_.core.text_share,
                      " ", options_.core.first_layer);
      break;
    case PredictorKind::kLowRank:
      absl::StrAppend(&what, " low-rank");
      for (uint32_t unit = 0; unit < bundles.shape().units(); ++unit) {
        const PredictorFactors& of = *bundles.Predictor(unit);
        factors = XXH3_64bits_withSeed(of.a.data(), of.a.size() * sizeof(of.a[0]), factors);
        factors = XXH3_64bits_withSeed(of.b.data(), of.b.size() * sizeof(of.b[0]), factors);
        factors = XXH3_64bits_withSeed(of.thresholds.data(),
                                       of.thresholds.size() * sizeof(of.thresholds[0]), factors);
      }
      break;
  }
  return XXH3_64bits_withSeed(what.data(), what.size(), factors);
}

PagedFfnStats PagedFfn::Stats() const {
  PagedFfnStats stats = stats_;
  stats.layers = file().shape().layers;
  stats.pager = pager_->Stats();
  stats.pager_bytes = pager_->memory_bytes();
  stats.directory_bytes = file().memory_bytes();
  stats.measuring_bytes =
      predictor_->memory_bytes() + (oracle_ == nullptr ? 0 : oracle_->memory_bytes());
  return stats;
}

}  // namespace terrace
