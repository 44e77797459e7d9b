#ifndef TERRACE_TOOLS_ENGINE_NEEDLE_H_
#define TERRACE_TOOLS_ENGINE_NEEDLE_H_

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"

namespace terrace {

// A pass key hidden in a text, which the model is asked for at the end:
// "\nThe red pass key is 48213. Remember it.\n" ... "\nWhat is the red pass key? The red pass key
// is ".
struct Needle {
  size_t length_tokens = 0;  // of the whole prompt, with the start token
  double depth = 0;          // where the key stands, from 0 to 1 of the length
  uint64_t first_byte = 0;   // of the filler text where the prompt begins; the text goes round
  std::string colour = "red";
  std::string digits;
};

// The colours that models are trained with.
absl::Span<const absl::string_view> NeedleColours();

struct NeedleDraw {
  size_t length_tokens = 0;
  double depth = 0;
  uint64_t seed = 0;
};
// Draws colour, five digits and the beginning in a filler of `filler_bytes`.
Needle DrawNeedle(const NeedleDraw& draw, uint64_t filler_bytes);

// The prompt, for a model of bytes. The key and the question replace the filler where they stand,
// so that the text around them does not depend on their length. kInvalidArgument naming the field
// when the filler is empty, the depth is not from 0 to 1, or the length leaves no room for both.
absl::StatusOr<std::vector<int32_t>> NeedlePrompt(const Needle& needle, absl::string_view filler);

}  // namespace terrace

#endif  // TERRACE_TOOLS_ENGINE_NEEDLE_H_
