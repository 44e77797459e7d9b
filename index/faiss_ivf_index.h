#ifndef TERRACE_INDEX_FAISS_IVF_INDEX_H_
#define TERRACE_INDEX_FAISS_IVF_INDEX_H_

#include <cstddef>
#include <memory>

#include "absl/status/statusor.h"
#include "index/key_index.h"

namespace terrace {

struct FaissIvfOptions {
  size_t lists = 0;  // 0: four times the square root of the number of keys
  size_t training_keys_per_list = 64;
  size_t iterations = 10;  // of k-means
};

// "ivf": an inverted file. Keys are listed under the nearest of the centroids that FAISS's
// spherical k-means finds on a sample of them; a search scans the lists of the best centroids. A
// baseline: it knows keys only. Lists hold ids, keys stay where they lie. Effort is the number of
// lists that a query scans. Trained again when appended keys have made the index four times as
// large as at the last training. kInvalidArgument naming the option.
absl::StatusOr<std::unique_ptr<KeyIndex>> MakeFaissIvfIndex(const FaissIvfOptions& options);

}  // namespace terrace

#endif  // TERRACE_INDEX_FAISS_IVF_INDEX_H_
