#ifndef TERRACE_TESTS_SUPPORT_FORBID_SYSCALL_H_
#define TERRACE_TESTS_SUPPORT_FORBID_SYSCALL_H_

#include <cstdint>
#include <optional>

namespace terrace {

// Makes a system call fail with `error` in the calling thread and in those it starts, for good; so
// call it in a forked child, such as the body of a death test. With `third_argument`, only calls
// whose third argument has that low half fail. Returns false when the kernel does not allow
// filters.
bool ForbidSyscall(long number, int error, std::optional<uint32_t> third_argument = std::nullopt);

// Whether ForbidSyscall works here; tried in a child of its own.
bool CanForbidSyscalls();

}  // namespace terrace

#endif  // TERRACE_TESTS_SUPPORT_FORBID_SYSCALL_H_
