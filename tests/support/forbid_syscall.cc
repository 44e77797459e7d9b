#include "tests/support/forbid_syscall.h"

#include <linux/filter.h>
#include <linux/seccomp.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <cstddef>
#include <vector>

#include "io/check.h"

namespace terrace {

bool ForbidSyscall(long number, int error, std::optional<uint32_t> third_argument) {
  // The low half of an argument comes first on the little-endian machines that Terrace is for.
  constexpr uint32_t kThirdArgument = offsetof(seccomp_data, args) + 2 * sizeof(uint64_t);
  const auto load = [](uint32_t offset) {
    return sock_filter BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offset);
  };
  // Falls through on equality, else jumps over the comparisons that are left and the refusal.
  const auto require = [](uint32_t value, uint8_t skip) {
    return sock_filter BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, value, 0, skip);
  };
  const auto answer = [](uint32_t action) { return sock_filter BPF_STMT(BPF_RET | BPF_K, action); };

  std::vector<sock_filter> program;
  program.push_back(load(offsetof(seccomp_data, nr)));
  program.push_back(require(static_cast<uint32_t>(number), third_argument ? 3 : 1));
  if (third_argument) {
    program.push_back(load(kThirdArgument));
    program.push_back(require(*third_argument, 1));
  }
  program.push_back(answer(SECCOMP_RET_ERRNO | static_cast<uint32_t>(error)));
  program.push_back(answer(SECCOMP_RET_ALLOW));
  const sock_fprog filter = {static_cast<unsigned short>(program.size()), program.data()};
  return ::prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0 &&
         ::prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &filter) == 0;
}

bool CanForbidSyscalls() {
  const pid_t child = ::fork();
  TERRACE_CHECK(child >= 0);
  if (child == 0) ::_exit(ForbidSyscall(SYS_getcpu, EPERM) ? 0 : 1);
  int status = 0;
  TERRACE_CHECK_EQ(::waitpid(child, &status, 0), child);
  return WIFEXITED(status) && WEXITSTATUS(status) == 0;
}

}  // namespace terrace
