#ifndef TERRACE_TOOLS_SSD_COMMAND_H_
#define TERRACE_TOOLS_SSD_COMMAND_H_

#include <functional>

#include "tools/command.h"

namespace CLI {
class App;
}  // namespace CLI

namespace terrace {

// Adds `terrace ssd`; see tools/command.h.
void AddSsdCommand(CLI::App& app, std::function<ExitCode()>& run);

}  // namespace terrace

#endif  // TERRACE_TOOLS_SSD_COMMAND_H_
