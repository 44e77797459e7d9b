#ifndef TERRACE_INDEX_KEY_INPUT_H_
#define TERRACE_INDEX_KEY_INPUT_H_

#include <cstddef>
#include <optional>
#include <vector>

#include "absl/status/status.h"
#include "absl/types/span.h"
#include "index/compute_pool.h"
#include "index/key_index.h"
#include "index/key_panels.h"

namespace terrace {

// What every KeyIndex asks of its arguments. All functions are thread-safe.

// Of Build: the shape, then that keys and samples are finite. kInvalidArgument naming the first
// thing that is wrong.
absl::Status CheckBuild(const KeyPanels& keys, absl::Span<const float> sample_queries,
                        ComputePool& pool);
// Of Append to an index over `built`, nullopt before Build: that `keys` goes on where `built` ends,
// in the same shape, and that the keys that are new are finite.
absl::Status CheckAppend(const std::optional<KeyPanels>& built, const KeyPanels& keys,
                         ComputePool& pool);
// Of Search over keys of `head_dim`, which is 0 before Build. `result` becomes that of a search
// that found nothing.
absl::Status StartSearch(absl::Span<const float> queries, size_t head_dim,
                         const KeySearchOptions& options, KeySearchResult& result);

// What the list of panels itself takes, beyond the object; 0 before Build.
size_t PanelListBytes(const std::optional<KeyPanels>& keys);
// Efforts for a sweep: `first`, then growing by halves and thirds up to `last`, which is the last
// one. 1 <= first <= last.
std::vector<size_t> EffortLadder(size_t first, size_t last);

}  // namespace terrace

#endif  // TERRACE_INDEX_KEY_INPUT_H_
