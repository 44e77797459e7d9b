#ifndef TERRACE_TOOLS_GENTRACE_COMMAND_H_
#define TERRACE_TOOLS_GENTRACE_COMMAND_H_

#include <functional>

#include "tools/command.h"

namespace CLI {
class App;
}  // namespace CLI

namespace terrace {

// Adds `terrace gentrace`; see command.h. `app` and `run` outlive parsing.
void AddGentraceCommand(CLI::App& app, std::function<ExitCode()>& run);

}  // namespace terrace

#endif  // TERRACE_TOOLS_GENTRACE_COMMAND_H_
