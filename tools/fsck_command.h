#ifndef TERRACE_TOOLS_FSCK_COMMAND_H_
#define TERRACE_TOOLS_FSCK_COMMAND_H_

#include <functional>

#include "tools/command.h"

namespace CLI {
class App;
}  // namespace CLI

namespace terrace {

// Adds `terrace fsck`; see command.h. `app` and `run` outlive parsing.
void AddFsckCommand(CLI::App& app, std::function<ExitCode()>& run);

}  // namespace terrace

#endif  // TERRACE_TOOLS_FSCK_COMMAND_H_
