#ifndef TERRACE_TOOLS_INDEX_EVAL_COMMAND_H_
#define TERRACE_TOOLS_INDEX_EVAL_COMMAND_H_

#include <functional>

#include "tools/command.h"

namespace CLI {
class App;
}  // namespace CLI

namespace terrace {

// `terrace index-eval`: recall, attention mass, output error, latency and memory of key indexes on
// the heads of a dump or on synthetic ones.
void AddIndexEvalCommand(CLI::App& app, std::function<ExitCode()>& run);

}  // namespace terrace

#endif  // TERRACE_TOOLS_INDEX_EVAL_COMMAND_H_
