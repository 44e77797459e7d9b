#ifndef TERRACE_TESTS_SUPPORT_TEMP_DIR_H_
#define TERRACE_TESTS_SUPPORT_TEMP_DIR_H_

#include <string>

#include "absl/strings/string_view.h"

namespace terrace {

// A new directory that disappears with the object, and everything in it. Thread-compatible. Aborts
// when the directory cannot be made.
class TempDir {
 public:
  // Inside `parent`, or inside $TMPDIR, or inside /tmp.
  explicit TempDir(absl::string_view parent = "");
  ~TempDir();
  TempDir(const TempDir&) = delete;
  TempDir& operator=(const TempDir&) = delete;

  const std::string& path() const { return path_; }
  // The path of `name` inside the directory.
  std::string Join(absl::string_view name) const;

 private:
  std::string path_;
};

}  // namespace terrace

#endif  // TERRACE_TESTS_SUPPORT_TEMP_DIR_H_
