#ifndef TERRACE_TOOLS_PACK_COMMAND_H_
#define TERRACE_TOOLS_PACK_COMMAND_H_

#include <functional>

#include "tools/command.h"

namespace CLI {
class App;
}  // namespace CLI

namespace terrace {

// terrace pack: writes a weight bundle file from safetensors, or inspects one.
void AddPackCommand(CLI::App& app, std::function<ExitCode()>& run);

}  // namespace terrace

#endif  // TERRACE_TOOLS_PACK_COMMAND_H_
