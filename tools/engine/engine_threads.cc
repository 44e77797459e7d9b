#include "tools/engine/engine_threads.h"

namespace terrace {

ComputePool& EngineThreads() {
  static ComputePool* const pool = new ComputePool(/*threads=*/0);  // outlives all that use it
  return *pool;
}

}  // namespace terrace
