#include "bench/memory_limit.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <fstream>
#include <vector>

#include "absl/memory/memory.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "io/unique_fd.h"

namespace terrace {
namespace {

// Never creates the file: where it does not exist, the directory is no cgroup with a memory
// controller.
bool WriteFile(const std::string& path, uint64_t value) {
  const UniqueFd file(::open(path.c_str(), O_WRONLY | O_CLOEXEC));
  const std::string text = absl::StrCat(value);
  return file.valid() &&
         ::write(file.get(), text.data(), text.size()) == static_cast<ssize_t>(text.size());
}

// Where the hierarchy that a line of /proc/self/cgroup names is mounted, plus the path of this
// process in it; empty when the line is of another controller.
std::string OwnGroup(const std::string& line, bool version2) {
  const std::vector<std::string> fields = absl::StrSplit(line, absl::MaxSplits(':', 2));
  if (fields.size() != 3) return "";
  if (version2) return fields[0] == "0" ? absl::StrCat("/sys/fs/cgroup", fields[2]) : "";
  for (absl::string_view controller : absl::StrSplit(fields[1], ',')) {
    if (controller == "memory") return absl::StrCat("/sys/fs/cgroup/memory", fields[2]);
  }
  return "";
}

}  // namespace

std::unique_ptr<MemoryLimit> MemoryLimit::Create(uint64_t bytes) {
  for (const bool version2 : {false, true}) {
    std::ifstream groups("/proc/self/cgroup");
    for (std::string line; std::getline(groups, line);) {
      const std::string own = OwnGroup(line, version2);
      if (own.empty()) continue;
      const std::string group = absl::StrCat(own, "/terrace-peers-", ::getpid());
      if (::mkdir(group.c_str(), 0755) != 0) continue;
      auto limit = absl::WrapUnique(new MemoryLimit(group, version2));
      // Swap, where there is any, would be memory beyond the budget. Kernels without accounting of
      // swap lack the file.
      const char* const name = version2 ? "/memory.max" : "/memory.limit_in_bytes";
      if (!WriteFile(group + name, bytes)) continue;
      WriteFile(group + (version2 ? "/memory.swap.max" : "/memory.memsw.limit_in_bytes"),
                version2 ? 0 : bytes);
      return limit;
    }
  }
  return nullptr;
}

MemoryLimit::~MemoryLimit() {
  // Version 1 keeps a group busy while page cache is charged to it.
  if (!version2_) WriteFile(group_ + "/memory.force_empty", 0);
  ::rmdir(group_.c_str());
}

bool MemoryLimit::Join() const {
  return WriteFile(group_ + "/cgroup.procs", static_cast<uint64_t>(::getpid()));
}

std::optional<uint64_t> MemoryLimit::PeakBytes() const {
  std::ifstream file(group_ + (version2_ ? "/memory.peak" : "/memory.max_usage_in_bytes"));
  uint64_t bytes = 0;
  if (file >> bytes) return bytes;
  return std::nullopt;
}

}  // namespace terrace
