#include "tools/index_eval/index_kinds.h"

#include <algorithm>
#include <memory>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "index/cluster_index.h"
#include "index/faiss_hnsw_index.h"
#include "index/faiss_ivf_index.h"
#include "index/flat_index.h"
#include "index/graph_index.h"

namespace terrace {

absl::Span<const IndexKind> IndexKinds() {
  using Made = absl::StatusOr<std::unique_ptr<KeyIndex>>;
  static const IndexKind kinds[] = {
      {"flat", []() -> Made { return MakeFlatIndex(); }},
      {"ivf", []() -> Made { return MakeFaissIvfIndex({}); }},
      // On all threads, as the others are built.
      {"hnsw", []() -> Made { return MakeFaissHnswIndex({.parallel_build = true}); }},
      {"graph", []() -> Made { return MakeGraphIndex({}); }},
      {"cluster", []() -> Made { return MakeClusterIndex({}); }},
  };
  return kinds;
}

std::string IndexKindNames() {
  return absl::StrJoin(IndexKinds(), ", ", [](std::string* text, const IndexKind& kind) {
    absl::StrAppend(text, kind.name);
  });
}

absl::StatusOr<std::vector<IndexKind>> ParseIndexKinds(absl::string_view names) {
  std::vector<IndexKind> kinds;
  for (const absl::string_view name : absl::StrSplit(names, ',')) {
    const auto named = [&](const IndexKind& kind) { return kind.name == name; };
    const auto known = std::find_if(IndexKinds().begin(), IndexKinds().end(), named);
    if (known == IndexKinds().end()) {
      return absl::InvalidArgumentError(
          absl::StrCat("--index: \"", name, "\" is not one of ", IndexKindNames()));
    }
    if (std::any_of(kinds.begin(), kinds.end(), named)) {
      return absl::InvalidArgumentError(absl::StrCat("--index: ", name, " stands there twice"));
    }
    kinds.push_back(*known);
  }
  return kinds;
}

}  // namespace terrace
