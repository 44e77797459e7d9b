#ifndef TERRACE_INDEX_FAISS_HNSW_INDEX_H_
#define TERRACE_INDEX_FAISS_HNSW_INDEX_H_

#include <cstddef>
#include <memory>

#include "absl/status/statusor.h"
#include "index/key_index.h"

namespace terrace {

struct FaissHnswOptions {
  size_t links = 32;  // of a node in the upper levels, twice that in the lowest; 2 to 256
  size_t build_beam_width = 80;  // efConstruction of FAISS, at least 1
  // Inserts on all threads of the pool instead of one. Links then depend on who comes first, so two
  // builds differ.
  bool parallel_build = false;
};

// "hnsw": the graph of Malkov and Yashunin (arXiv 1603.09320) as FAISS builds and searches it for
// inner products, over keys where they lie. A baseline: it knows keys only, so that queries of
// another distribution mislead it. Effort is the beam width, at least k. kInvalidArgument naming
// the option.
absl::StatusOr<std::unique_ptr<KeyIndex>> MakeFaissHnswIndex(const FaissHnswOptions& options);

}  // namespace terrace

#endif  // TERRACE_INDEX_FAISS_HNSW_INDEX_H_
