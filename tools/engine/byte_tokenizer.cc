#include "tools/engine/byte_tokenizer.h"

#include "absl/strings/str_cat.h"

namespace terrace {

absl::Status CheckByteModel(const ModelConfig& config) {
  if (config.vocab <= static_cast<size_t>(kStartToken)) {
    return absl::InvalidArgumentError(absl::StrCat(
        "vocab_size: ", config.vocab, " has no room for the 256 bytes and token ", kStartToken));
  }
  if (config.start_token != kStartToken) {
    return absl::InvalidArgumentError(
        absl::StrCat("bos_token_id: ",
                     config.start_token.has_value() ? absl::StrCat(*config.start_token) : "null",
                     " is not ", kStartToken, ", so this is no model of bytes"));
  }
  return absl::OkStatus();
}

void AppendBytes(absl::string_view text, std::vector<int32_t>& tokens) {
  tokens.reserve(tokens.size() + text.size());
  for (const char byte : text) tokens.push_back(static_cast<unsigned char>(byte));
}

std::vector<int32_t> EncodeText(absl::string_view text) {
  std::vector<int32_t> tokens = {kStartToken};
  AppendBytes(text, tokens);
  return tokens;
}

std::string DecodeTokens(absl::Span<const int32_t> tokens) {
  std::string text;
  for (const int32_t token : tokens) {
    if (token >= 0 && token < 256) text.push_back(static_cast<char>(token));
  }
  return text;
}

}  // namespace terrace
