#include "bench/ops_file.h"

#include <fstream>
#include <sstream>
#include <utility>

#include "absl/strings/str_cat.h"

namespace terrace {

absl::StatusOr<std::vector<BlockOp>> ReadBlockOps(const std::string& path) {
  std::ifstream file(path);
  if (!file) return absl::NotFoundError(absl::StrCat(path, ": cannot open"));
  std::vector<BlockOp> ops;
  size_t line_number = 0;
  for (std::string line; std::getline(file, line);) {
    ++line_number;
    std::istringstream words(line);
    std::string verb;
    words >> verb;
    BlockOp op;
    for (uint64_t id = 0; words >> id;) op.ids.push_back(id);
    op.put = verb == "put" && op.ids.size() == 1;
    if (!words.eof() || (!op.put && verb != "get")) {
      return absl::InvalidArgumentError(
          absl::StrCat(path, ":", line_number, ": neither 'put ID' nor 'get ID ...': ", line));
    }
    ops.push_back(std::move(op));
  }
  return ops;
}

}  // namespace terrace
