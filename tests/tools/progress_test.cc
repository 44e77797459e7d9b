#include "tools/progress.h"

#include <fcntl.h>
#include <stdlib.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <cstdio>
#include <string>

#include "gtest/gtest.h"

namespace terrace {
namespace {

// A stream into memory, which is no terminal.
class MemoryStream {
 public:
  MemoryStream() : file_(::open_memstream(&data_, &size_)) {}
  ~MemoryStream() {
    std::fclose(file_);
    std::free(data_);
  }
  std::FILE* file() { return file_; }
  std::string Text() {
    std::fflush(file_);
    return std::string(data_, size_);
  }

 private:
  char* data_ = nullptr;
  size_t size_ = 0;
  std::FILE* file_;
};

const absl::Time kStart = absl::FromUnixSeconds(1'000'000);

TEST(ProgressLineTest, RedrawsAtMostTenTimesASecond) {
  MemoryStream out;
  {
    ProgressLine line(out.file(), ProgressLine::Mode::kOn);
    for (int ms = 0; ms < 1000; ++ms) line.Update(kStart + absl::Milliseconds(ms), "x");
  }
  EXPECT_EQ(out.Text(), "\rx\rx\rx\rx\rx\rx\rx\rx\rx\rx\r \r");
}

TEST(ProgressLineTest, ErasesWhatALongerLineLeft) {
  MemoryStream out;
  ProgressLine line(out.file(), ProgressLine::Mode::kOn);
  line.Update(kStart, "12 of 20");
  line.Update(kStart + absl::Seconds(1), "done");
  EXPECT_EQ(out.Text(), "\r12 of 20\rdone    ");
  line.Clear();
  EXPECT_EQ(out.Text(), "\r12 of 20\rdone    \r    \r");
  line.Clear();
  EXPECT_EQ(out.Text(), "\r12 of 20\rdone    \r    \r");
}

TEST(ProgressLineTest, DrawsAtOnceAfterClear) {
  MemoryStream out;
  ProgressLine line(out.file(), ProgressLine::Mode::kOn);
  line.Update(kStart, "a");
  EXPECT_FALSE(line.Due(kStart + absl::Milliseconds(99)));
  line.Clear();
  EXPECT_TRUE(line.Due(kStart + absl::Milliseconds(1)));
}

TEST(ProgressLineTest, IsSilentWithoutATerminal) {
  MemoryStream memory;
  std::FILE* const file = std::tmpfile();
  ASSERT_NE(file, nullptr);
  for (std::FILE* out : {memory.file(), file}) {
    ProgressLine line(out);
    EXPECT_FALSE(line.Due(kStart));
    line.Update(kStart, "hidden");
    line.Clear();
    EXPECT_EQ(std::ftell(out), 0);
  }
  std::fclose(file);
}

TEST(ProgressLineTest, CutsTheLineToTheTerminal) {
  const int main_fd = ::posix_openpt(O_RDWR | O_NOCTTY);
  if (main_fd < 0 || ::grantpt(main_fd) != 0 || ::unlockpt(main_fd) != 0) {
    GTEST_SKIP() << "no pseudo terminal";
  }
  std::FILE* const terminal = std::fopen(::ptsname(main_fd), "r+");
  ASSERT_NE(terminal, nullptr);
  winsize size = {};
  size.ws_col = 10;
  size.ws_row = 5;
  ASSERT_EQ(::ioctl(main_fd, TIOCSWINSZ, &size), 0);
  ProgressLine line(terminal);
  // The last of the ten columns stays free, and no character is cut in two.
  line.Update(kStart, "1234567\xc2\xb5\xc2\xb5\xc2\xb5");
  char text[64] = {};
  const ssize_t got = ::read(main_fd, text, sizeof(text));
  EXPECT_EQ(std::string(text, got > 0 ? got : 0), "\r1234567\xc2\xb5\xc2\xb5");
  line.Clear();
  std::fclose(terminal);
  ::close(main_fd);
}

}  // namespace
}  // namespace terrace
