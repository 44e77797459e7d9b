#ifndef TERRACE_IO_COPY_RANGES_H_
#define TERRACE_IO_COPY_RANGES_H_

#include <cstdint>
#include <vector>

#include "io/copy_engine.h"

namespace terrace {

// The memory that a set of copies reads and writes, which tells whether another set must wait for
// it. Host and device addresses are taken to be of one address space. Thread-compatible.
class CopyRanges {
 public:
  void Add(const Copy& copy);
  // Call once, after the last Add and before Conflicts.
  void Seal();
  // Whether one of the two writes a byte that the other reads or writes.
  bool Conflicts(const CopyRanges& other) const;

 private:
  struct Range {
    uintptr_t begin = 0;
    uintptr_t end = 0;
  };
  using Ranges = std::vector<Range>;  // once sealed: ascending, disjoint and not touching

  static void Unite(Ranges& ranges);
  static bool Overlap(const Ranges& a, const Ranges& b);

  Ranges reads_;
  Ranges writes_;
};

}  // namespace terrace

#endif  // TERRACE_IO_COPY_RANGES_H_
