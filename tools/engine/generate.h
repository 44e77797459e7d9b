#ifndef TERRACE_TOOLS_ENGINE_GENERATE_H_
#define TERRACE_TOOLS_ENGINE_GENERATE_H_

#include <cstdint>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/time/time.h"
#include "absl/types/span.h"
#include "tools/engine/attention_source.h"
#include "tools/engine/engine.h"
#include "tools/engine/sampler.h"

namespace terrace {

struct GenerateRequest {
  absl::Span<const int32_t> prompt;
  int64_t position = 0;    // of its first token: how many the attention source has
  int64_t max_tokens = 0;  // to generate
};

struct GenerateResult {
  int64_t generated_tokens = 0;
  absl::Duration prefill;  // of the prompt
  absl::Duration decode;   // of the tokens that were fed back, one less than generated
};

// Runs the prompt, the last token of it by itself, as the attention source may look up what every
// step needs; then token by token. Each generated token goes to `take`, which returns whether to go
// on. The attention source has the prompt and all but the last generated token afterwards. Errors
// are those of Engine::Forward.
absl::StatusOr<GenerateResult> Generate(const GenerateRequest& request, Engine& engine,
                                        AttentionSource& attention, Sampler& sampler,
                                        absl::FunctionRef<bool(int32_t token)> take);

}  // namespace terrace

#endif  // TERRACE_TOOLS_ENGINE_GENERATE_H_
