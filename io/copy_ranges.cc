#include "io/copy_ranges.h"

#include <algorithm>

namespace terrace {

void CopyRanges::Add(const Copy& copy) {
  if (copy.bytes == 0) return;
  const auto range = [&](const std::byte* begin) {
    const uintptr_t address = reinterpret_cast<uintptr_t>(begin);
    return Range{.begin = address, .end = address + copy.bytes};
  };
  reads_.push_back(range(copy.source));
  writes_.push_back(range(copy.destination));
}

void CopyRanges::Seal() {
  Unite(reads_);
  Unite(writes_);
}

void CopyRanges::Unite(Ranges& ranges) {
  if (ranges.empty()) return;
  std::sort(ranges.begin(), ranges.end(),
            [](const Range& a, const Range& b) { return a.begin < b.begin; });
  size_t last = 0;
  for (size_t i = 1; i < ranges.size(); ++i) {
    if (ranges[i].begin <= ranges[last].end) {
      ranges[last].end = std::max(ranges[last].end, ranges[i].end);
    } else {
      ranges[++last] = ranges[i];
    }
  }
  ranges.resize(last + 1);
}

bool CopyRanges::Overlap(const Ranges& a, const Ranges& b) {
  if (a.empty() || b.empty()) return false;
  if (a.back().end <= b.front().begin || b.back().end <= a.front().begin) return false;
  for (size_t i = 0, j = 0; i < a.size() && j < b.size();) {
    if (a[i].end <= b[j].begin) {
      ++i;
    } else if (b[j].end <= a[i].begin) {
      ++j;
    } else {
      return true;
    }
  }
  return false;
}

bool CopyRanges::Conflicts(const CopyRanges& other) const {
  return Overlap(writes_, other.writes_) || Overlap(writes_, other.reads_) ||
         Overlap(reads_, other.writes_);
}

}  // namespace terrace
