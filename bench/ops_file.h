#ifndef TERRACE_BENCH_OPS_FILE_H_
#define TERRACE_BENCH_OPS_FILE_H_

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"

namespace terrace {

// One operation of a replay: a put of one block or a get of several.
struct BlockOp {
  bool put = false;
  std::vector<uint64_t> ids;
};

// Reads what `terrace replay --export-ops` wrote. kNotFound without such a file; kInvalidArgument
// naming file and line when it is something else.
absl::StatusOr<std::vector<BlockOp>> ReadBlockOps(const std::string& path);

}  // namespace terrace

#endif  // TERRACE_BENCH_OPS_FILE_H_
