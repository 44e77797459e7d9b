// Timeline: the Chrome trace, as "Trace Event Format" describes it.

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <functional>
#include <queue>
#include <unordered_map>
#include <utility>

#include "absl/strings/str_cat.h"
#include "io/timeline.h"
#include "nlohmann/json.hpp"

namespace terrace {
namespace {

// Pieces of the file that a sink receives.
constexpr size_t kPieceBytes = size_t{256} << 10;

// Viewers show processes as groups: one for the threads, one for everything else.
constexpr int kThreads = 1;
constexpr int kDevices = 2;

// With its quotes. Names need not be UTF-8, which JSON must be.
std::string Quoted(absl::string_view text) {
  return nlohmann::json(std::string(text))
      .dump(-1, ' ', /*ensure_ascii=*/true, nlohmann::json::error_handler_t::replace);
}

// Microseconds, to the nanosecond.
void AppendMicroseconds(int64_t ns, std::string& out) {
  if (ns < 0) out.push_back('-');
  const uint64_t magnitude = ns < 0 ? uint64_t{0} - static_cast<uint64_t>(ns) : ns;
  absl::StrAppend(&out, magnitude / 1000, ".", absl::Dec(magnitude % 1000, absl::kZeroPad3));
}

}  // namespace

// Writes one file. The events are sorted by track, and in each so that a span comes before those
// within it.
class TimelineWriter {
 public:
  TimelineWriter(const Timeline& timeline, Timeline::Sink sink) : timeline_(timeline), sink_(sink) {
    absl::MutexLock lock(&timeline.mu_);
    tracks_ = timeline.tracks_;
  }

  absl::Status Write(absl::string_view program) {
    const uint64_t dropped = timeline_.dropped();
    TakeEvents();
    absl::StrAppend(&piece_,
                    "{\"displayTimeUnit\":\"ms\",\"otherData\":{\"program\":", Quoted(program),
                    ",\"recorded_events\":", order_.size(), ",\"dropped_events\":", dropped,
                    "},\n\"traceEvents\":[\n");
    const std::string threads =
        dropped == 0 ? std::string(program)
                     : absl::StrCat(program, ": full, ", dropped, " events were dropped");
    NameProcess(kThreads, threads);
    piece_.append(",\n");
    NameProcess(kDevices, "devices and transfers");
    for (size_t begin = 0; begin < order_.size();) {
      const size_t end = EndOfTrack(begin);
      absl::Status status = WriteTrack(begin, end);
      if (!status.ok()) return status;
      begin = end;
    }
    piece_.append("\n]}\n");
    return sink_(piece_);
  }

 private:
  using Event = Timeline::Event;
  using Kind = Timeline::Kind;

  const Event& EventAt(size_t place) const { return timeline_.events_[order_[place]]; }

  // Lists those that are complete.
  void TakeEvents() {
    const size_t count = timeline_.recorded();
    order_.reserve(count);
    for (size_t i = 0; i < count; ++i) {
      if (timeline_.events_[i].name.load(std::memory_order_acquire) != nullptr) {
        order_.push_back(static_cast<uint32_t>(i));
      }
    }
    std::sort(order_.begin(), order_.end(), [this](uint32_t a, uint32_t b) {
      const Event& x = timeline_.events_[a];
      const Event& y = timeline_.events_[b];
      if (x.kind != y.kind) return x.kind < y.kind;
      if (x.track != y.track) return x.track < y.track;
      if (x.begin != y.begin) return x.begin < y.begin;
      if (x.kind == Kind::kCounter) return a < b;
      // Of spans that begin at once the outer one ends last, and was recorded last.
      if (x.end != y.end) return x.end > y.end;
      return a > b;
    });
  }

  size_t EndOfTrack(size_t begin) const {
    size_t end = begin + 1;
    while (end < order_.size() && EventAt(end).kind == EventAt(begin).kind &&
           EventAt(end).track == EventAt(begin).track) {
      ++end;
    }
    return end;
  }

  absl::Status WriteTrack(size_t begin, size_t end) {
    switch (EventAt(begin).kind) {
      case Kind::kThread:
        return WriteThread(begin, end);
      case Kind::kTrack:
        return WriteLanes(begin, end);
      case Kind::kCounter:
        return WriteCounters(begin, end);
    }
    return absl::OkStatus();
  }

  absl::Status WriteThread(size_t begin, size_t end) {
    const int row = NextRow(kThreads, NameOf(begin));
    for (size_t place = begin; place < end; ++place) {
      if (absl::Status status = WriteSpan(kThreads, row, EventAt(place)); !status.ok()) {
        return status;
      }
    }
    return absl::OkStatus();
  }

  // Spans of a row must nest, which transfers that overlap do not: each goes to the first row that
  // is free when it begins.
  absl::Status WriteLanes(size_t begin, size_t end) {
    const std::string name = NameOf(begin);
    std::vector<int> rows;
    using Busy = std::pair<int64_t, size_t>;  // until when, and which lane
    std::priority_queue<Busy, std::vector<Busy>, std::greater<>> busy;
    std::priority_queue<size_t, std::vector<size_t>, std::greater<>> idle;
    for (size_t place = begin; place < end; ++place) {
      const Event& event = EventAt(place);
      while (!busy.empty() && busy.top().first <= event.begin) {
        idle.push(busy.top().second);
        busy.pop();
      }
      if (idle.empty()) {
        idle.push(rows.size());
        rows.push_back(
            NextRow(kDevices, rows.empty() ? name : absl::StrCat(name, " ", rows.size() + 1)));
      }
      const size_t lane = idle.top();
      idle.pop();
      busy.push({std::max(event.begin, event.end), lane});
      if (absl::Status status = WriteSpan(kDevices, rows[lane], event); !status.ok()) return status;
    }
    return absl::OkStatus();
  }

  absl::Status WriteCounters(size_t begin, size_t end) {
    for (size_t place = begin; place < end; ++place) {
      const Event& event = EventAt(place);
      absl::StrAppend(&piece_, ",\n{\"ph\":\"C\",\"pid\":", kDevices,
                      ",\"tid\":0,\"name\":", NameText(event.name), ",\"ts\":");
      AppendMicroseconds(event.begin - timeline_.start_, piece_);
      absl::StrAppend(&piece_, ",\"args\":{\"value\":", event.end, "}}");
      if (absl::Status status = HandOver(); !status.ok()) return status;
    }
    return absl::OkStatus();
  }

  absl::Status WriteSpan(int process, int row, const Event& event) {
    absl::StrAppend(&piece_, ",\n{\"ph\":\"X\",\"pid\":", process, ",\"tid\":", row,
                    ",\"name\":", NameText(event.name), ",\"ts\":");
    AppendMicroseconds(event.begin - timeline_.start_, piece_);
    piece_.append(",\"dur\":");
    AppendMicroseconds(std::max<int64_t>(event.end - event.begin, 0), piece_);
    if (event.first.name != nullptr || event.second.name != nullptr) {
      const char* separator = ",\"args\":{";
      for (const TimelineArg& arg : {event.first, event.second}) {
        if (arg.name == nullptr) continue;
        absl::StrAppend(&piece_, separator, NameText(arg.name), ":", arg.value);
        separator = ",";
      }
      piece_.push_back('}');
    }
    piece_.push_back('}');
    return HandOver();
  }

  void NameProcess(int process, absl::string_view name) {
    absl::StrAppend(&piece_, "{\"ph\":\"M\",\"pid\":", process,
                    ",\"tid\":0,\"name\":\"process_name\",\"args\":{\"name\":", Quoted(name), "}}");
  }

  // Rows are shown in the order of their numbers.
  int NextRow(int process, absl::string_view name) {
    const int row = ++rows_;
    for (const auto& [what, value] :
         {std::pair("name", Quoted(name)), std::pair("sort_index", absl::StrCat(row))}) {
      absl::StrAppend(&piece_, ",\n{\"ph\":\"M\",\"pid\":", process, ",\"tid\":", row,
                      ",\"name\":\"thread_", what, "\",\"args\":{\"", what, "\":", value, "}}");
    }
    return row;
  }

  std::string NameOf(size_t place) const {
    const uint32_t track = EventAt(place).track;
    // A thread that began to record since has no name here yet.
    return track < tracks_.size() ? tracks_[track].name : "?";
  }

  // Literals are quoted once.
  const std::string& NameText(const char* name) {
    std::string& text = names_[name];
    if (text.empty()) text = Quoted(name);
    return text;
  }

  absl::Status HandOver() {
    if (piece_.size() < kPieceBytes) return absl::OkStatus();
    absl::Status status = sink_(piece_);
    piece_.clear();
    return status;
  }

  const Timeline& timeline_;
  const Timeline::Sink sink_;
  std::vector<Timeline::NamedTrack> tracks_;
  std::vector<uint32_t> order_;  // of events
  std::unordered_map<const char*, std::string> names_;
  int rows_ = 0;
  std::string piece_;
};

absl::Status Timeline::Write(absl::string_view program, Sink sink) const {
  return TimelineWriter(*this, sink).Write(program);
}

absl::Status Timeline::WriteFile(absl::string_view program, const std::string& path) const {
  std::FILE* const file = std::fopen(path.c_str(), "we");
  if (file == nullptr) {
    return absl::ErrnoToStatus(errno, absl::StrCat("timeline ", path, ": cannot open"));
  }
  const auto error = [&] {
    return absl::ErrnoToStatus(errno, absl::StrCat("timeline ", path, ": cannot write"));
  };
  absl::Status status = Write(program, [&](absl::string_view piece) {
    const bool written = std::fwrite(piece.data(), 1, piece.size(), file) == piece.size();
    return written ? absl::OkStatus() : error();
  });
  if (std::fclose(file) != 0 && status.ok()) status = error();
  return status;
}

}  // namespace terrace
