#include "tools/engine/perplexity.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "absl/strings/str_cat.h"
#include "tools/engine/byte_tokenizer.h"

namespace terrace {
namespace {

constexpr size_t kPromptStepTokens = 256;

// -ln of the probability that softmax gives the token.
double Surprise(absl::Span<const float> logits, int32_t token) {
  const double largest = *std::max_element(logits.begin(), logits.end());
  double sum = 0;
  for (const float logit : logits) sum += std::exp(logit - largest);
  return largest + std::log(sum) - logits[static_cast<size_t>(token)];
}

// The last token is only predicted.
absl::StatusOr<double> WindowSurprise(absl::Span<const int32_t> window,
                                      const PerplexityOptions& options, Engine& engine,
                                      AttentionSource& attention, std::vector<float>& logits) {
  if (absl::Status status = attention.Truncate(0); !status.ok()) return status;
  const size_t vocab = engine.config().vocab;
  const absl::Span<const int32_t> inputs = window.first(window.size() - 1);
  double sum = 0;
  for (size_t at = 0; at < inputs.size();) {
    const size_t most = at < options.prompt_tokens
                            ? std::min(options.prompt_tokens - at, kPromptStepTokens)
                            : options.step_tokens;
    const ForwardStep step = {inputs.subspan(at, most), static_cast<int64_t>(at),
                              LogitsOf::kEveryToken};
    logits.resize(engine.LogitCount(step));
    absl::Status status = engine.Forward(step, attention, absl::MakeSpan(logits));
    if (!status.ok()) return status;
    for (size_t i = 0; i < step.tokens.size(); ++i) {
      sum += Surprise(absl::MakeConstSpan(logits).subspan(i * vocab, vocab), window[at + i + 1]);
    }
    at += step.tokens.size();
  }
  return sum;
}

}  // namespace

absl::Status PerplexityOptions::Validate() const {
  const auto at_least = [](const char* field, size_t value, size_t least) {
    if (value >= least) return absl::OkStatus();
    return absl::InvalidArgumentError(
        absl::StrCat("perplexity: ", field, ": ", value, " is less than ", least));
  };
  absl::Status status = at_least("window_tokens", window_tokens, 2);
  if (status.ok()) status = at_least("stride_bytes", stride_bytes, 1);
  if (status.ok()) status = at_least("max_windows", max_windows, 1);
  if (status.ok()) status = at_least("step_tokens", step_tokens, 1);
  return status;
}

absl::StatusOr<Perplexity> MeasurePerplexity(absl::string_view text,
                                             const PerplexityOptions& options, Engine& engine,
                                             AttentionSource& attention) {
  if (absl::Status status = options.Validate(); !status.ok()) return status;
  if (absl::Status status = CheckByteModel(engine.config()); !status.ok()) return status;
  const size_t window_bytes = options.window_tokens - 1;
  if (text.size() < window_bytes) {
    return absl::InvalidArgumentError(absl::StrCat("perplexity: a text of ", text.size(),
                                                   " bytes has no window of ", window_bytes));
  }
  Perplexity result;
  double sum = 0;
  std::vector<float> logits;
  result.windows =
      std::min(options.max_windows, 1 + (text.size() - window_bytes) / options.stride_bytes);
  for (size_t i = 0; i < result.windows; ++i) {
    const size_t at = i * options.stride_bytes;
    const std::vector<int32_t> window = EncodeText(text.substr(at, window_bytes));
    const absl::StatusOr<double> surprise =
        WindowSurprise(window, options, engine, attention, logits);
    if (!surprise.ok()) return surprise.status();
    sum += *surprise;
  }
  result.bytes = result.windows * window_bytes;
  result.nats_per_byte = sum / static_cast<double>(result.bytes);
  return result;
}

}  // namespace terrace
