#ifndef TERRACE_IO_TIMELINE_H_
#define TERRACE_IO_TIMELINE_H_

#include <atomic>
#include <chrono>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/synchronization/mutex.h"

namespace terrace {

// A number that a span carries, such as {"layer", 3} or {"bytes", 65536}.
struct TimelineArg {
  constexpr TimelineArg() = default;
  template <std::integral T>
  constexpr TimelineArg(const char* name, T value)
      : name(name), value(static_cast<int64_t>(value)) {}

  const char* name = nullptr;  // a literal; null: the span carries one number less
  int64_t value = 0;
};

// What happens beside the threads, such as the reads of a disk or the copies over a bus. Of one
// Timeline.
enum class TimelineTrack : uint32_t {};

// What happened when: spans of threads, spans of devices, and counters, kept in memory and written
// as a Chrome trace, the JSON that Perfetto and chrome://tracing open.
//
// Memory is taken at Create, 64 bytes an event. What comes when it is full is counted and left out;
// the file says how much. Names of events and arguments are literals, or live as long as the
// Timeline.
//
// Thread-safe, and lock-free but for names of threads and tracks.
class Timeline {
 public:
  static constexpr size_t kDefaultEvents = size_t{1} << 20;
  // Receives the file piece by piece.
  using Sink = absl::FunctionRef<absl::Status(absl::string_view)>;

  // kInvalidArgument for 0 events or more than 2^32 - 1, kResourceExhausted for memory.
  static absl::StatusOr<std::shared_ptr<Timeline>> Create(size_t max_events = kDefaultEvents);
  Timeline(const Timeline&) = delete;
  Timeline& operator=(const Timeline&) = delete;

  // Nanoseconds of the clock that events are recorded in, std::chrono::steady_clock.
  static int64_t Now() {
    return std::chrono::duration_cast<std::chrono::nanoseconds>(
               std::chrono::steady_clock::now().time_since_epoch())
        .count();
  }

  // The calling thread's name in the file; "thread N" for threads without.
  void NameThread(absl::string_view name) ABSL_LOCKS_EXCLUDED(mu_);
  // The track of this name, which is made where there is none yet. Its spans may overlap: the file
  // shows as many rows as there were spans at once.
  TimelineTrack Track(absl::string_view name) ABSL_LOCKS_EXCLUDED(mu_);

  // A span of the calling thread, from `begin` to `end` in nanoseconds of Now(). Those of a thread
  // nest: one that begins within another ends within it. TimelineSpan sees to that.
  void Record(const char* name, int64_t begin, int64_t end, TimelineArg first = {},
              TimelineArg second = {});
  // A span of a track.
  void Record(TimelineTrack track, const char* name, int64_t begin, int64_t end,
              TimelineArg first = {}, TimelineArg second = {});
  // A quantity that has this value from now on.
  void Count(const char* name, int64_t value);

  size_t recorded() const;   // events kept
  uint64_t dropped() const;  // events that found no room

  // Writes all events that were recorded before the call. `program`, such as "terrace 0.1.0", names
  // who did it. Errors are those of `sink`.
  absl::Status Write(absl::string_view program, Sink sink) const ABSL_LOCKS_EXCLUDED(mu_);
  // The same to a file, which is replaced. Errors name the path.
  absl::Status WriteFile(absl::string_view program, const std::string& path) const;

 private:
  friend class TimelineWriter;

  enum class Kind : uint8_t { kThread, kTrack, kCounter };
  // Written once, by the thread that took its place; `name` last, which tells readers that the rest
  // is there.
  struct alignas(64) Event {
    std::atomic<const char*> name = nullptr;
    int64_t begin = 0;
    int64_t end = 0;  // of a counter: its value
    TimelineArg first;
    TimelineArg second;
    uint32_t track = 0;  // of tracks_; no meaning for a counter
    Kind kind = Kind::kThread;
  };
  struct NamedTrack {
    std::string name;
    Kind kind = Kind::kThread;
    uint64_t thread = 0;  // of kThread: the number of the thread
  };

  explicit Timeline(size_t max_events);
  void Add(Kind kind, uint32_t track, const char* name, int64_t begin, int64_t end,
           TimelineArg first, TimelineArg second);
  // The calling thread's track.
  uint32_t ThreadTrack();
  uint32_t FindThread(uint64_t thread) ABSL_LOCKS_EXCLUDED(mu_);

  // Constant after construction.
  const size_t max_events_;
  const uint64_t id_;  // no other Timeline of the process has or had it
  const int64_t start_;
  std::unique_ptr<Event[]> events_;  // [max_events]

  std::atomic<uint64_t> next_ = 0;  // event; those beyond max_events_ were dropped
  mutable absl::Mutex mu_;
  std::vector<NamedTrack> tracks_ ABSL_GUARDED_BY(mu_);
};

// A span of the calling thread from its construction to its end. With a null timeline it costs a
// branch, so there is no need to ask before. Borrows the timeline.
class [[nodiscard]] TimelineSpan {
 public:
  TimelineSpan(Timeline* timeline, const char* name, TimelineArg first = {},
               TimelineArg second = {})
      : timeline_(timeline), name_(name), first_(first), second_(second) {
    if (timeline_ != nullptr) begin_ = Timeline::Now();
  }
  ~TimelineSpan() { End(); }
  TimelineSpan(const TimelineSpan&) = delete;
  TimelineSpan& operator=(const TimelineSpan&) = delete;

  // Ends it before its scope does. Spans that were begun later must have ended.
  void End() {
    if (timeline_ == nullptr) return;
    timeline_->Record(name_, begin_, Timeline::Now(), first_, second_);
    timeline_ = nullptr;
  }

 private:
  Timeline* timeline_;
  const char* const name_;
  const TimelineArg first_;
  const TimelineArg second_;
  int64_t begin_ = 0;
};

}  // namespace terrace

#endif  // TERRACE_IO_TIMELINE_H_
