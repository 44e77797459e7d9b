#ifndef TERRACE_TOOLS_REPLAY_COMMAND_H_
#define TERRACE_TOOLS_REPLAY_COMMAND_H_

#include <functional>

#include "tools/command.h"

namespace CLI {
class App;
}  // namespace CLI

namespace terrace {

// `terrace replay`: a trace of requests through real tiers with real I/O.
void AddReplayCommand(CLI::App& app, std::function<ExitCode()>& run);

}  // namespace terrace

#endif  // TERRACE_TOOLS_REPLAY_COMMAND_H_
