#ifndef TERRACE_TOOLS_TIMELINE_FILE_H_
#define TERRACE_TOOLS_TIMELINE_FILE_H_

#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "io/timeline.h"
#include "tools/output_file.h"

namespace CLI {
class App;
}  // namespace CLI

namespace terrace {

// Adds --timeline. `path` outlives parsing.
void AddTimelineFlag(CLI::App& command, std::string& path);

// The file behind --timeline, and the timeline that goes there. As OutputFile, it is opened before
// the run and keeps its content until Write. Thread-compatible.
class TimelineFile {
 public:
  // An empty path: no timeline. A path to one of the `used` files is an error. Names the calling
  // thread "main".
  TimelineFile(const std::string& path, const std::vector<std::string>& used);

  // Of opening the file, and of the memory for events.
  const absl::Status& status() const { return status_; }
  // Null without a path.
  const std::shared_ptr<Timeline>& timeline() const { return timeline_; }

  // Writes what was recorded. Errors name the flag and the path. Call once.
  absl::Status Write();

 private:
  OutputFile file_;
  absl::Status status_;
  std::shared_ptr<Timeline> timeline_;
};

}  // namespace terrace

#endif  // TERRACE_TOOLS_TIMELINE_FILE_H_
