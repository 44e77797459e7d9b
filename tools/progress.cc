#include "tools/progress.h"

#include <sys/ioctl.h>
#include <unistd.h>

#include <string>

#include "absl/strings/str_cat.h"

namespace terrace {
namespace {

constexpr absl::Duration kRedrawInterval = absl::Milliseconds(100);
constexpr size_t kDefaultColumns = 80;

bool IsTerminal(std::FILE* out) {
  const int fd = ::fileno(out);
  return fd >= 0 && ::isatty(fd) == 1;
}

// Asked anew for each drawing, because people resize windows.
size_t TerminalColumns(std::FILE* out) {
  winsize size = {};
  const int fd = ::fileno(out);
  if (fd < 0 || ::ioctl(fd, TIOCGWINSZ, &size) != 0 || size.ws_col == 0) return kDefaultColumns;
  return size.ws_col;
}

// The longest start of UTF-8 `text` with at most `columns` characters, and how many it has.
absl::string_view CutToColumns(absl::string_view text, size_t columns, size_t& used) {
  used = 0;
  for (size_t i = 0; i < text.size(); ++i) {
    if ((static_cast<unsigned char>(text[i]) & 0xc0) == 0x80) continue;  // continuation byte
    if (used == columns) return text.substr(0, i);
    ++used;
  }
  return text;
}

}  // namespace

ProgressLine::ProgressLine(std::FILE* out, Mode mode)
    : out_(out), enabled_(mode == Mode::kOn || (mode == Mode::kAuto && IsTerminal(out))) {}

ProgressLine::~ProgressLine() { Clear(); }

void ProgressLine::Update(absl::Time now, absl::string_view text) {
  if (!Due(now)) return;
  next_draw_ = now + kRedrawInterval;
  size_t columns = 0;
  // The last column stays free: writing there wraps on some terminals.
  std::string line = absl::StrCat("\r", CutToColumns(text, TerminalColumns(out_) - 1, columns));
  // Blanks over what a longer line left, which works on terminals without escape sequences.
  if (drawn_columns_ > columns) line.append(drawn_columns_ - columns, ' ');
  drawn_columns_ = columns;
  std::fwrite(line.data(), 1, line.size(), out_);
  std::fflush(out_);
}

void ProgressLine::Clear() {
  if (drawn_columns_ == 0) return;
  const std::string line = absl::StrCat("\r", std::string(drawn_columns_, ' '), "\r");
  drawn_columns_ = 0;
  next_draw_ = absl::InfinitePast();
  std::fwrite(line.data(), 1, line.size(), out_);
  std::fflush(out_);
}

}  // namespace terrace
