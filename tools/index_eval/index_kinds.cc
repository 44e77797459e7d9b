#include "tools/index_eval/index_kinds.h"

#include <algorithm>
#include <cstdint>
#include <memory>
#include <utility>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "absl/types/span.h"
#include "index/cluster_index.h"
#include "index/faiss_hnsw_index.h"
#include "index/faiss_ivf_index.h"
#include "index/flat_index.h"
#include "index/graph_index.h"

namespace terrace {
namespace {

using Made = absl::StatusOr<std::unique_ptr<KeyIndex>>;

// Those of every kind, of which an index uses its own.
struct AllOptions {
  FaissIvfOptions ivf;
  // On all threads, as the others are built.
  FaissHnswOptions hnsw = {.links = 32, .build_beam_width = 80, .parallel_build = true};
  GraphOptions graph;
  ClusterOptions cluster;
};

struct Kind {
  const char* name;
  Made (*make)(const AllOptions&);
};
constexpr Kind kKinds[] = {
    {"flat", [](const AllOptions&) -> Made { return MakeFlatIndex(); }},
    {"ivf", [](const AllOptions& all) -> Made { return MakeFaissIvfIndex(all.ivf); }},
    {"hnsw", [](const AllOptions& all) -> Made { return MakeFaissHnswIndex(all.hnsw); }},
    {"graph", [](const AllOptions& all) -> Made { return MakeGraphIndex(all.graph); }},
    {"cluster", [](const AllOptions& all) -> Made { return MakeClusterIndex(all.cluster); }},
};

struct Option {
  const char* kind;
  const char* name;
  size_t low;
  size_t high;
  size_t& (*field)(AllOptions&);
};
constexpr size_t kMany = size_t{1} << 24;
// HNSW's go by the names of its paper.
constexpr Option kOptions[] = {
    {"ivf", "lists", 1, kMany, [](AllOptions& all) -> size_t& { return all.ivf.lists; }},
    {"ivf", "training_keys_per_list", 1, kMany,
     [](AllOptions& all) -> size_t& { return all.ivf.training_keys_per_list; }},
    {"ivf", "iterations", 1, 1000, [](AllOptions& all) -> size_t& { return all.ivf.iterations; }},
    {"hnsw", "m", 2, 256, [](AllOptions& all) -> size_t& { return all.hnsw.links; }},
    {"hnsw", "ef_construction", 1, 65536,
     [](AllOptions& all) -> size_t& { return all.hnsw.build_beam_width; }},
    {"graph", "degree", 4, 36, [](AllOptions& all) -> size_t& { return all.graph.degree; }},
    {"graph", "samples", 1, kMany,
     [](AllOptions& all) -> size_t& { return all.graph.sample_count; }},
    {"graph", "build_width", 1, 4096,
     [](AllOptions& all) -> size_t& { return all.graph.build_width; }},
    {"cluster", "cluster_keys", 1, kMaxClusterKeys,
     [](AllOptions& all) -> size_t& { return all.cluster.clustering.cluster_keys; }},
    {"cluster", "iterations", 1, 1000,
     [](AllOptions& all) -> size_t& { return all.cluster.clustering.iterations; }},
};

std::string OptionNames(absl::string_view kind) {
  std::vector<absl::string_view> names;
  for (const Option& option : kOptions) {
    if (option.kind == kind) names.push_back(option.name);
  }
  return absl::StrJoin(names, ", ");
}

// Sets what "name=value" says. The message of an error has no beginning.
absl::Status SetOption(absl::string_view kind, absl::string_view text, AllOptions& all) {
  const std::pair<absl::string_view, absl::string_view> parts =
      absl::StrSplit(text, absl::MaxSplits('=', 1));
  const auto known = std::find_if(std::begin(kOptions), std::end(kOptions), [&](const Option& o) {
    return o.kind == kind && o.name == parts.first;
  });
  if (known == std::end(kOptions)) {
    const std::string names = OptionNames(kind);
    return absl::InvalidArgumentError(absl::StrCat("\"", parts.first, "\" is no option of ", kind,
                                                   ", which has ", names.empty() ? "none" : names));
  }
  uint64_t value = 0;
  if (!absl::SimpleAtoi(parts.second, &value) || value < known->low || value > known->high) {
    return absl::InvalidArgumentError(absl::StrCat(
        known->name, " is \"", parts.second, "\", expected ", known->low, " to ", known->high));
  }
  known->field(all) = value;
  return absl::OkStatus();
}

absl::StatusOr<IndexKind> ParseVariant(absl::string_view text) {
  const std::vector<absl::string_view> parts = absl::StrSplit(text, ':');
  const auto known = std::find_if(std::begin(kKinds), std::end(kKinds),
                                  [&](const Kind& kind) { return kind.name == parts[0]; });
  if (known == std::end(kKinds)) {
    return absl::InvalidArgumentError(
        absl::StrCat("\"", parts[0], "\" is not one of ", IndexKindNames()));
  }
  AllOptions all;
  for (const absl::string_view option : absl::MakeConstSpan(parts).subspan(1)) {
    const absl::Status status = SetOption(known->name, option, all);
    if (!status.ok()) {
      return absl::InvalidArgumentError(absl::StrCat(text, ": ", status.message()));
    }
  }
  IndexKind kind = {.name = std::string(text),
                    .kind = known->name,
                    .make = [make = known->make, all] { return make(all); },
                    .clustering = {}};
  if (kind.kind == "cluster") kind.clustering = all.cluster.clustering;
  return kind;
}

}  // namespace

std::string IndexKindNames() {
  return absl::StrJoin(
      kKinds, ", ", [](std::string* text, const Kind& kind) { absl::StrAppend(text, kind.name); });
}

std::string IndexOptionNames() {
  std::string lines;
  for (const Kind& kind : kKinds) {
    const std::string names = OptionNames(kind.name);
    if (!names.empty()) absl::StrAppend(&lines, "  ", kind.name, ": ", names, "\n");
  }
  return lines;
}

absl::StatusOr<std::vector<IndexKind>> ParseIndexKinds(absl::string_view list) {
  std::vector<IndexKind> kinds;
  for (const absl::string_view text : absl::StrSplit(list, ',')) {
    absl::StatusOr<IndexKind> kind = ParseVariant(text);
    if (!kind.ok()) {
      return absl::InvalidArgumentError(absl::StrCat("--index: ", kind.status().message()));
    }
    if (std::any_of(kinds.begin(), kinds.end(),
                    [&](const IndexKind& other) { return other.name == text; })) {
      return absl::InvalidArgumentError(absl::StrCat("--index: ", text, " stands there twice"));
    }
    kinds.push_back(*std::move(kind));
  }
  return kinds;
}

}  // namespace terrace
