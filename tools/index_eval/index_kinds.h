#ifndef TERRACE_TOOLS_INDEX_EVAL_INDEX_KINDS_H_
#define TERRACE_TOOLS_INDEX_EVAL_INDEX_KINDS_H_

#include <string>

#include "absl/types/span.h"
#include "tools/index_eval/index_sweep.h"

namespace terrace {

// All that `terrace index-eval --index` knows, exact search first.
absl::Span<const IndexKind> IndexKinds();
// "flat, ivf, hnsw", for help texts.
std::string IndexKindNames();
// Kinds from a list of names separated by commas. kInvalidArgument naming what is unknown or stands
// there twice.
absl::StatusOr<std::vector<IndexKind>> ParseIndexKinds(absl::string_view names);

}  // namespace terrace

#endif  // TERRACE_TOOLS_INDEX_EVAL_INDEX_KINDS_H_
