#ifndef TERRACE_TOOLS_COMMAND_H_
#define TERRACE_TOOLS_COMMAND_H_

#include <cerrno>
#include <cmath>
#include <cstdlib>
#include <string>

namespace terrace {

// What main returns. A subcommand registers itself with
//   void AddXxxCommand(CLI::App& app, std::function<ExitCode()>& run);
// whose callback, called when the command line names that subcommand, sets `run` to what executes
// it. main parses first and runs afterwards, so nothing happens before the usage is known good.
enum class ExitCode : int {
  kSuccess = 0,
  kFailure = 1,   // stderr says what, where and why
  kBadUsage = 2,  // stderr names the flag
};

// A check for every option with an unsigned target: CLI11 reads both "-1" and 2^64 as 2^64 - 1.
// Returns what is wrong, to which CLI11 adds the option's name, or nothing.
inline std::string CheckUnsigned(const std::string& text) {
  if (text.empty()) return "is empty, expected a number";
  if (text.starts_with('-')) return "is " + text + ", expected no negative number";
  errno = 0;
  std::strtoull(text.c_str(), nullptr, 0);
  return errno == ERANGE ? "is " + text + ", expected at most 2^64 - 1" : std::string();
}

// A check for an option with a floating-point target and a CLI::Range, which lets "nan" pass.
inline std::string CheckNotNan(const std::string& text) {
  return std::isnan(std::strtod(text.c_str(), nullptr)) ? "is " + text + ", expected a number"
                                                        : std::string();
}

}  // namespace terrace

#endif  // TERRACE_TOOLS_COMMAND_H_
