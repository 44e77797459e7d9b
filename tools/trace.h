#ifndef TERRACE_TOOLS_TRACE_H_
#define TERRACE_TOOLS_TRACE_H_

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "tools/trace_line.h"

namespace terrace {

// One request of a Trace, which holds its ids.
struct TraceRequest {
  int64_t timestamp_ms = 0;
  uint32_t input_length = 0;   // tokens
  uint32_t output_length = 0;  // tokens
  uint64_t first_hash_id = 0;  // index among the trace's ids
  uint64_t hash_id_count = 0;
};

// A whole trace in memory: 8 bytes an id and 32 a request. Thread-compatible.
class Trace {
 public:
  absl::Span<const TraceRequest> requests() const { return requests_; }

  // Block ids of one of this trace's requests, in prompt order; valid until the next Append and
  // across moves of the trace.
  absl::Span<const uint64_t> hash_ids(const TraceRequest& request) const {
    return absl::MakeConstSpan(hash_ids_).subspan(request.first_hash_id, request.hash_id_count);
  }

  // Ids over all requests, repetitions included.
  absl::Span<const uint64_t> all_hash_ids() const { return hash_ids_; }
  uint64_t block_refs() const { return hash_ids_.size(); }

  // Lines left out because they were bad (TraceReadOptions::skip_bad_lines).
  uint64_t skipped_lines() const { return skipped_lines_; }

  void Append(const TraceLine& request);
  void ShrinkToFit();  // gives back the slack of growth
  void set_skipped_lines(uint64_t lines) { skipped_lines_ = lines; }

 private:
  std::vector<TraceRequest> requests_;
  std::vector<uint64_t> hash_ids_;
  uint64_t skipped_lines_ = 0;
};

struct TraceReadOptions {
  bool skip_bad_lines = false;                    // count them instead of failing
  uint64_t max_requests = 0;                      // stop reading after so many; 0 takes all
  uint64_t max_line_bytes = uint64_t{64} << 20;   // a longer line is a bad line
  uint64_t max_block_refs = uint64_t{256} << 20;  // more ids than this is an error
};

// Reads a trace from a file, pipe or device, holding one line and one read chunk besides the
// result. A byte order mark, CRLF and a last line without end-of-line are accepted, as are blank
// lines at the end of the file; elsewhere a blank line is a bad line.
//
// Errors name the path, for bad content also line and field: kInvalidArgument for bad content, a
// compressed file, a directory or a trace without requests; the errno's code when the file cannot
// be opened or read.
absl::StatusOr<Trace> ReadTrace(const std::string& path, const TraceReadOptions& options = {});

}  // namespace terrace

#endif  // TERRACE_TOOLS_TRACE_H_
