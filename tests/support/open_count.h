#ifndef TERRACE_TESTS_SUPPORT_OPEN_COUNT_H_
#define TERRACE_TESTS_SUPPORT_OPEN_COUNT_H_

#include <filesystem>
#include <string>
#include <system_error>

namespace terrace {

// How many descriptors of this process lead to the file that is at `path` now.
inline int OpenCount(const std::string& path) {
  int count = 0;
  for (const auto& entry : std::filesystem::directory_iterator("/proc/self/fd")) {
    std::error_code error;  // of a descriptor that has gone since it was listed
    if (std::filesystem::equivalent(entry.path(), path, error)) ++count;
  }
  return count;
}

}  // namespace terrace

#endif  // TERRACE_TESTS_SUPPORT_OPEN_COUNT_H_
