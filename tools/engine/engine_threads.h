#ifndef TERRACE_TOOLS_ENGINE_ENGINE_THREADS_H_
#define TERRACE_TOOLS_ENGINE_ENGINE_THREADS_H_

#include "index/compute_pool.h"

namespace terrace {

// The threads on which all engines of the process compute, as many as there are processors.
ComputePool& EngineThreads();

}  // namespace terrace

#endif  // TERRACE_TOOLS_ENGINE_ENGINE_THREADS_H_
