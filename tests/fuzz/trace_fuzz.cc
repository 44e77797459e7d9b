// Feeds arbitrary bytes to the trace parser, once as a line and once as a file.

#include <sys/mman.h>
#include <unistd.h>

#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <string>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "tools/trace.h"

namespace terrace {
namespace {

void CheckThat(bool condition, const char* promise) {
  if (condition) return;
  std::fprintf(stderr, "broken promise: %s\n", promise);
  std::abort();
}

void CheckRequest(const TraceLine& request) {
  CheckThat(request.timestamp_ms >= 0, "timestamps are not negative");
  CheckThat(request.input_length <= kMaxTraceTokens, "input_length is in range");
  CheckThat(request.output_length <= kMaxTraceTokens, "output_length is in range");
  for (const uint64_t id : request.hash_ids) CheckThat(id <= kMaxTraceHashId, "ids are in range");
}

void FuzzLine(absl::string_view line) {
  TraceLine request;
  const absl::Status status = ParseTraceLine(line, request);
  if (!status.ok()) {
    CheckThat(status.code() == absl::StatusCode::kInvalidArgument, "bad lines are bad arguments");
    CheckThat(!status.message().empty(), "errors say what is wrong");
    return;
  }
  CheckRequest(request);
  std::string text;
  AppendTraceLine(request, text);
  TraceLine again;
  CheckThat(ParseTraceLine(text, again).ok(), "written requests parse");
  CheckThat(again.timestamp_ms == request.timestamp_ms &&
                again.input_length == request.input_length &&
                again.output_length == request.output_length && again.hash_ids == request.hash_ids,
            "requests survive writing");
}

void FuzzFile(const std::string& path) {
  TraceReadOptions options;
  options.max_line_bytes = 4096;
  const absl::StatusOr<Trace> strict = ReadTrace(path, options);
  if (!strict.ok()) {
    CheckThat(absl::StrContains(strict.status().message(), path), "errors name the file");
  }
  options.skip_bad_lines = true;
  const absl::StatusOr<Trace> lenient = ReadTrace(path, options);
  if (!strict.ok()) return;
  CheckThat(lenient.ok() && lenient->skipped_lines() == 0, "good files have no bad lines");
  CheckThat(lenient->requests().size() == strict->requests().size() &&
                lenient->block_refs() == strict->block_refs(),
            "skipping bad lines keeps the good ones");
}

}  // namespace
}  // namespace terrace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  terrace::FuzzLine(absl::string_view(reinterpret_cast<const char*>(data), size));
  // One file for the whole run; it never touches a disk.
  static const int fd = ::memfd_create("trace", MFD_CLOEXEC);
  terrace::CheckThat(fd >= 0, "memory files can be made");
  terrace::CheckThat(::ftruncate(fd, 0) == 0, "memory files can be emptied");
  terrace::CheckThat(::pwrite(fd, data, size, 0) == static_cast<ssize_t>(size),
                     "memory files can be written");
  terrace::FuzzFile(absl::StrCat("/proc/self/fd/", fd));
  return 0;
}
