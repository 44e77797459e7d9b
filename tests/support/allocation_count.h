#ifndef TERRACE_TESTS_SUPPORT_ALLOCATION_COUNT_H_
#define TERRACE_TESTS_SUPPORT_ALLOCATION_COUNT_H_

#include <cstddef>

namespace terrace {

// How often any thread of this program called operator new so far. A program that calls this has an
// operator new which counts.
size_t AllocationCount();

}  // namespace terrace

#endif  // TERRACE_TESTS_SUPPORT_ALLOCATION_COUNT_H_
