#include "tools/engine/generate.h"

#include <vector>

#include "absl/time/clock.h"

namespace terrace {

absl::StatusOr<GenerateResult> Generate(const GenerateRequest& request, Engine& engine,
                                        AttentionSource& attention, Sampler& sampler,
                                        absl::FunctionRef<bool(int32_t token)> take) {
  GenerateResult result;
  std::vector<float> logits(engine.config().vocab);
  ForwardStep step = {request.prompt, request.position, LogitsOf::kNone};
  const absl::Time start = absl::Now();
  TimelineSpan prefill(engine.timeline(), "prefill", {"tokens", request.prompt.size()});
  absl::Status status;
  if (step.tokens.size() > 1) {
    step.tokens.remove_suffix(1);
    status = engine.Forward(step, attention, {});
    step.position += static_cast<int64_t>(step.tokens.size());
    step.tokens = request.prompt.last(1);
  }
  step.logits_of = LogitsOf::kLastToken;
  if (status.ok()) status = engine.Forward(step, attention, absl::MakeSpan(logits));
  const absl::Time prefilled = absl::Now();
  result.prefill = prefilled - start;
  prefill.End();
  while (status.ok() && result.generated_tokens < request.max_tokens) {
    const TimelineSpan span(engine.timeline(), "token", {"number", result.generated_tokens});
    const int32_t token = sampler.Sample(logits);
    ++result.generated_tokens;
    if (!take(token) || result.generated_tokens == request.max_tokens) break;
    step.position += static_cast<int64_t>(step.tokens.size());
    step.tokens = absl::MakeConstSpan(&token, 1);
    status = engine.Forward(step, attention, absl::MakeSpan(logits));
  }
  result.decode = absl::Now() - prefilled;
  if (!status.ok()) return status;
  return result;
}

}  // namespace terrace
