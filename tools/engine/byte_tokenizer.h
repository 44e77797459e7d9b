#ifndef TERRACE_TOOLS_ENGINE_BYTE_TOKENIZER_H_
#define TERRACE_TOOLS_ENGINE_BYTE_TOKENIZER_H_

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "tools/engine/model_config.h"

namespace terrace {

// Models of bytes: ids below 256 are bytes, and this one begins every text. What is above it has no
// bytes.
inline constexpr int32_t kStartToken = 256;

// kInvalidArgument naming the field when the model is not one of bytes.
absl::Status CheckByteModel(const ModelConfig& config);

void AppendBytes(absl::string_view text, std::vector<int32_t>& tokens);
// kStartToken, then the bytes.
std::vector<int32_t> EncodeText(absl::string_view text);

// The bytes; ids without any are left out.
std::string DecodeTokens(absl::Span<const int32_t> tokens);

}  // namespace terrace

#endif  // TERRACE_TOOLS_ENGINE_BYTE_TOKENIZER_H_
