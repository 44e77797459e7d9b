#ifndef TERRACE_TESTS_TOOLS_TERRACE_PROGRAM_H_
#define TERRACE_TESTS_TOOLS_TERRACE_PROGRAM_H_

#include <algorithm>
#include <string>
#include <utility>
#include <vector>

#include "tests/support/run_program.h"

namespace terrace {

using Arguments = std::vector<std::string>;
using Defaults = std::vector<std::pair<std::string, std::string>>;  // flag and value

// Runs the terrace program that was built with the tests.
inline RunResult RunTerrace(const Arguments& arguments, const RunOptions& options = {}) {
  Arguments argv = {TERRACE_PROGRAM};
  argv.insert(argv.end(), arguments.begin(), arguments.end());
  return RunProgram(argv, options);
}

// `arguments`, and those of `defaults` whose flag they do not give, because a flag may stand on a
// command line once only.
inline Arguments WithDefaults(Arguments arguments, const Defaults& defaults) {
  for (const auto& [flag, value] : defaults) {
    if (std::find(arguments.begin(), arguments.end(), flag) != arguments.end()) continue;
    arguments.insert(arguments.end(), {flag, value});
  }
  return arguments;
}

}  // namespace terrace

#endif  // TERRACE_TESTS_TOOLS_TERRACE_PROGRAM_H_
