#include "tools/head_profile_run.h"

#include <algorithm>
#include <memory>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "tools/engine/byte_tokenizer.h"
#include "tools/engine/needle.h"
#include "tools/engine/outside_meter.h"
#include "tools/eval_inputs.h"
#include "tools/progress.h"
#include "tools/table.h"

namespace terrace {
namespace {

constexpr char kMethod[] =
    "attention of the positions that predict the digits of a pass key, to what is neither sink nor "
    "window";
constexpr double kFirstDepth = 0.05;
// A key with its words and the question for it take less.
constexpr size_t kKeyTokens = 160;
// Seeds of other texts than those of needles, whose numbers are below.
constexpr uint64_t kSeedsOfNeedles = uint64_t{1} << 32;
constexpr uint64_t kFirstNumber = uint64_t{1} << 31;

class Profiling {
 public:
  Profiling(const HeadProfileSetup& setup, const std::atomic<bool>& stop, EvalInputs& inputs)
      : setup_(setup), stop_(stop), inputs_(inputs) {}

  absl::StatusOr<HeadProfile> Measure();

 private:
  absl::Status CheckLengths() const;
  // Where the key of a text stands: evenly over what is before the window.
  double DepthOf(size_t length, size_t text) const;
  absl::Status MeasureText(size_t length, size_t text, OutsideMeter& meter);
  HeadProfile Result(const OutsideMeter& meter) const;

  const HeadProfileSetup& setup_;
  const std::atomic<bool>& stop_;
  EvalInputs& inputs_;
  uint64_t tokens_ = 0;
  ProgressLine progress_ = ProgressLine(stderr);
};

absl::Status Profiling::CheckLengths() const {
  const size_t inside = setup_.sink_tokens + setup_.window_tokens;
  for (const size_t length : setup_.lengths) {
    if (length >= inside + kKeyTokens) continue;
    return absl::InvalidArgumentError(absl::StrCat(
        "--lengths: texts of ", length, " tokens leave no room for a pass key between ",
        setup_.sink_tokens, " --sinks and a --window of ", setup_.window_tokens, "; from ",
        inside + kKeyTokens, " tokens on there is"));
  }
  return absl::OkStatus();
}

double Profiling::DepthOf(size_t length, size_t text) const {
  const auto whole = static_cast<double>(length);
  const double last = static_cast<double>(length - setup_.window_tokens - kKeyTokens) / whole;
  const double first = std::min(kFirstDepth, last);
  if (setup_.texts == 1) return (first + last) / 2;
  return first + (last - first) * static_cast<double>(text) / static_cast<double>(setup_.texts - 1);
}

absl::Status Profiling::MeasureText(size_t length, size_t text, OutsideMeter& meter) {
  const double depth = DepthOf(length, text);
  const NeedleText drawn =
      DrawNeedleText({.length_tokens = length,
                      .depths = {&depth, 1},
                      .seed = setup_.seed * kSeedsOfNeedles + kFirstNumber + text},
                     inputs_.text.size());
  const absl::StatusOr<std::vector<int32_t>> tokens = NeedleTokens(drawn, inputs_.text);
  if (!tokens.ok()) return tokens.status();
  const PassKey& key = drawn.keys[0];
  std::vector<int32_t> question = NeedleQuestion(key.colour);
  // The last digit is only predicted.
  AppendBytes(absl::string_view(key.digits).substr(0, key.digits.size() - 1), question);
  const size_t before = question.size() - key.digits.size();
  const absl::Span<const int32_t> asks = question;

  absl::Status status = meter.Truncate(0);
  auto position = int64_t{0};
  const auto run = [&](absl::Span<const int32_t> part, bool measures) {
    if (!status.ok()) return;
    meter.set_measures(measures);
    status = inputs_.engine->Forward({part, position, LogitsOf::kNone}, meter, {});
    position += static_cast<int64_t>(part.size());
  };
  run(*tokens, false);
  run(asks.first(before), false);
  run(asks.subspan(before), true);
  tokens_ += static_cast<uint64_t>(position);
  return status;
}

HeadProfile Profiling::Result(const OutsideMeter& meter) const {
  const ModelConfig& config = inputs_.engine->config();
  return {.layers = static_cast<uint32_t>(config.layers),
          .query_heads = static_cast<uint32_t>(config.query_heads),
          .kv_heads = static_cast<uint32_t>(config.kv_heads),
          .head_dim = static_cast<uint32_t>(config.head_dim),
          .model_id = Fingerprint(inputs_.engine->weights()),
          .sink_tokens = setup_.sink_tokens,
          .window_tokens = setup_.window_tokens,
          .method = kMethod,
          .texts = setup_.texts * setup_.lengths.size(),
          .tokens = tokens_,
          .queries = meter.queries(),
          .heads = meter.Heads()};
}

absl::StatusOr<HeadProfile> Profiling::Measure() {
  if (absl::Status status = CheckLengths(); !status.ok()) return status;
  const size_t longest = *std::max_element(setup_.lengths.begin(), setup_.lengths.end());
  const auto meter = OutsideMeter::Create(
      inputs_.engine->config(), {.max_tokens = static_cast<int64_t>(longest + kKeyTokens),
                                 .sink_tokens = static_cast<int64_t>(setup_.sink_tokens),
                                 .window_tokens = static_cast<int64_t>(setup_.window_tokens)});
  if (!meter.ok()) return meter.status();
  for (const size_t length : setup_.lengths) {
    for (size_t text = 0; text < setup_.texts; ++text) {
      progress_.Update(absl::Now(), absl::StrCat("heads: ", FormatCount(length), " tokens, text ",
                                                 text + 1, " of ", setup_.texts));
      if (stop_) return absl::CancelledError("interrupted by a signal");
      if (absl::Status status = MeasureText(length, text, **meter); !status.ok()) return status;
    }
  }
  return Result(**meter);
}

}  // namespace

absl::StatusOr<HeadProfile> RunHeadProfile(const HeadProfileSetup& setup,
                                           const std::atomic<bool>& stop) {
  absl::StatusOr<EvalInputs> inputs = LoadEvalInputs(setup.model, setup.text, setup.runtime);
  if (!inputs.ok()) return inputs.status();
  return Profiling(setup, stop, *inputs).Measure();
}

}  // namespace terrace
