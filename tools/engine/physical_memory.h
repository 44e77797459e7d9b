#ifndef TERRACE_TOOLS_ENGINE_PHYSICAL_MEMORY_H_
#define TERRACE_TOOLS_ENGINE_PHYSICAL_MEMORY_H_

#include <cstdint>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"

namespace terrace {

// kResourceExhausted, naming `what`, when this machine has no `bytes` of memory in all. It keeps a
// size from a file or a flag from ending the process; it does not promise that the memory is free.
absl::Status CheckFitsMemory(absl::string_view what, uint64_t bytes);

}  // namespace terrace

#endif  // TERRACE_TOOLS_ENGINE_PHYSICAL_MEMORY_H_
