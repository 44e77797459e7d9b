#include "index/key_input.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdint>
#include <limits>

#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "index/finite_rows.h"
#include "index/kv_convert.h"

namespace terrace {
namespace {

constexpr size_t kMostHeadDim = 1024;
constexpr size_t kHeadDimStep = 8;
constexpr size_t kMostKeys = std::numeric_limits<int32_t>::max();  // FAISS counts nodes in int32
constexpr size_t kKeysPerJob = 2048;

absl::Status CheckShape(const KeyPanels& keys) {
  if (keys.head_dim() == 0 || keys.head_dim() > kMostHeadDim ||
      keys.head_dim() % kHeadDimStep != 0) {
    return absl::InvalidArgumentError(absl::StrCat("head_dim is ", keys.head_dim(),
                                                   "; it must be a multiple of ", kHeadDimStep,
                                                   " from 8 to ", kMostHeadDim));
  }
  if (keys.size() > kMostKeys) {
    return absl::InvalidArgumentError(
        absl::StrCat(keys.size(), " keys; an index takes ", kMostKeys, " at most"));
  }
  return absl::OkStatus();
}

absl::Status NotFinite(absl::string_view what, size_t element, size_t head_dim) {
  return absl::InvalidArgumentError(absl::StrCat(what, " ", element / head_dim,
                                                 " is not finite at element ", element % head_dim));
}

absl::Status CheckRows(absl::Span<const float> rows, size_t head_dim, absl::string_view what) {
  if (rows.size() % head_dim != 0) {
    return absl::InvalidArgumentError(absl::StrCat(
        what, " has ", rows.size(), " elements, which is not a multiple of head_dim ", head_dim));
  }
  for (size_t i = 0; i < rows.size(); ++i) {
    if (!std::isfinite(rows[i])) return NotFinite(what, i, head_dim);
  }
  return absl::OkStatus();
}

absl::Status CheckFinite(const KeyPanels& keys, size_t first, ComputePool& pool) {
  if (keys.size() <= first) return absl::OkStatus();
  const size_t none = std::numeric_limits<size_t>::max();
  std::atomic<size_t> lowest = none;
  const size_t jobs = (keys.size() - first + kKeysPerJob - 1) / kKeysPerJob;
  pool.ForEach(jobs, [&](size_t job, size_t) {
    const size_t begin = first + job * kKeysPerJob;
    const size_t end = std::min(begin + kKeysPerJob, keys.size());
    const std::optional<size_t> found = FirstNotFinite(keys, begin, end);
    if (!found.has_value()) return;
    size_t known = lowest.load();
    while (*found < known && !lowest.compare_exchange_weak(known, *found)) {
    }
  });
  if (lowest.load() == none) return absl::OkStatus();
  std::vector<float> key(keys.head_dim());
  DecodeKv(keys.key(lowest), keys.dtype(), key.size(), key.data());
  const auto bad =
      std::find_if_not(key.begin(), key.end(), [](float x) { return std::isfinite(x); });
  const auto element = static_cast<size_t>(bad - key.begin());
  return NotFinite("key", lowest * key.size() + element, key.size());
}

}  // namespace

absl::Status CheckBuild(const KeyPanels& keys, absl::Span<const float> sample_queries,
                        ComputePool& pool) {
  if (absl::Status status = CheckShape(keys); !status.ok()) return status;
  if (absl::Status status = CheckRows(sample_queries, keys.head_dim(), "sample query");
      !status.ok()) {
    return status;
  }
  return CheckFinite(keys, 0, pool);
}

absl::Status CheckAppend(const std::optional<KeyPanels>& built, const KeyPanels& keys,
                         ComputePool& pool) {
  if (!built.has_value()) return absl::FailedPreconditionError("Append before Build");
  if (absl::Status status = CheckShape(keys); !status.ok()) return status;
  if (keys.head_dim() != built->head_dim() || keys.dtype() != built->dtype()) {
    return absl::InvalidArgumentError(absl::StrCat(
        "keys of head_dim ", keys.head_dim(), " in ", KvDtypeName(keys.dtype()),
        " appended to keys of head_dim ", built->head_dim(), " in ", KvDtypeName(built->dtype())));
  }
  if (keys.size() < built->size()) {
    return absl::InvalidArgumentError(absl::StrCat(
        keys.size(), " keys given to Append, of which the index has ", built->size(), " already"));
  }
  return CheckFinite(keys, built->size(), pool);
}

absl::Status StartSearch(absl::Span<const float> queries, size_t head_dim,
                         const KeySearchOptions& options, KeySearchResult& result) {
  result.keys.clear();
  result.scores.clear();
  result.scored_keys = 0;
  result.scored_centroids = 0;
  if (head_dim == 0) return absl::FailedPreconditionError("Search before Build");
  if (options.k == 0) return absl::InvalidArgumentError("k is 0");
  if (absl::Status status = CheckRows(queries, head_dim, "query"); !status.ok()) return status;
  const size_t rows = queries.size() / head_dim;
  result.keys.resize(rows * options.k, KeySearchResult::kNoKey);
  result.scores.resize(rows * options.k, -std::numeric_limits<float>::infinity());
  return absl::OkStatus();
}

size_t PanelListBytes(const std::optional<KeyPanels>& keys) {
  if (!keys.has_value()) return 0;
  return (keys->size() + keys->panel_keys() - 1) / keys->panel_keys() * sizeof(const std::byte*);
}

std::vector<size_t> EffortLadder(size_t first, size_t last) {
  std::vector<size_t> efforts;
  for (size_t effort = first; effort < last; effort *= 2) {
    efforts.push_back(effort);
    const size_t between = effort + effort / 2;
    if (between > effort && between < last) efforts.push_back(between);
  }
  efforts.push_back(last);
  return efforts;
}

}  // namespace terrace
