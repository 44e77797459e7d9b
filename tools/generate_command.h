#ifndef TERRACE_TOOLS_GENERATE_COMMAND_H_
#define TERRACE_TOOLS_GENERATE_COMMAND_H_

#include <functional>

#include "tools/command.h"

namespace CLI {
class App;
}  // namespace CLI

namespace terrace {

// `terrace generate`: continues a text with a model of bytes in the Llama layout.
void AddGenerateCommand(CLI::App& app, std::function<ExitCode()>& run);

}  // namespace terrace

#endif  // TERRACE_TOOLS_GENERATE_COMMAND_H_
