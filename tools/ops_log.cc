#include "tools/ops_log.h"

#include <cerrno>
#include <cinttypes>

#include "absl/strings/str_cat.h"

namespace terrace {

OpsLog::~OpsLog() {
  if (file_ != nullptr) std::fclose(file_);
}

absl::Status OpsLog::Open(const std::string& path) {
  path_ = path;
  file_ = std::fopen(path.c_str(), "we");
  if (file_ != nullptr) return absl::OkStatus();
  return absl::ErrnoToStatus(errno, absl::StrCat("operations log ", path, ": cannot open"));
}

void OpsLog::Put(uint64_t hash_id) {
  if (file_ != nullptr) std::fprintf(file_, "put %" PRIu64 "\n", hash_id);
}

void OpsLog::Get(absl::Span<const uint64_t> hash_ids) {
  if (file_ == nullptr) return;
  std::fputs("get", file_);
  for (uint64_t hash_id : hash_ids) std::fprintf(file_, " %" PRIu64, hash_id);
  std::fputc('\n', file_);
}

absl::Status OpsLog::Close() {
  if (file_ == nullptr) return absl::OkStatus();
  const bool failed = std::ferror(file_) != 0;
  const bool closed = std::fclose(file_) == 0;
  file_ = nullptr;
  if (!failed && closed) return absl::OkStatus();
  return absl::ErrnoToStatus(errno, absl::StrCat("operations log ", path_, ": cannot write"));
}

}  // namespace terrace
