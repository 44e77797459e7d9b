#ifndef TERRACE_IO_CHECK_H_
#define TERRACE_IO_CHECK_H_

#include <cstdio>
#include <cstdlib>
#include <utility>

#include "absl/base/optimization.h"

// Aborts for bugs, in every build. What the world can do to us (a disk, a file, a flag, a kernel)
// is an absl::Status instead and never ends here.
//
//   TERRACE_CHECK(condition)   prints file, line and condition.
//   TERRACE_CHECK_EQ(a, b)     prints the two integers as well.
#define TERRACE_CHECK(condition)                                       \
  do {                                                                 \
    if (ABSL_PREDICT_FALSE(!(condition))) {                            \
      ::terrace::internal_check::Fail(__FILE__, __LINE__, #condition); \
    }                                                                  \
  } while (false)

#define TERRACE_CHECK_EQ(a, b) \
  ::terrace::internal_check::CheckEqual((a), (b), __FILE__, __LINE__, #a " == " #b)

namespace terrace::internal_check {

[[noreturn]] inline void Fail(const char* file, int line, const char* condition) {
  std::fprintf(stderr, "%s:%d: check failed: %s\n", file, line, condition);
  std::abort();
}

template <typename A, typename B>
void CheckEqual(A a, B b, const char* file, int line, const char* condition) {
  if (ABSL_PREDICT_TRUE(std::cmp_equal(a, b))) return;
  std::fprintf(stderr, "%s:%d: check failed: %s (%lld, %lld)\n", file, line, condition,
               static_cast<long long>(a), static_cast<long long>(b));
  std::abort();
}

}  // namespace terrace::internal_check

#endif  // TERRACE_IO_CHECK_H_
