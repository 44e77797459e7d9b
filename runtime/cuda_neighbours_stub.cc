#include "runtime/cuda_neighbours.h"

namespace terrace {

absl::StatusOr<std::unique_ptr<NeighbourSearch>> MakeCudaNeighbours(int) {
  return absl::UnavailableError("CUDA neighbours: this library was built without CUDA");
}

}  // namespace terrace
