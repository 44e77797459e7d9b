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
#include "index/key_input.h"
#include "index/key_scores.h"

namespace terrace {
namespace {

// Of all keys, where the caller does not say how many clusters are worth reading.
constexpr size_t kDefaultOneOf = 40;

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
    if (absl::Status status = CheckBuild(keys, sample_queries, pool); !status.ok()) return status;
    const ClusterTableOptions options{
        .head_dim = keys.head_dim(), .has_values = false, .clustering = options_.clustering};
    absl::StatusOr<ClusterTable> table = ClusterTable::Create(
        options, sample_queries.empty() || keys.size() == 0 ? QuerySpace(keys.head_dim())
                                                            : QuerySpace(sample_queries, keys));
    if (!table.ok()) return table.status();
    absl::MutexLock lock(&mu_);
    if (absl::Status status = Seal(keys, *table, pool); !status.ok()) return status;
    table_.emplace(*std::move(table));
    keys_.emplace(keys);
    return absl::OkStatus();
  }

  absl::Status Append(const KeyPanels& keys, ComputePool& pool) override {
    absl::MutexLock lock(&mu_);
    if (absl::Status status = CheckAppend(keys_, keys, pool); !status.ok()) return status;
    if (absl::Status status = Seal(keys, *table_, pool); !status.ok()) return status;
    keys_.emplace(keys);
    return absl::OkStatus();
  }

  absl::Status Search(absl::Span<const float> queries, const KeySearchOptions& options,
                      KeySearchResult& result) const override {
    absl::ReaderMutexLock lock(&mu_);
    const size_t head_dim = keys_.has_value() ? keys_->head_dim() : 0;
    if (absl::Status status = StartSearch(queries, head_dim, options, result); !status.ok()) {
      return status;
    }
    const size_t rows = queries.size() / head_dim;
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
    for (size_t effort = std::max<size_t>(1, k / options_.clustering.cluster_keys);
         effort < clusters; effort *= 2) {
      efforts.push_back(effort);
    }
    efforts.push_back(std::max<size_t>(1, clusters));
    return efforts;
  }

 private:
  // Makes segments of the keys that the table does not have, but for a short tail.
  absl::Status Seal(const KeyPanels& keys, ClusterTable& table, ComputePool& pool) const {
    const size_t loose = keys.size() - table.keys();
    const size_t rest = loose % options_.clustering.segment_keys();
    const size_t tail = rest < options_.seal_keys ? rest : rest % options_.clustering.cluster_keys;
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
            ? std::min(options.effort, keys_->size()) * options_.clustering.cluster_keys
            : std::max(4 * options.k, table.keys() / kDefaultOneOf);
    ClusterScores scores;
    table.Score(scaled, scores);
    KeyChoice chosen;
    table.RankKeys(scores, {.keys = budget}, chosen);
    std::vector<uint32_t> ids;
    ids.reserve(chosen.places.size() + keys_->size() - table.keys());
    for (size_t i = 0; i < chosen.clusters.size(); ++i) {
      const ClusterTable::Members members = table.members(chosen.clusters[i]);
      for (size_t at = chosen.begins[i]; at < chosen.begins[i + 1]; ++at) {
        ids.push_back(
            static_cast<uint32_t>(members.first_key + members.offsets[chosen.places[at]]));
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
  if (absl::Status status = options.clustering.Validate(); !status.ok()) {
    return absl::InvalidArgumentError(absl::StrCat("cluster: ", status.message()));
  }
  if (options.seal_keys == 0 || options.seal_keys > kSegmentKeys) {
    return absl::InvalidArgumentError(absl::StrCat("cluster: seal_keys is ", options.seal_keys,
                                                   ", expected 1 to ", kSegmentKeys));
  }
  return std::make_unique<ClusterIndex>(options);
}

}  // namespace terrace
