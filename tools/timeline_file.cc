#include "tools/timeline_file.h"

#include <utility>

#include "CLI/CLI.hpp"

namespace terrace {

void AddTimelineFlag(CLI::App& command, std::string& path) {
  command
      .add_option("--timeline", path,
                  "Write what happened when, by thread and device, as a Chrome trace, which "
                  "ui.perfetto.dev and chrome://tracing open")
      ->type_name("FILE");
}

TimelineFile::TimelineFile(const std::string& path, const std::vector<std::string>& used)
    : file_("--timeline", path, used), status_(file_.status()) {
  if (path.empty() || !status_.ok()) return;
  absl::StatusOr<std::shared_ptr<Timeline>> timeline = Timeline::Create();
  status_ = timeline.status();
  if (!status_.ok()) return;
  timeline_ = *std::move(timeline);
  timeline_->NameThread("main");
}

absl::Status TimelineFile::Write() {
  if (timeline_ == nullptr) return absl::OkStatus();
  return file_.WriteParts(
      [this](OutputFile::Sink sink) { return timeline_->Write("terrace " TERRACE_VERSION, sink); });
}

}  // namespace terrace
