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

// A pass key, hidden in a text as "\nThe red pass key is 48213. Remember it.\n".
struct PassKey {
  double depth = 0;  // where it stands, from 0 to 1 of the length
  std::string colour = "red";
  std::string digits;
};

// A text with pass keys, at the end of which the model is asked for one of them: "\nWhat is the red
// pass key? The red pass key is ".
struct NeedleText {
  size_t length_tokens = 0;  // with the start token and the longest of the questions
  uint64_t first_byte = 0;   // of the filler, where the text begins; the filler goes round
  std::vector<PassKey> keys;
};

// The colours that models are trained with.
absl::Span<const absl::string_view> NeedleColours();

struct NeedleDraw {
  size_t length_tokens = 0;
  absl::Span<const double> depths;  // of each key; at most as many as there are colours
  uint64_t seed = 0;
};
// Draws colours, which differ, five digits each and the beginning in a filler of `filler_bytes`.
NeedleText DrawNeedleText(const NeedleDraw& draw, uint64_t filler_bytes);

// The text without a question, for a model of bytes. Keys replace the filler where they stand, so
// that the text around them does not depend on their length. kInvalidArgument naming what is wrong
// when the filler is empty, a depth is not from 0 to 1, or the length leaves no room for the keys
// and a question.
absl::StatusOr<std::vector<int32_t>> NeedleTokens(const NeedleText& text, absl::string_view filler);

// What follows the text to ask for the key of a colour.
std::vector<int32_t> NeedleQuestion(absl::string_view colour);

}  // namespace terrace

#endif  // TERRACE_TOOLS_ENGINE_NEEDLE_H_
