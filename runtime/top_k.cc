#include "runtime/top_k.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <vector>

#include "io/check.h"

namespace terrace {

void LargestScores(const float* scores, size_t count, size_t k, uint32_t* best) {
  TERRACE_CHECK(k <= count);
  std::vector<uint32_t> order(count);
  std::iota(order.begin(), order.end(), uint32_t{0});
  const auto before = [&](uint32_t a, uint32_t b) {
    const bool a_counts = !std::isnan(scores[a]);
    const bool b_counts = !std::isnan(scores[b]);
    if (a_counts != b_counts) return a_counts;
    if (a_counts && scores[a] != scores[b]) return scores[a] > scores[b];
    return a < b;
  };
  const auto end = order.begin() + static_cast<ptrdiff_t>(k);
  if (k < count) std::nth_element(order.begin(), end, order.end(), before);
  std::sort(order.begin(), end, before);
  std::copy(order.begin(), end, best);
}

}  // namespace terrace
