#include "bench/peers/runner.h"

#include <fcntl.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <csignal>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <system_error>
#include <type_traits>
#include <utility>

#include "absl/strings/str_cat.h"
#include "bench/memory_limit.h"
#include "bench/peers/phases.h"
#include "io/unique_fd.h"

namespace terrace::peers {
namespace {

static_assert(std::is_trivially_copyable_v<PhaseResult>);

// First byte of what a store's process sends; results or the text of an error follow.
constexpr char kResults = 'R';
constexpr char kError = 'E';

absl::StatusOr<std::string> RunPhases(const StoreKind& kind, const Workload& workload,
                                      absl::Span<const Phase> phases, const std::string& dir,
                                      const RunOptions& options) {
  StoreOptions store_options;
  store_options.dir = dir;
  store_options.block_bytes = workload.block_bytes();
  store_options.max_blocks = workload.block_count();
  store_options.max_batch = workload.max_batch();
  store_options.memory_bytes = options.memory_bytes;
  auto store = kind.open(store_options);
  if (!store.ok()) return store.status();
  std::string message(1, kResults);
  for (const Phase& phase : phases) {
    absl::StatusOr<PhaseResult> result = RunPhase(**store, workload, phase);
    if (!result.ok()) {
      return absl::Status(result.status().code(),
                          absl::StrCat(phase.Name(), ": ", result.status().message()));
    }
    message.append(reinterpret_cast<const char*>(&*result), sizeof(*result));
  }
  return message;
}

void SendAll(int fd, absl::string_view message) {
  while (!message.empty()) {
    const ssize_t sent = ::write(fd, message.data(), message.size());
    if (sent <= 0) return;  // the parent sees that it is incomplete
    message.remove_prefix(static_cast<size_t>(sent));
  }
}

std::string ReceiveAll(int fd) {
  std::string message;
  char buffer[4096];
  for (;;) {
    const ssize_t received = ::read(fd, buffer, sizeof(buffer));
    if (received < 0 && errno == EINTR) continue;
    if (received <= 0) return message;
    message.append(buffer, static_cast<size_t>(received));
  }
}

// The process of the store. Its exit says nothing; its message does.
[[noreturn]] void ChildMain(const StoreKind& kind, const Workload& workload,
                            absl::Span<const Phase> phases, const std::string& dir,
                            const RunOptions& options, const MemoryLimit* limit, int fd) {
  ::prctl(PR_SET_PDEATHSIG, SIGKILL);  // nobody would read what it measures
  absl::StatusOr<std::string> message = absl::UnavailableError("cannot join the cgroup");
  if (limit == nullptr || limit->Join()) message = RunPhases(kind, workload, phases, dir, options);
  SendAll(fd, message.ok() ? *message
                           : absl::StrCat(std::string(1, kError), message.status().message()));
  ::_exit(0);
}

absl::StatusOr<StoreResult> Parse(const std::string& message, int wait_status, size_t phases) {
  if (WIFSIGNALED(wait_status)) {
    return absl::ResourceExhaustedError(
        absl::StrCat("its process was ended by signal ", WTERMSIG(wait_status),
                     WTERMSIG(wait_status) == SIGKILL ? " (more memory than the budget?)" : ""));
  }
  if (!message.empty() && message[0] == kError) return absl::UnavailableError(message.substr(1));
  if (message.size() != 1 + phases * sizeof(PhaseResult)) {
    return absl::InternalError("its process ended without results");
  }
  StoreResult result;
  result.phases.resize(phases);
  std::memcpy(result.phases.data(), message.data() + 1, phases * sizeof(PhaseResult));
  return result;
}

absl::StatusOr<StoreResult> RunIn(const std::string& dir, const StoreKind& kind,
                                  const Workload& workload, absl::Span<const Phase> phases,
                                  const RunOptions& options) {
  const std::unique_ptr<MemoryLimit> limit =
      options.limit_memory ? MemoryLimit::Create(options.memory_bytes) : nullptr;
  int ends[2];
  if (::pipe2(ends, O_CLOEXEC) != 0) return absl::ErrnoToStatus(errno, "pipe");
  const UniqueFd read_end(ends[0]);
  UniqueFd write_end(ends[1]);
  const pid_t child = ::fork();
  if (child < 0) return absl::ErrnoToStatus(errno, "fork");
  if (child == 0) {
    ChildMain(kind, workload, phases, dir, options, limit.get(), write_end.get());
  }
  write_end = UniqueFd();
  const std::string message = ReceiveAll(read_end.get());
  int wait_status = 0;
  rusage usage = {};
  while (::wait4(child, &wait_status, 0, &usage) < 0) {
    if (errno != EINTR) return absl::ErrnoToStatus(errno, "wait");
  }
  absl::StatusOr<StoreResult> result = Parse(message, wait_status, phases.size());
  if (!result.ok()) return result;
  result->limited = limit != nullptr;
  result->peak_bytes = static_cast<uint64_t>(usage.ru_maxrss) << 10;
  if (limit != nullptr) result->peak_bytes = limit->PeakBytes().value_or(result->peak_bytes);
  return result;
}

}  // namespace

std::string Phase::Name() const {
  switch (kind) {
    case Kind::kMix:
      return "mix";
    case Kind::kTraceGets:
      return absl::StrCat("get, as traced, ", threads, " thr");
    case Kind::kUniformGets:
      return absl::StrCat("get, uniform, ", threads, " thr");
  }
  return "";
}

absl::StatusOr<StoreResult> RunStore(const StoreKind& kind, const Workload& workload,
                                     absl::Span<const Phase> phases, const RunOptions& options) {
  std::string dir = absl::StrCat(options.dir, "/terrace-peers-XXXXXX");
  if (::mkdtemp(dir.data()) == nullptr) return absl::ErrnoToStatus(errno, dir);
  auto result = RunIn(dir, kind, workload, phases, options);
  std::error_code ignored;
  std::filesystem::remove_all(dir, ignored);
  return result;
}

}  // namespace terrace::peers
