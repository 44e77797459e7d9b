#ifndef TERRACE_TOOLS_STOP_SIGNAL_H_
#define TERRACE_TOOLS_STOP_SIGNAL_H_

#include <atomic>

namespace terrace {

// From now on the first SIGINT or SIGTERM sets the flag that is returned; a second one ends the
// program at once. Call from main's thread. The flag lives as long as the program.
const std::atomic<bool>& StopOnSignals();

}  // namespace terrace

#endif  // TERRACE_TOOLS_STOP_SIGNAL_H_
