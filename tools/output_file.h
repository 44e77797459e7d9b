#ifndef TERRACE_TOOLS_OUTPUT_FILE_H_
#define TERRACE_TOOLS_OUTPUT_FILE_H_

#include <cstdio>
#include <string>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "nlohmann/json_fwd.hpp"

namespace terrace {

// The file behind a flag such as --json. It is opened before the run, so that a bad path is known
// before the work is done. A file that was there keeps its content until Write, and one that was
// not is removed again when Write is never called. Thread-compatible.
class OutputFile {
 public:
  // `flag` is for messages. An empty path is no file: Write then does nothing. A path to one of the
  // `used` files is an error.
  OutputFile(absl::string_view flag, const std::string& path,
             const std::vector<std::string>& used = {});
  ~OutputFile();
  OutputFile(const OutputFile&) = delete;
  OutputFile& operator=(const OutputFile&) = delete;

  // Of opening.
  const absl::Status& status() const { return status_; }

  // Makes `text` the whole content and closes the file. Errors name flag and path. Call once.
  absl::Status Write(absl::string_view text);
  // The same for content that `write` hands to the sink piece by piece. Its errors come as they
  // are.
  using Sink = absl::FunctionRef<absl::Status(absl::string_view)>;
  absl::Status WriteParts(absl::FunctionRef<absl::Status(Sink)> write);

 private:
  absl::Status Error(absl::string_view what) const;  // with the text of errno
  void Close();  // and removes the file again if it was not there

  const std::string flag_;
  const std::string path_;
  bool created_ = false;
  std::FILE* file_ = nullptr;
  absl::Status status_;
};

// kInvalidArgument when `path`, behind `flag`, leads to one of the `used` files: to a tier, or to
// what is read. By what the file is, not by its name; paths that are empty or lead to nothing are
// fine.
absl::Status CheckNotUsed(absl::string_view flag, const std::string& path,
                          const std::vector<std::string>& used);

// Indented, with an end-of-line.
std::string JsonText(const nlohmann::ordered_json& json);

// Writes to standard output, to the end.
absl::Status PrintText(const std::string& text);

}  // namespace terrace

#endif  // TERRACE_TOOLS_OUTPUT_FILE_H_
