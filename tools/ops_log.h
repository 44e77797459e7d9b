#ifndef TERRACE_TOOLS_OPS_LOG_H_
#define TERRACE_TOOLS_OPS_LOG_H_

#include <cstdint>
#include <cstdio>
#include <string>

#include "absl/status/status.h"
#include "absl/types/span.h"

namespace terrace {

// The block operations of a replay as text, so that benchmarks can do the same work on other
// stores: one line an operation, "put ID" or "get ID ID ...", ids in decimal, in the order of the
// calls. A get names what was asked for; its blocks were all there. Thread-compatible.
class OpsLog {
 public:
  OpsLog() = default;
  ~OpsLog();
  OpsLog(const OpsLog&) = delete;
  OpsLog& operator=(const OpsLog&) = delete;

  // Creates or truncates the file. Without Open everything else does nothing.
  absl::Status Open(const std::string& path);
  void Put(uint64_t hash_id);
  void Get(absl::Span<const uint64_t> hash_ids);
  // Reports the first error of any write.
  absl::Status Close();

 private:
  std::string path_;
  std::FILE* file_ = nullptr;
};

}  // namespace terrace

#endif  // TERRACE_TOOLS_OPS_LOG_H_
