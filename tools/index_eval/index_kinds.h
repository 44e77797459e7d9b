#ifndef TERRACE_TOOLS_INDEX_EVAL_INDEX_KINDS_H_
#define TERRACE_TOOLS_INDEX_EVAL_INDEX_KINDS_H_

#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "tools/index_eval/index_sweep.h"

namespace terrace {

// "flat, ivf, hnsw": all that `terrace index-eval --index` knows, exact search first.
std::string IndexKindNames();
// A line for each kind with options: "ivf: lists, ...".
std::string IndexOptionNames();
// Variants of kinds from a list such as "flat,ivf:lists=512,ivf:lists=4096": a kind's name and
// options of it, each after a colon; what is not named is as the library has it. A variant is
// called what stands in the list. kInvalidArgument naming the part that is unknown, out of range or
// there twice.
absl::StatusOr<std::vector<IndexKind>> ParseIndexKinds(absl::string_view list);

}  // namespace terrace

#endif  // TERRACE_TOOLS_INDEX_EVAL_INDEX_KINDS_H_
