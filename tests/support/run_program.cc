#include "tests/support/run_program.h"

#include <fcntl.h>
#include <poll.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <csignal>
#include <cstddef>

#include "absl/time/clock.h"
#include "io/check.h"

namespace terrace {
namespace {

// How often the condition for a signal is looked at when the program says nothing.
constexpr int kPollMs = 5;

// One stream of the program that is captured through a pipe.
class Capture {
 public:
  Capture() { TERRACE_CHECK(pipe2(ends_.data(), O_CLOEXEC) == 0); }
  ~Capture() {
    CloseWriteEnd();
    CloseReadEnd();
  }
  Capture(const Capture&) = delete;
  Capture& operator=(const Capture&) = delete;

  int write_end() const { return ends_[1]; }
  int read_end() const { return ends_[0]; }  // -1 once the stream has ended
  const std::string& text() const { return text_; }

  void CloseWriteEnd() { Close(ends_[1]); }
  void CloseReadEnd() { Close(ends_[0]); }

  // Takes what is there, blocking only if nothing is.
  void Read() {
    std::array<char, 65536> buffer;
    const ssize_t got = read(ends_[0], buffer.data(), buffer.size());
    if (got > 0) text_.append(buffer.data(), static_cast<size_t>(got));
    if (got == 0 || (got < 0 && errno != EINTR)) CloseReadEnd();
  }

 private:
  static void Close(int& fd) {
    if (fd >= 0) close(fd);
    fd = -1;
  }

  std::array<int, 2> ends_ = {-1, -1};
  std::string text_;
};

void SetLimit(int resource, rlim_t limit) {
  const struct rlimit limits = {limit, limit};
  if (setrlimit(static_cast<__rlimit_resource>(resource), &limits) != 0) _exit(126);
}

// In the child, between fork and exec: system calls alone, because another thread of the parent may
// have held any lock.
[[noreturn]] void Become(char* const* argv, const RunOptions& options, int out, int err) {
  const int in = open("/dev/null", O_RDONLY | O_CLOEXEC);
  if (!options.stdout_path.empty()) {
    out = open(options.stdout_path.c_str(), O_WRONLY | O_CREAT | O_CLOEXEC, 0600);
  }
  if (in < 0 || out < 0) _exit(126);
  if (dup2(in, 0) < 0 || dup2(out, 1) < 0 || dup2(err, 2) < 0) _exit(126);
  if (options.close_stdin) close(0);
  if (options.close_stdout) close(1);
  if (options.close_stderr) close(2);
  // A program that dies of a signal on purpose should not spend a minute on a core file.
  SetLimit(RLIMIT_CORE, 0);
  if (options.max_file_bytes != UINT64_MAX) SetLimit(RLIMIT_FSIZE, options.max_file_bytes);
  execv(argv[0], argv);
  _exit(127);
}

pid_t Start(const std::vector<std::string>& argv, const RunOptions& options, Capture& out,
            Capture& err) {
  std::vector<char*> arguments;
  for (const std::string& argument : argv) arguments.push_back(const_cast<char*>(argument.c_str()));
  arguments.push_back(nullptr);
  const pid_t pid = fork();
  TERRACE_CHECK(pid >= 0);
  if (pid == 0) Become(arguments.data(), options, out.write_end(), err.write_end());
  out.CloseWriteEnd();
  err.CloseWriteEnd();
  return pid;
}

// Sleeps until a stream has something, and takes it.
void ReadSome(Capture& out, Capture& err) {
  std::array<pollfd, 2> streams = {pollfd{.fd = out.read_end(), .events = POLLIN, .revents = 0},
                                   pollfd{.fd = err.read_end(), .events = POLLIN, .revents = 0}};
  if (poll(streams.data(), streams.size(), kPollMs) <= 0) return;
  if (streams[0].revents != 0) out.Read();
  if (streams[1].revents != 0) err.Read();
}

}  // namespace

RunResult RunProgram(const std::vector<std::string>& argv, const RunOptions& options) {
  Capture out;
  Capture err;
  const pid_t pid = Start(argv, options, out, err);
  const absl::Time deadline = absl::Now() + options.deadline;
  RunResult result;
  absl::Time first_signal = absl::InfiniteFuture();
  size_t signals_sent = 0;
  int status = 0;
  struct rusage usage = {};
  for (pid_t ended = 0; ended == 0;) {
    ReadSome(out, err);
    if (options.watch) options.watch();
    if (!result.timed_out && absl::Now() >= deadline) {
      result.timed_out = true;
      kill(pid, SIGKILL);
    }
    if (signals_sent < options.signals.size() &&
        (!options.signal_when || options.signal_when(err.text()))) {
      if (signals_sent == 0) first_signal = absl::Now();
      kill(pid, options.signals[signals_sent++]);
    }
    ended = wait4(pid, &status, WNOHANG, &usage);
    TERRACE_CHECK(ended >= 0);
  }
  if (signals_sent > 0) result.after_signal = absl::Now() - first_signal;
  // The pipes hold what was said last. Nobody else has their write ends.
  while (out.read_end() >= 0) out.Read();
  while (err.read_end() >= 0) err.Read();
  result.out = out.text();
  result.err = err.text();
  if (WIFEXITED(status)) result.exit_code = WEXITSTATUS(status);
  if (WIFSIGNALED(status)) result.signal = WTERMSIG(status);
  result.read_bytes = static_cast<uint64_t>(usage.ru_inblock) * 512;
  result.written_bytes = static_cast<uint64_t>(usage.ru_oublock) * 512;
  result.peak_memory_bytes = static_cast<uint64_t>(usage.ru_maxrss) * 1024;
  return result;
}

}  // namespace terrace
