#ifndef TERRACE_INDEX_NEIGHBOUR_SEARCH_H_
#define TERRACE_INDEX_NEIGHBOUR_SEARCH_H_

#include <cstddef>
#include <cstdint>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "index/key_panels.h"

namespace terrace {

// Something, such as a GPU, that finds the nearest keys of many queries faster than the CPU does.
// Whoever asks it can do without: any error means that the CPU has to do it. Thread-safe.
class NeighbourSearch {
 public:
  struct Counts {
    uint64_t searches = 0;  // that found what was asked for
    uint64_t failures = 0;  // that the CPU had to do
  };

  virtual ~NeighbourSearch() = default;

  // The keys with the largest inner products with each query, computed in fp32. queries: [rows,
  // head_dim]. Returns [rows, min(k, keys.size())], best first; of equal ones the smaller key
  // first. Sums may be in any order, so that of keys whose products differ by rounding any may come
  // first. kInvalidArgument for a k that it does not support; otherwise errors are those of the
  // device.
  virtual absl::StatusOr<std::vector<uint32_t>> Nearest(absl::Span<const float> queries,
                                                        const KeyPanels& keys, size_t k) = 0;
  virtual Counts counts() const = 0;
};

}  // namespace terrace

#endif  // TERRACE_INDEX_NEIGHBOUR_SEARCH_H_
