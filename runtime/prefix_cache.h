#ifndef TERRACE_RUNTIME_PREFIX_CACHE_H_
#define TERRACE_RUNTIME_PREFIX_CACHE_H_

#include <cstddef>
#include <cstdint>
#include <vector>

#include "absl/types/span.h"
#include "runtime/column_table.h"

namespace terrace {

// What a chain begins with: it differs between models and between namespaces, so that their
// prefixes are never taken for each other.
ColumnKey ChainRoot(uint64_t fingerprint, uint64_t space);

// The key of a column that holds `tokens` and follows `parent`: equal for equal tokens from the
// start on, and for no others. 128 bits of SHA-256, so that nobody can craft a prompt which is
// taken for that of somebody else.
ColumnKey ChainNext(const ColumnKey& parent, absl::Span<const int32_t> tokens);

// Columns of tokens that earlier contexts had, in this process or, as long as their blocks are on
// NVMe, before it. Contexts put them there as they seal their blocks. Thread-safe.
class PrefixCache {
 public:
  // `columns` outlives the cache.
  explicit PrefixCache(ColumnTable& columns) : columns_(columns) {}

  struct Hit {
    size_t tokens = 0;
    // That hold them, each referred to for the caller; of the last perhaps only some tokens. They
    // may lack summaries.
    std::vector<ColumnIndex> columns;
  };
  // The longest prefix of `tokens` that is cached under `root`.
  Hit Longest(const ColumnKey& root, absl::Span<const int32_t> tokens);

 private:
  ColumnTable& columns_;
};

}  // namespace terrace

#endif  // TERRACE_RUNTIME_PREFIX_CACHE_H_
