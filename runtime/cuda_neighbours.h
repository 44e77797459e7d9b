#ifndef TERRACE_RUNTIME_CUDA_NEIGHBOURS_H_
#define TERRACE_RUNTIME_CUDA_NEIGHBOURS_H_

#include <cstddef>
#include <memory>

#include "absl/status/statusor.h"
#include "index/neighbour_search.h"

namespace terrace {

// The largest k that the CUDA form supports.
inline constexpr size_t kMostCudaNeighbours = 256;

// Neighbours by cuBLAS on CUDA device number `device`, which gets each key once, in tiles: it takes
// some 100 MiB of its memory, and 8 bytes for each neighbour of each query, while it searches, and
// keeps that for the next search. Searches at the same time take as much each. Private to runtime/.
//
// kUnavailable where the library was built without CUDA, or no device or no cuBLAS answers.
absl::StatusOr<std::unique_ptr<NeighbourSearch>> MakeCudaNeighbours(int device = 0);

}  // namespace terrace

#endif  // TERRACE_RUNTIME_CUDA_NEIGHBOURS_H_
