#ifndef TERRACE_IO_IO_TIMELINE_H_
#define TERRACE_IO_IO_TIMELINE_H_

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "io/io_request.h"
#include "io/timeline.h"

namespace terrace {

// Puts the requests inside a device on a timeline, on a track for each class. Without a timeline it
// costs a branch a batch. Thread-safe: whoever has a request tells of it.
class IoTimeline {
 public:
  static constexpr size_t kClasses = 3;

  // `device` begins the names of the tracks. `timeline` may be null.
  IoTimeline(std::shared_ptr<Timeline> timeline, absl::string_view device)
      : timeline_(std::move(timeline)) {
    if (timeline_ == nullptr) return;
    constexpr const char* kNames[kClasses] = {" demand", " prefetch", " offload"};
    for (size_t i = 0; i < kClasses; ++i) {
      tracks_[i] = timeline_->Track(absl::StrCat(device, kNames[i]));
    }
  }

  // Before they go to the device.
  void Submit(absl::Span<IoRequest* const> batch) const {
    if (timeline_ == nullptr || batch.empty()) return;
    const int64_t now = Timeline::Now();
    for (IoRequest* const request : batch) request->submitted_ns = now;
  }

  // When they are back. class_of(request) is the number of its class, 0 for demand.
  template <typename ClassOf>
  void Done(absl::Span<IoRequest* const> done, ClassOf class_of) const {
    if (timeline_ == nullptr || done.empty()) return;
    const int64_t now = Timeline::Now();
    for (const IoRequest* const request : done) {
      timeline_->Record(tracks_[class_of(*request)], IoOpName(request->op), request->submitted_ns,
                        now, {"bytes", request->transferred}, {"offset", request->offset});
    }
  }

 private:
  const std::shared_ptr<Timeline> timeline_;
  std::array<TimelineTrack, kClasses> tracks_ = {};
};

}  // namespace terrace

#endif  // TERRACE_IO_IO_TIMELINE_H_
