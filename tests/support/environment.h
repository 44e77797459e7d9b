#ifndef TERRACE_TESTS_SUPPORT_ENVIRONMENT_H_
#define TERRACE_TESTS_SUPPORT_ENVIRONMENT_H_

#include <cstdint>
#include <cstdlib>

#include "absl/strings/numbers.h"
#include "io/check.h"

namespace terrace {

// The number in an environment variable, by which a run by hand is made longer than the suite's, or
// `otherwise` without one. Aborts when the variable holds something else.
inline uint64_t EnvironmentNumber(const char* name, uint64_t otherwise) {
  const char* const text = std::getenv(name);
  if (text == nullptr) return otherwise;
  uint64_t number = 0;
  TERRACE_CHECK(absl::SimpleAtoi(text, &number));
  return number;
}

}  // namespace terrace

#endif  // TERRACE_TESTS_SUPPORT_ENVIRONMENT_H_
