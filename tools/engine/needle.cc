#include "tools/engine/needle.h"

#include <algorithm>
#include <array>
#include <random>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "io/check.h"
#include "tools/engine/byte_tokenizer.h"

namespace terrace {
namespace {

constexpr std::array<absl::string_view, 5> kColours = {"red", "blue", "green", "gold", "pink"};

std::string QuestionText(absl::string_view colour) {
  return absl::StrCat("\nWhat is the ", colour, " pass key? The ", colour, " pass key is ");
}

std::string KeyText(const PassKey& key) {
  return absl::StrCat("\nThe ", key.colour, " pass key is ", key.digits, ". Remember it.\n");
}

// The bytes [begin, end) of a text that are taken.
using Range = std::pair<size_t, size_t>;

absl::Status PlaceKey(const PassKey& key, size_t wanted_at, std::vector<Range>& taken,
                      std::string& text) {
  const std::string words = KeyText(key);
  if (words.size() > text.size()) {
    return absl::InvalidArgumentError(absl::StrCat("needle: a text of ", text.size(),
                                                   " bytes has no room for a key of ", words.size(),
                                                   " before its question"));
  }
  // A depth close to 1 is as deep as the question allows.
  const size_t begin = std::min(wanted_at, text.size() - words.size());
  const Range range = {begin, begin + words.size()};
  for (const Range& other : taken) {
    if (range.first >= other.second || range.second <= other.first) continue;
    return absl::InvalidArgumentError(absl::StrCat("needle: depth: the key at ", key.depth,
                                                   " overlaps another one; a text of ", text.size(),
                                                   " bytes is too short for so many"));
  }
  taken.push_back(range);
  text.replace(begin, words.size(), words);
  return absl::OkStatus();
}

}  // namespace

absl::Span<const absl::string_view> NeedleColours() { return kColours; }

NeedleText DrawNeedleText(const NeedleDraw& draw, uint64_t filler_bytes) {
  TERRACE_CHECK(filler_bytes > 0);
  TERRACE_CHECK(draw.depths.size() <= kColours.size());
  std::mt19937_64 random(draw.seed);
  NeedleText text;
  text.length_tokens = draw.length_tokens;
  text.first_byte = random() % filler_bytes;
  std::array<absl::string_view, kColours.size()> colours = kColours;
  for (size_t i = 0; i < draw.depths.size(); ++i) {
    std::swap(colours[i], colours[i + random() % (colours.size() - i)]);
    text.keys.push_back({.depth = draw.depths[i],
                         .colour = std::string(colours[i]),
                         .digits = absl::StrFormat("%05d", random() % 100'000)});
  }
  return text;
}

absl::StatusOr<std::vector<int32_t>> NeedleTokens(const NeedleText& text,
                                                  absl::string_view filler) {
  if (filler.empty()) return absl::InvalidArgumentError("needle: the filler text is empty");
  size_t question_bytes = 0;
  for (const PassKey& key : text.keys) {
    if (!(key.depth >= 0 && key.depth <= 1)) {
      return absl::InvalidArgumentError(
          absl::StrCat("needle: depth: ", key.depth, " is not from 0 to 1"));
    }
    question_bytes = std::max(question_bytes, QuestionText(key.colour).size());
  }
  if (text.length_tokens <= question_bytes + 1) {
    return absl::InvalidArgumentError(absl::StrCat("needle: length_tokens: ", text.length_tokens,
                                                   " leaves no room before a question of ",
                                                   question_bytes));
  }
  const size_t whole_bytes = text.length_tokens - 1;
  std::string bytes(whole_bytes - question_bytes, '\0');
  for (size_t i = 0; i < bytes.size(); ++i) {
    bytes[i] = filler[(text.first_byte + i) % filler.size()];
  }
  std::vector<Range> taken;
  for (const PassKey& key : text.keys) {
    const auto wanted_at = static_cast<size_t>(key.depth * static_cast<double>(whole_bytes));
    if (absl::Status status = PlaceKey(key, wanted_at, taken, bytes); !status.ok()) return status;
  }
  return EncodeText(bytes);
}

std::vector<int32_t> NeedleQuestion(absl::string_view colour) {
  std::vector<int32_t> tokens;
  AppendBytes(QuestionText(colour), tokens);
  return tokens;
}

}  // namespace terrace
