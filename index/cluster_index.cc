#include "index/cluster_index.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <optional>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/strings/str_cat.h"
#include "absl/synchronization/mutex.h"
#include "index/cluster_table.h"
#include "index/finite_rows.h"
#include "index/key_scores.h"

namespace terrace {
namespace {

constexpr size_t kMaxKeys = (size_t{1} << 31) - 1;
// Of all keys, where the caller does not say how many clusters are worth reading.
constexpr size_t kDefaultOneOf = 40;

bool AllFinite(absl::Span<const float> numbers) {
  return std::all_of(numbers.begin(), numbers.end(), [](float x) { return std::isfinite(x); });
}

absl::Status CheckRows(const char* what, absl::Span<const float> rows, size_t head_dim) {
  if (rows.size() % head_dim != 0) {
    return absl::InvalidArgumentError(
        absl::StrCat(what, ": ", rows.size(), " elements are no whole rows of ", head_dim));
  }
  for (size_t row = 0; row < rows.size() / head_dim; ++row) {
    if (!AllFinite(rows.subspan(row * head_dim, head_dim))) {
      return absl::InvalidArgumentError(absl::StrCat(what, ": row ", row, " is not finite"));
    }
  }
  return absl::OkStatus();
}

// The k best of the candidates of one row, in places [row * k, (row + 1) * k) of the result.
void TakeBest(absl::Span<const uint32_t> ids, const float* scores, size_t rows, size_t row,
              size_t k, std::vector<std::pair<float, uint32_t>>& best, KeySearchResult& result) {
  best.clear();
  for (size_t i = 0; i < ids.size(); ++i) {
    // Products of huge keys overflow, perhaps both ways at once.
    const float score = scores[i * rows + row];
    best.emplace_back(std::isnan(score) ? -std::numeric_limits<float>::infinity() : score, ids[i]);
  }
  const auto better = [](const std::pair<float, uint32_t>& a, const std::pair<float, uint32_t>& b) {
    return a.first != b.first ? a.first > b.first : a.second < b.second;
  };
  const size_t found = std::min(k, best.size());
  std::nth_element(best.begin(), best.begin() + static_cast<ptrdiff_t>(found), best.end(), better);
  std::sort(best.begin(), best.begin() + static_cast<ptrdiff_t>(found), better);
  for (size_t i = 0; i < found; ++i) {
    result.scores[row * k + i] = best[i].first;
    result.keys[row * k + i] = best[i].second;
  }
}

class ClusterIndex final : public KeyIndex {
 public:
  explicit ClusterIndex(const ClusterOptions& options) : options_(options) {}

  absl::Status Build(const KeyPanels& keys, absl::Span<const float> sample_queries,
                     ComputePool& pool) override {
    ClusterTableOptions options{
        .head_dim = keys.head_dim(), .has_values = false, .clustering = options_.clustering};
    // Checks head_dim before anything is divided by it.
    absl::StatusOr<ClusterTable> table = ClusterTable::Create(options, QuerySpace(keys.head_dim()));
    if (!table.ok()) return table.status();
    if (absl::Status status = CheckRows("sample queries", sample_queries, keys.head_dim());
        !status.ok()) {
      return status;
    }
    if (absl::Status status = CheckKeys(keys, 0); !status.ok()) return status;
    if (!sample_queries.empty() && keys.size() > 0) {
      table = ClusterTable::Create(options, QuerySpace(sample_queries, keys));
      if (!table.ok()) return table.status();
    }
    absl::MutexLock lock(&mu_);
    if (absl::Status status = Seal(keys, *table, pool); !status.ok()) return status;
    table_.emplace(*std::move(table));
    keys_.emplace(keys);
    return absl::OkStatus();
  }

  absl::Status Append(const KeyPanels& keys, ComputePool& pool) override {
    absl::MutexLock lock(&mu_);
    if (!table_.has_value()) return absl::FailedPreconditionError("cluster: Append before Build");
    if (keys.head_dim() != keys_->head_dim() || keys.dtype() != keys_->dtype() ||
        keys.size() < keys_->size()) {
      return absl::InvalidArgumentError(absl::StrCat(
          "cluster: ", keys.size(), " ", KvDtypeName(keys.dtype()), " keys with a head_dim of ",
          keys.head_dim(), " do not begin with the ", keys_->size(), " ",
          KvDtypeName(keys_->dtype()), " keys of ", keys_->head_dim(), " that are there"));
    }
    if (absl::Status status = CheckKeys(keys, keys_->size()); !status.ok()) return status;
    if (absl::Status status = Seal(keys, *table_, pool); !status.ok()) return status;
    keys_.emplace(keys);
    return absl::OkStatus();
  }

  absl::Status Search(absl::Span<const float> queries, const KeySearchOptions& options,
                      KeySearchResult& result) const override {
    if (options.k == 0) return absl::InvalidArgumentError("cluster: k is 0");
    absl::ReaderMutexLock lock(&mu_);
    if (!table_.has_value()) return absl::FailedPreconditionError("cluster: Search before Build");
    const size_t head_dim = keys_->head_dim();
    if (absl::Status status = CheckRows("queries", queries, head_dim); !status.ok()) return status;
    const size_t rows = queries.size() / head_dim;
    result.keys.assign(rows * options.k, KeySearchResult::kNoKey);
    result.scores.assign(rows * options.k, -std::numeric_limits<float>::infinity());
    result.scored_keys = 0;
    result.scored_centroids = rows * table_->clusters();
    if (rows == 0) return absl::OkStatus();

    const std::vector<uint32_t> ids = Candidates(queries, options);
    std::vector<float> scores(ids.size() * rows);
    ScoreKeys(queries, *keys_, ids, scores.data());
    result.scored_keys = scores.size();
    std::vector<std::pair<float, uint32_t>> best;
    best.reserve(ids.size());
    for (size_t row = 0; row < rows; ++row) {
      TakeBest(ids, scores.data(), rows, row, options.k, best, result);
    }
    return absl::OkStatus();
  }

  absl::string_view name() const override { return "cluster"; }
  size_t size() const override {
    absl::ReaderMutexLock lock(&mu_);
    return keys_.has_value() ? keys_->size() : 0;
  }
  size_t memory_bytes() const override {
    absl::ReaderMutexLock lock(&mu_);
    return table_.has_value() ? table_->memory_bytes() : 0;
  }
  std::vector<size_t> Efforts(size_t k) const override {
    absl::ReaderMutexLock lock(&mu_);
    const size_t clusters = table_.has_value() ? table_->clusters() : 0;
    std::vector<size_t> efforts;
    for (size_t effort = std::max<size_t>(1, k / options_.clustering.keys_per_cluster);
         effort < clusters; effort *= 2) {
      efforts.push_back(effort);
    }
    efforts.push_back(std::max<size_t>(1, clusters));
    return efforts;
  }

 private:
  // Whether the keys from `first` on, which may become the tail, are all finite.
  static absl::Status CheckKeys(const KeyPanels& keys, size_t first) {
    if (keys.size() > kMaxKeys) {
      return absl::InvalidArgumentError(
          absl::StrCat("cluster: ", keys.size(), " keys are more than ", kMaxKeys));
    }
    if (const std::optional<size_t> bad = FirstNotFinite(keys, first, keys.size())) {
      return absl::InvalidArgumentError(absl::StrCat("cluster: key ", *bad, " is not finite"));
    }
    return absl::OkStatus();
  }

  // Makes segments of the keys that the table does not have, but for a short tail.
  absl::Status Seal(const KeyPanels& keys, ClusterTable& table, ComputePool& pool) const {
    const size_t loose = keys.size() - table.keys();
    const size_t rest = loose % kSegmentKeys;
    const size_t tail = rest < options_.seal_keys ? rest : 0;
    return table.Add(keys, nullptr, keys.size() - tail, pool);
  }

  std::vector<uint32_t> Candidates(absl::Span<const float> queries,
                                   const KeySearchOptions& options) const
      ABSL_SHARED_LOCKS_REQUIRED(mu_) {
    const ClusterTable& table = *table_;
    // Worth is a share of attention mass, of which logits are so scaled.
    const float scale = 1 / std::sqrt(static_cast<float>(keys_->head_dim()));
    std::vector<float> scaled(queries.begin(), queries.end());
    for (float& element : scaled) element *= scale;
    const size_t budget =
        options.effort > 0
            ? std::min(options.effort, keys_->size()) * options_.clustering.keys_per_cluster
            : std::max(4 * options.k, table.keys() / kDefaultOneOf);
    ClusterScores scores;
    table.Score(scaled, scores);
    std::vector<uint32_t> chosen;
    table.Rank(scores, {.keys = budget}, chosen);
    std::vector<uint32_t> ids;
    for (const uint32_t cluster : chosen) {
      const ClusterTable::Members members = table.members(cluster);
      for (const uint16_t offset : members.offsets) {
        ids.push_back(static_cast<uint32_t>(members.first_key + offset));
      }
    }
    for (size_t i = table.keys(); i < keys_->size(); ++i) ids.push_back(static_cast<uint32_t>(i));
    return ids;
  }

  const ClusterOptions options_;
  mutable absl::Mutex mu_;
  std::optional<KeyPanels> keys_ ABSL_GUARDED_BY(mu_);
  std::optional<ClusterTable> table_ ABSL_GUARDED_BY(mu_);
};

}  // namespace

absl::StatusOr<std::unique_ptr<KeyIndex>> MakeClusterIndex(const ClusterOptions& options) {
  if (options.clustering.keys_per_cluster == 0 || options.clustering.iterations == 0) {
    return absl::InvalidArgumentError(
        absl::StrCat("cluster: keys_per_cluster is ", options.clustering.keys_per_cluster,
                     " and iterations is ", options.clustering.iterations, "; both are from 1 on"));
  }
  if (options.seal_keys == 0 || options.seal_keys > kSegmentKeys) {
    return absl::InvalidArgumentError(absl::StrCat("cluster: seal_keys is ", options.seal_keys,
                                                   ", expected 1 to ", kSegmentKeys));
  }
  return std::make_unique<ClusterIndex>(options);
}

}  // namespace terrace
