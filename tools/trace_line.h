#ifndef TERRACE_TOOLS_TRACE_LINE_H_
#define TERRACE_TOOLS_TRACE_LINE_H_

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"

namespace terrace {

// Mooncake traces: JSON objects, one a line, each a request to a model with
//   "timestamp"      arrival, in milliseconds from the start of the trace
//   "input_length"   prompt, in tokens
//   "output_length"  answer, in tokens
//   "hash_ids"       one id for each block of the prompt, in prompt order; equal ids mean equal
//                    prefixes up to and including that block
// All four are required, once each; further fields are ignored. Ids may repeat inside a request and
// may be absent. Lengths are not checked against the number of ids, because the tokens in a block
// are an option of the reader, and timestamps may go backwards.

// One request by itself, as it stands on a line.
struct TraceLine {
  int64_t timestamp_ms = 0;
  uint32_t input_length = 0;       // tokens, at most kMaxTraceTokens
  uint32_t output_length = 0;      // tokens, at most kMaxTraceTokens
  std::vector<uint64_t> hash_ids;  // each at most kMaxTraceHashId
};

inline constexpr uint32_t kMaxTraceTokens = 0x7fffffff;
inline constexpr uint64_t kMaxTraceHashId = 0x7fffffffffffffff;

// Parses one line without its end-of-line. `request` is overwritten, and meaningless after an
// error; reuse one to reuse its memory. kInvalidArgument naming the field or the byte.
absl::Status ParseTraceLine(absl::string_view line, TraceLine& request);

// Appends the request to `text` as one line, end-of-line included.
void AppendTraceLine(const TraceLine& request, std::string& text);

}  // namespace terrace

#endif  // TERRACE_TOOLS_TRACE_LINE_H_
