#include "index/faiss_ivf_index.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <optional>
#include <random>

#include "absl/base/thread_annotations.h"
#include "absl/strings/str_cat.h"
#include "absl/synchronization/mutex.h"
#include "faiss/Clustering.h"
#include "faiss/Index.h"
#include "index/best_keys.h"
#include "index/faiss_call.h"
#include "index/key_input.h"
#include "index/key_scores.h"
#include "index/kv_convert.h"

namespace terrace {
namespace {

constexpr size_t kRowsPerTile = 16;  // that share a pass over the centroids
constexpr size_t kKeysPerJob = 1024;
constexpr size_t kGrowthToTrainAgain = 4;
constexpr uint64_t kSampleSeed = 0x5eed;

// The centroid with the largest inner product, of `centroids` [lists, head_dim], for each of `rows`
// [count, head_dim]; the first of equal ones.
void AssignRows(absl::Span<const float> centroids, size_t head_dim, absl::Span<const float> rows,
                uint32_t* lists, float* scores) {
  const size_t list_count = centroids.size() / head_dim;
  std::vector<float> tile_scores(list_count * kRowsPerTile);
  const size_t count = rows.size() / head_dim;
  for (size_t begin = 0; begin < count; begin += kRowsPerTile) {
    const size_t tile = std::min(kRowsPerTile, count - begin);
    ScoreRun(rows.subspan(begin * head_dim, tile * head_dim), head_dim, centroids.data(),
             KvDtype::kFloat32, list_count, tile_scores.data());
    std::fill_n(lists + begin, tile, 0);
    std::copy_n(tile_scores.data(), tile, scores + begin);
    for (size_t list = 1; list < list_count; ++list) {
      for (size_t i = 0; i < tile; ++i) {
        const float score = tile_scores[list * tile + i];
        if (score > scores[begin + i]) {
          scores[begin + i] = score;
          lists[begin + i] = static_cast<uint32_t>(list);
        }
      }
    }
  }
}

// What FAISS's k-means assigns its sample with: SIMD on the threads of the pool, where FAISS's own
// would be scalar or start threads of its own. Thread-compatible.
class PoolAssigner final : public faiss::Index {
 public:
  PoolAssigner(size_t head_dim, ComputePool& pool)
      : faiss::Index(static_cast<idx_t>(head_dim), faiss::METRIC_INNER_PRODUCT), pool_(pool) {}

  void add(idx_t count, const float* centroids) override {
    centroids_.insert(centroids_.end(), centroids, centroids + count * d);
    ntotal += count;
  }
  void reset() override {
    centroids_.clear();
    ntotal = 0;
  }
  // Of the best centroid only, which is all that k-means asks for: k is 1.
  void search(idx_t count, const float* rows, idx_t, float* scores, idx_t* labels,
              const faiss::SearchParameters*) const override {
    const size_t head_dim = static_cast<size_t>(d);
    const size_t row_count = static_cast<size_t>(count);
    std::vector<uint32_t> lists(row_count);
    pool_.ForEach((row_count + kKeysPerJob - 1) / kKeysPerJob, [&](size_t job, size_t) {
      const size_t begin = job * kKeysPerJob;
      const size_t rows_here = std::min(kKeysPerJob, row_count - begin);
      AssignRows(centroids_, head_dim, {rows + begin * head_dim, rows_here * head_dim},
                 lists.data() + begin, scores + begin);
    });
    std::copy(lists.begin(), lists.end(), labels);
  }

 private:
  ComputePool& pool_;
  std::vector<float> centroids_;
};

// Keys in fp32 by a factor, which spares sums from overflow and changes no assignment.
void DecodeScaled(const KeyPanels& keys, size_t key, float scale, float* to) {
  DecodeKv(keys.key(key), keys.dtype(), keys.head_dim(), to);
  for (size_t i = 0; i < keys.head_dim(); ++i) to[i] *= scale;
}

// `count` of the keys, each as likely as any other, in order: selection sampling (Knuth, The Art of
// Computer Programming, volume 2, algorithm S).
std::vector<float> SampleKeys(const KeyPanels& keys, size_t count) {
  std::mt19937_64 random(kSampleSeed);
  std::vector<float> sample(count * keys.head_dim());
  size_t taken = 0;
  for (size_t key = 0; key < keys.size() && taken < count; ++key) {
    if (random() % (keys.size() - key) >= count - taken) continue;
    DecodeScaled(keys, key, 1, sample.data() + taken++ * keys.head_dim());
  }
  return sample;
}

// To length 1; rows of zeros stay.
void NormaliseRows(size_t head_dim, std::vector<float>& rows) {
  for (auto row = rows.begin(); row != rows.end(); row += static_cast<ptrdiff_t>(head_dim)) {
    double squares = 0;
    for (size_t i = 0; i < head_dim; ++i) squares += double{row[i]} * double{row[i]};
    if (squares == 0) continue;
    const auto scale = static_cast<float>(1 / std::sqrt(squares));
    for (size_t i = 0; i < head_dim; ++i) row[i] *= scale;
  }
}

// Searches hold mu_, shared, as Append must wait for them: lists that grow move.
class FaissIvfIndex final : public KeyIndex {
 public:
  explicit FaissIvfIndex(const FaissIvfOptions& options) : options_(options) {}

  absl::Status Build(const KeyPanels& keys, absl::Span<const float> sample_queries,
                     ComputePool& pool) override {
    absl::MutexLock lock(&mu_);
    if (absl::Status status = CheckBuild(keys, sample_queries, pool); !status.ok()) return status;
    return BuildLists(keys, pool);
  }

  absl::Status Append(const KeyPanels& keys, ComputePool& pool) override {
    absl::MutexLock lock(&mu_);
    if (absl::Status status = CheckAppend(keys_, keys, pool); !status.ok()) return status;
    const size_t first = keys_->size();
    if (keys.size() == first) {
      keys_.emplace(keys);
      return absl::OkStatus();
    }
    if (keys.size() >= kGrowthToTrainAgain * trained_keys_) return BuildLists(keys, pool);
    keys_.emplace(keys);
    AddToLists(first, pool);
    return absl::OkStatus();
  }

  absl::Status Search(absl::Span<const float> queries, const KeySearchOptions& options,
                      KeySearchResult& result) const override {
    absl::ReaderMutexLock lock(&mu_);
    const size_t head_dim = keys_.has_value() ? keys_->head_dim() : 0;
    if (absl::Status status = StartSearch(queries, head_dim, options, result); !status.ok()) {
      return status;
    }
    if (keys_->size() == 0) return absl::OkStatus();
    const size_t effort = options.effort > 0 ? options.effort : DefaultEffort();
    for (size_t row = 0; row < queries.size() / head_dim; ++row) {
      SearchRow(queries.subspan(row * head_dim, head_dim), options.k,
                std::min(effort, lists_.size()), row, result);
    }
    return absl::OkStatus();
  }

  absl::string_view name() const override { return "ivf"; }
  size_t size() const override {
    absl::ReaderMutexLock lock(&mu_);
    return keys_.has_value() ? keys_->size() : 0;
  }
  size_t memory_bytes() const override {
    absl::ReaderMutexLock lock(&mu_);
    size_t bytes = sizeof(*this) + PanelListBytes(keys_) + centroids_.capacity() * sizeof(float) +
                   lists_.capacity() * sizeof(lists_[0]);
    for (const std::vector<uint32_t>& list : lists_) bytes += list.capacity() * sizeof(uint32_t);
    return bytes;
  }
  std::vector<size_t> Efforts(size_t) const override {
    absl::ReaderMutexLock lock(&mu_);
    return EffortLadder(1, std::max<size_t>(lists_.size(), 1));
  }

 private:
  // Trains centroids on `keys`, then lists all of them. Leaves everything as it was on errors.
  absl::Status BuildLists(const KeyPanels& keys, ComputePool& pool)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) {
    std::vector<float> centroids;
    if (keys.size() > 0) {
      if (absl::Status status = Train(keys, pool, centroids); !status.ok()) return status;
    }
    keys_.emplace(keys);
    centroids_ = std::move(centroids);
    trained_keys_ = keys.size();
    lists_.assign(centroids_.size() / keys.head_dim(), {});
    AddToLists(0, pool);
    return absl::OkStatus();
  }

  absl::Status Train(const KeyPanels& keys, ComputePool& pool,
                     std::vector<float>& centroids) const {
    const size_t wanted =
        options_.lists > 0 ? options_.lists
                           : static_cast<size_t>(4 * std::sqrt(static_cast<double>(keys.size())));
    const size_t lists = std::clamp<size_t>(wanted, 1, keys.size());
    std::vector<float> sample =
        SampleKeys(keys, std::min(keys.size(), lists * options_.training_keys_per_list));
    float largest = 0;
    for (const float element : sample) largest = std::max(largest, std::abs(element));
    if (largest > 0) {
      for (float& element : sample) element /= largest;
    }
    const absl::Status status = CallFaiss("FAISS k-means", [&] {
      faiss::ClusteringParameters parameters;
      parameters.niter = static_cast<int>(options_.iterations);
      parameters.spherical = true;
      // No warnings on stderr, and no second sampling.
      parameters.min_points_per_centroid = 1;
      parameters.max_points_per_centroid = std::numeric_limits<int>::max();
      faiss::Clustering clustering(static_cast<int>(keys.head_dim()), static_cast<int>(lists),
                                   parameters);
      PoolAssigner assigner(keys.head_dim(), pool);
      clustering.train(static_cast<faiss::Index::idx_t>(sample.size() / keys.head_dim()),
                       sample.data(), assigner);
      centroids = std::move(clustering.centroids);
    });
    // A sample no larger than the number of lists comes back as it is.
    NormaliseRows(keys.head_dim(), centroids);
    return status;
  }

  // Lists the keys from `first` on.
  void AddToLists(size_t first, ComputePool& pool) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) {
    const KeyPanels& keys = *keys_;
    const size_t head_dim = keys.head_dim();
    const absl::Span<const float> centroids = centroids_;
    std::vector<uint32_t> assigned(keys.size() - first);
    // Below this factor no sum of a key with a centroid of length 1 overflows.
    const float scale = 1.0f / static_cast<float>(head_dim);
    pool.ForEach((assigned.size() + kKeysPerJob - 1) / kKeysPerJob, [&](size_t job, size_t) {
      const size_t begin = job * kKeysPerJob;
      const size_t count = std::min(kKeysPerJob, assigned.size() - begin);
      std::vector<float> rows(count * head_dim);
      for (size_t i = 0; i < count; ++i) {
        DecodeScaled(keys, first + begin + i, scale, rows.data() + i * head_dim);
      }
      std::vector<float> scores(count);
      AssignRows(centroids, head_dim, rows, assigned.data() + begin, scores.data());
    });
    for (size_t i = 0; i < assigned.size(); ++i) {
      lists_[assigned[i]].push_back(static_cast<uint32_t>(first + i));
    }
  }

  size_t DefaultEffort() const ABSL_SHARED_LOCKS_REQUIRED(mu_) {
    return std::max<size_t>(lists_.size() / 8, 1);
  }

  // The lists of the `probes` best centroids.
  std::vector<uint32_t> BestLists(absl::Span<const float> query, size_t probes,
                                  KeySearchResult& result) const ABSL_SHARED_LOCKS_REQUIRED(mu_) {
    std::vector<uint32_t> best(probes, KeySearchResult::kNoKey);
    std::vector<float> scores(lists_.size());
    ScoreRun(query, query.size(), centroids_.data(), KvDtype::kFloat32, lists_.size(),
             scores.data());
    result.scored_centroids += lists_.size();
    BestKeys ranking(probes);
    for (size_t list = 0; list < lists_.size(); ++list) {
      ranking.Offer(static_cast<uint32_t>(list), scores[list]);
    }
    ranking.Drain(absl::MakeSpan(best), absl::MakeSpan(scores));
    // Where sums overflowed there are fewer.
    best.erase(std::remove(best.begin(), best.end(), KeySearchResult::kNoKey), best.end());
    return best;
  }

  void SearchRow(absl::Span<const float> query, size_t k, size_t probes, size_t row,
                 KeySearchResult& result) const ABSL_SHARED_LOCKS_REQUIRED(mu_) {
    BestKeys best(std::min(k, keys_->size()));
    std::vector<float> scores;
    const auto scan = [&](const std::vector<uint32_t>& list) {
      mu_.AssertReaderHeld();
      scores.resize(std::max(scores.size(), list.size()));
      ScoreKeys(query, *keys_, list, scores.data());
      for (size_t i = 0; i < list.size(); ++i) best.Offer(list[i], scores[i]);
      result.scored_keys += list.size();
    };
    if (probes == lists_.size()) {
      for (const std::vector<uint32_t>& list : lists_) scan(list);
    } else {
      for (const uint32_t list : BestLists(query, probes, result)) scan(lists_[list]);
    }
    best.Drain(absl::MakeSpan(result.keys).subspan(row * k, k),
               absl::MakeSpan(result.scores).subspan(row * k, k));
  }

  const FaissIvfOptions options_;

  mutable absl::Mutex mu_;
  std::optional<KeyPanels> keys_ ABSL_GUARDED_BY(mu_);  // nullopt before Build
  size_t trained_keys_ ABSL_GUARDED_BY(mu_) = 0;       // as many as there were at the last training
  std::vector<float> centroids_ ABSL_GUARDED_BY(mu_);  // [lists, head_dim], of length 1
  std::vector<std::vector<uint32_t>> lists_ ABSL_GUARDED_BY(mu_);  // each key in one of them
};

}  // namespace

absl::StatusOr<std::unique_ptr<KeyIndex>> MakeFaissIvfIndex(const FaissIvfOptions& options) {
  if (options.training_keys_per_list == 0 || options.iterations == 0) {
    return absl::InvalidArgumentError(
        absl::StrCat("training_keys_per_list is ", options.training_keys_per_list,
                     ", iterations is ", options.iterations, "; both must be positive"));
  }
  return std::make_unique<FaissIvfIndex>(options);
}

}  // namespace terrace
