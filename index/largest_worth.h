#ifndef TERRACE_INDEX_LARGEST_WORTH_H_
#define TERRACE_INDEX_LARGEST_WORTH_H_

#include <cstddef>
#include <cstdint>
#include <vector>

#include "absl/types/span.h"

namespace terrace {

// Where a choice of the largest numbers ends: it has those above `least`, and of those that equal
// it the first `ties`.
class WorthCut {
 public:
  // The `most` largest of `worth`, all of which are 0 or more and not NaN. By counting numbers of
  // like size, so in linear time. `scratch` is memory to use.
  WorthCut(absl::Span<const float> worth, size_t most, std::vector<float>& scratch);

  // Writes where those numbers are in `worth`, which is that of the constructor, ascending.
  void Collect(absl::Span<const float> worth, std::vector<uint32_t>& taken) const;

 private:
  size_t count_ = 0;
  float least_ = 0;
  size_t ties_ = 0;
};

}  // namespace terrace

#endif  // TERRACE_INDEX_LARGEST_WORTH_H_
