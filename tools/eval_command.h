#ifndef TERRACE_TOOLS_EVAL_COMMAND_H_
#define TERRACE_TOOLS_EVAL_COMMAND_H_

#include <functional>

#include "tools/command.h"

namespace CLI {
class App;
}  // namespace CLI

namespace terrace {

// `terrace eval`: how well a model of bytes predicts a text and finds needles in it, by policy and
// budget.
void AddEvalCommand(CLI::App& app, std::function<ExitCode()>& run);

}  // namespace terrace

#endif  // TERRACE_TOOLS_EVAL_COMMAND_H_
