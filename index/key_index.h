#ifndef TERRACE_INDEX_KEY_INDEX_H_
#define TERRACE_INDEX_KEY_INDEX_H_

#include <cstddef>
#include <cstdint>
#include <limits>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "index/compute_pool.h"
#include "index/key_panels.h"

namespace terrace {

struct KeySearchOptions {
  size_t k = 100;
  // How hard to look, in the unit of the index: probes, beam width, clusters. 0 is its default.
  // More finds more and takes longer.
  size_t effort = 0;
};

// What a search found. Used again, it allocates only where it grows.
struct KeySearchResult {
  static constexpr uint32_t kNoKey = std::numeric_limits<uint32_t>::max();

  // [rows, k], best first; where fewer were found, kNoKey and minus infinity follow.
  std::vector<uint32_t> keys;
  std::vector<float> scores;  // inner products, not scaled
  // Distinct keys whose inner product with a query was computed, entry points and reranking
  // included, summed over the rows. Centroids are not keys and are counted apart.
  uint64_t scored_keys = 0;
  uint64_t scored_centroids = 0;
};

// Finds the keys of one layer and KV head with the largest inner products with a query. Keys are
// after RoPE; both they and queries are finite.
//
// Thread-safe: searches run at the same time, while Build and Append wait for them and keep others
// out. Keys are borrowed: the panels stay as they are until the index is gone or built anew. Each
// index accounts for what it allocates beyond them.
class KeyIndex {
 public:
  virtual ~KeyIndex() = default;

  // Forgets everything and takes `keys`. `sample_queries` is [samples, head_dim]: queries of the
  // group's heads as decode steps will resemble them, mostly those of prefill; the index keeps none
  // of them. It may be empty, which leaves indexes that want samples to use keys instead. `pool`
  // works for the call; progress, where given, is called by the calling thread with the share done.
  //
  // kInvalidArgument: a head_dim that is not a multiple of 8 from 8 to 1024, samples that are not
  // whole rows, keys or samples that are not finite (naming the first), more than 2^31 - 1 keys.
  virtual absl::Status Build(const KeyPanels& keys, absl::Span<const float> sample_queries,
                             ComputePool& pool) = 0;
  // Takes the keys of `keys` beyond size(), of which those before are the ones it has already.
  // Errors as for Build; kFailedPrecondition before Build.
  virtual absl::Status Append(const KeyPanels& keys, ComputePool& pool) = 0;
  // `queries` is [rows, head_dim], such as the query heads of the group at one position. An index
  // without keys finds none. kInvalidArgument for k = 0 and for queries that are not whole rows or
  // not finite.
  virtual absl::Status Search(absl::Span<const float> queries, const KeySearchOptions& options,
                              KeySearchResult& result) const = 0;

  virtual absl::string_view name() const = 0;
  virtual size_t size() const = 0;  // keys
  // What it holds beyond the keys.
  virtual size_t memory_bytes() const = 0;
  // The efforts worth trying for k keys of so many, ascending, for sweeps over quality and cost.
  virtual std::vector<size_t> Efforts(size_t k) const = 0;
};

}  // namespace terrace

#endif  // TERRACE_INDEX_KEY_INDEX_H_
