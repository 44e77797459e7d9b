#include "io/timeline.h"

#include <algorithm>
#include <new>

#include "absl/strings/str_cat.h"

namespace terrace {
namespace {

// The system gives the id of a thread that ended to another one; this number it does not.
uint64_t ThreadNumber() {
  static std::atomic<uint64_t> next = 0;
  thread_local const uint64_t number = next.fetch_add(1, std::memory_order_relaxed);
  return number;
}

uint64_t NextTimelineId() {
  static std::atomic<uint64_t> next = 1;
  return next.fetch_add(1, std::memory_order_relaxed);
}

// The track that a thread recorded to last, so that it need not be looked up for every event.
struct LastTrack {
  uint64_t timeline = 0;  // 0: none
  uint32_t track = 0;
};
thread_local LastTrack last_track;

}  // namespace

Timeline::Timeline(size_t max_events)
    : max_events_(max_events),
      id_(NextTimelineId()),
      start_(Now()),
      events_(new (std::nothrow) Event[max_events]) {}

absl::StatusOr<std::shared_ptr<Timeline>> Timeline::Create(size_t max_events) {
  if (max_events == 0 || max_events > UINT32_MAX) {
    return absl::InvalidArgumentError(
        absl::StrCat("timeline: ", max_events, " events are not from 1 to ", UINT32_MAX));
  }
  auto timeline = std::shared_ptr<Timeline>(new Timeline(max_events));
  if (timeline->events_ == nullptr) {
    return absl::ResourceExhaustedError(absl::StrCat("timeline: no memory for ", max_events,
                                                     " events of ", sizeof(Event), " bytes"));
  }
  return timeline;
}

uint32_t Timeline::FindThread(uint64_t thread) {
  absl::MutexLock lock(&mu_);
  for (size_t i = 0; i < tracks_.size(); ++i) {
    if (tracks_[i].kind == Kind::kThread && tracks_[i].thread == thread) {
      return static_cast<uint32_t>(i);
    }
  }
  const auto threads = std::count_if(tracks_.begin(), tracks_.end(), [](const NamedTrack& track) {
    return track.kind == Kind::kThread;
  });
  tracks_.push_back(
      {.name = absl::StrCat("thread ", threads + 1), .kind = Kind::kThread, .thread = thread});
  return static_cast<uint32_t>(tracks_.size() - 1);
}

uint32_t Timeline::ThreadTrack() {
  if (last_track.timeline != id_) {
    last_track = {.timeline = id_, .track = FindThread(ThreadNumber())};
  }
  return last_track.track;
}

void Timeline::NameThread(absl::string_view name) {
  const uint32_t track = ThreadTrack();
  absl::MutexLock lock(&mu_);
  tracks_[track].name = std::string(name);
}

TimelineTrack Timeline::Track(absl::string_view name) {
  absl::MutexLock lock(&mu_);
  for (size_t i = 0; i < tracks_.size(); ++i) {
    if (tracks_[i].kind == Kind::kTrack && tracks_[i].name == name) return TimelineTrack(i);
  }
  tracks_.push_back({.name = std::string(name), .kind = Kind::kTrack, .thread = 0});
  return TimelineTrack(tracks_.size() - 1);
}

void Timeline::Add(Kind kind, uint32_t track, const char* name, int64_t begin, int64_t end,
                   TimelineArg first, TimelineArg second) {
  const uint64_t index = next_.fetch_add(1, std::memory_order_relaxed);
  if (index >= max_events_) return;
  Event& event = events_[index];
  event.begin = begin;
  event.end = end;
  event.first = first;
  event.second = second;
  event.track = track;
  event.kind = kind;
  event.name.store(name, std::memory_order_release);
}

void Timeline::Record(const char* name, int64_t begin, int64_t end, TimelineArg first,
                      TimelineArg second) {
  Add(Kind::kThread, ThreadTrack(), name, begin, end, first, second);
}

void Timeline::Record(TimelineTrack track, const char* name, int64_t begin, int64_t end,
                      TimelineArg first, TimelineArg second) {
  Add(Kind::kTrack, static_cast<uint32_t>(track), name, begin, end, first, second);
}

void Timeline::Count(const char* name, int64_t value) {
  Add(Kind::kCounter, 0, name, Now(), value, {}, {});
}

size_t Timeline::recorded() const {
  return std::min<uint64_t>(next_.load(std::memory_order_relaxed), max_events_);
}

uint64_t Timeline::dropped() const {
  const uint64_t next = next_.load(std::memory_order_relaxed);
  return next - std::min<uint64_t>(next, max_events_);
}

}  // namespace terrace
