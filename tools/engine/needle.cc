#include "tools/engine/needle.h"

#include <algorithm>
#include <array>
#include <random>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "io/check.h"
#include "tools/engine/byte_tokenizer.h"

namespace terrace {
namespace {

constexpr std::array<absl::string_view, 5> kColours = {"red", "blue", "green", "gold", "pink"};

}  // namespace

absl::Span<const absl::string_view> NeedleColours() { return kColours; }

Needle DrawNeedle(const NeedleDraw& draw, uint64_t filler_bytes) {
  TERRACE_CHECK(filler_bytes > 0);
  std::mt19937_64 random(draw.seed);
  Needle needle;
  needle.length_tokens = draw.length_tokens;
  needle.depth = draw.depth;
  needle.first_byte = random() % filler_bytes;
  needle.colour = std::string(kColours[random() % kColours.size()]);
  needle.digits = absl::StrFormat("%05d", random() % 100'000);
  return needle;
}

absl::StatusOr<std::vector<int32_t>> NeedlePrompt(const Needle& needle, absl::string_view filler) {
  const std::string key =
      absl::StrCat("\nThe ", needle.colour, " pass key is ", needle.digits, ". Remember it.\n");
  const std::string question = absl::StrCat("\nWhat is the ", needle.colour, " pass key? The ",
                                            needle.colour, " pass key is ");
  if (filler.empty()) return absl::InvalidArgumentError("needle: the filler text is empty");
  if (!(needle.depth >= 0 && needle.depth <= 1)) {
    return absl::InvalidArgumentError(
        absl::StrCat("needle: depth: ", needle.depth, " is not from 0 to 1"));
  }
  const size_t least = 1 + key.size() + question.size();
  if (needle.length_tokens < least) {
    return absl::InvalidArgumentError(absl::StrCat("needle: length_tokens: ", needle.length_tokens,
                                                   " is less than the ", least,
                                                   " of the key and the question"));
  }
  std::string text(needle.length_tokens - 1, '\0');
  for (size_t i = 0; i < text.size(); ++i) {
    text[i] = filler[(needle.first_byte + i) % filler.size()];
  }
  const size_t question_at = text.size() - question.size();
  // A depth close to 1 is as deep as the question allows.
  const auto wanted_at = static_cast<size_t>(needle.depth * static_cast<double>(text.size()));
  text.replace(std::min(wanted_at, question_at - key.size()), key.size(), key);
  text.replace(question_at, question.size(), question);
  return EncodeText(text);
}

}  // namespace terrace
