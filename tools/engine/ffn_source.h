#ifndef TERRACE_TOOLS_ENGINE_FFN_SOURCE_H_
#define TERRACE_TOOLS_ENGINE_FFN_SOURCE_H_

#include <cstddef>
#include <cstdint>

#include "absl/status/status.h"
#include "absl/types/span.h"

namespace terrace {

// What one layer asks of an FfnSource for consecutive tokens. Everything is borrowed for the
// duration of the call, fp32 and row-major.
struct FfnStep {
  size_t layer = 0;
  int64_t position = 0;       // of the first token
  size_t tokens = 0;          // at least 1
  absl::Span<const float> x;  // [tokens, hidden], normed
  absl::Span<float> out;      // [tokens, hidden]: what the network adds
};

// Computes the feed-forward networks of a model: this is how the engine gets them. Layers come in
// their order, and position 0 begins a text. One call at a time.
class FfnSource {
 public:
  virtual ~FfnSource() = default;

  virtual absl::Status Run(const FfnStep& step) = 0;
};

}  // namespace terrace

#endif  // TERRACE_TOOLS_ENGINE_FFN_SOURCE_H_
