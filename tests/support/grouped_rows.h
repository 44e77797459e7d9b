#ifndef TERRACE_TESTS_SUPPORT_GROUPED_ROWS_H_
#define TERRACE_TESTS_SUPPORT_GROUPED_ROWS_H_

#include <cstddef>
#include <cstdint>
#include <random>
#include <vector>

#include "index/key_panels.h"

namespace terrace {

// Rows that clusters can find, for the tests of clusters: [count, kGroupedHeadDim] fp32.
inline constexpr size_t kGroupedHeadDim = 32;

inline std::vector<float> Normals(size_t count, uint64_t seed, float deviation = 1) {
  std::mt19937_64 random(seed);
  std::normal_distribution<float> normal(0, deviation);
  std::vector<float> out(count);
  for (float& element : out) element = normal(random);
  return out;
}

// Groups of `run` neighbours around a common centre.
inline std::vector<float> GroupedRows(size_t count, size_t run, float deviation, uint64_t seed) {
  const std::vector<float> centres = Normals((count / run + 1) * kGroupedHeadDim, seed);
  std::vector<float> rows = Normals(count * kGroupedHeadDim, seed + 1, deviation);
  for (size_t i = 0; i < count * kGroupedHeadDim; ++i) {
    rows[i] += centres[i / kGroupedHeadDim / run * kGroupedHeadDim + i % kGroupedHeadDim];
  }
  return rows;
}

inline KeyPanels Panels(const std::vector<float>& rows) {
  return KeyPanels::Contiguous(rows.data(), rows.size() / kGroupedHeadDim, kGroupedHeadDim,
                               KvDtype::kFloat32);
}

}  // namespace terrace

#endif  // TERRACE_TESTS_SUPPORT_GROUPED_ROWS_H_
