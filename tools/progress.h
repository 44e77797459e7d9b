#ifndef TERRACE_TOOLS_PROGRESS_H_
#define TERRACE_TOOLS_PROGRESS_H_

#include <cstddef>
#include <cstdint>
#include <cstdio>

#include "absl/strings/string_view.h"
#include "absl/time/time.h"

namespace terrace {

// One line on a terminal that is redrawn in place at most ten times a second and vanishes at the
// end. Silent where the output is no terminal, so that logs stay clean. Write nothing else to that
// terminal without calling Clear first. Thread-compatible.
class ProgressLine {
 public:
  enum class Mode : uint8_t { kAuto, kOn, kOff };  // kAuto draws when `out` is a terminal

  // Borrows `out`, stderr as a rule.
  explicit ProgressLine(std::FILE* out, Mode mode = Mode::kAuto);
  ~ProgressLine();  // clears
  ProgressLine(const ProgressLine&) = delete;
  ProgressLine& operator=(const ProgressLine&) = delete;

  // Whether an Update now would draw: ask before making an expensive text.
  bool Due(absl::Time now) const { return enabled_ && now >= next_draw_; }

  // Draws `text`, cut to the width of the terminal, if due. REQUIRES: one line of printable text.
  void Update(absl::Time now, absl::string_view text);

  // Erases the line, if one stands there. The next Update draws at once.
  void Clear();

 private:
  std::FILE* out_;
  bool enabled_;
  absl::Time next_draw_ = absl::InfinitePast();
  size_t drawn_columns_ = 0;
};

}  // namespace terrace

#endif  // TERRACE_TOOLS_PROGRESS_H_
