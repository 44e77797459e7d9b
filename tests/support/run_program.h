#ifndef TERRACE_TESTS_SUPPORT_RUN_PROGRAM_H_
#define TERRACE_TESTS_SUPPORT_RUN_PROGRAM_H_

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "absl/time/time.h"

namespace terrace {

struct RunOptions {
  // Standard streams that the program starts without. Otherwise input is /dev/null and the two
  // outputs are captured.
  bool close_stdin = false;
  bool close_stdout = false;
  bool close_stderr = false;
  std::string stdout_path;               // where standard output goes instead
  uint64_t max_file_bytes = UINT64_MAX;  // the program's RLIMIT_FSIZE
  // Signals to send, one after the other, each once `signal_when` holds; an empty function holds at
  // once. It is asked with what standard error has said so far, again and again.
  std::vector<int> signals;
  std::function<bool(const std::string& err)> signal_when;
  std::function<void()> watch;                 // called again and again while the program runs
  absl::Duration deadline = absl::Minutes(4);  // then the program is killed
};

struct RunResult {
  int exit_code = -1;  // -1 when a signal ended the program
  int signal = 0;      // that ended it
  bool timed_out = false;
  std::string out;
  std::string err;
  absl::Duration after_signal;  // from the first signal sent to the end
  // What the kernel counted. The bytes are those of storage, at a granularity of 512; the memory
  // includes what the caller occupied when it started the program.
  uint64_t read_bytes = 0;
  uint64_t written_bytes = 0;
  uint64_t peak_memory_bytes = 0;
};

// Runs a program to its end: argv[0] is its path. The exit code is 127 when there is no such
// program, as in a shell. Thread-safe.
RunResult RunProgram(const std::vector<std::string>& argv, const RunOptions& options = {});

}  // namespace terrace

#endif  // TERRACE_TESTS_SUPPORT_RUN_PROGRAM_H_
