#include "index/faiss_hnsw_index.h"

#include <omp.h>

#include <algorithm>
#include <cstdint>
#include <limits>
#include <numeric>
#include <optional>
#include <random>
#include <utility>

#include "absl/base/thread_annotations.h"
#include "absl/strings/str_cat.h"
#include "absl/synchronization/mutex.h"
#include "faiss/impl/AuxIndexStructures.h"
#include "faiss/impl/DistanceComputer.h"
#include "faiss/impl/HNSW.h"
#include "index/best_keys.h"
#include "index/faiss_call.h"
#include "index/key_input.h"
#include "index/key_scores.h"
#include "index/kv_convert.h"

namespace terrace {
namespace {

using Id = faiss::HNSW::idx_t;
using Node = faiss::HNSW::storage_idx_t;

constexpr size_t kMostLinks = 256;
constexpr size_t kKeysPerJob = 64;
constexpr size_t kWidestBeam = 16384;  // a step of FAISS costs as much as its beam is wide
constexpr uint64_t kShuffleSeed = 0x5eed;

// What FAISS asks of its storage: distances to keys, smaller is nearer, so inner products negated.
// Sums that overflow to NaN are farthest. Thread-compatible; `keys` outlives it.
class KeyDistances final : public faiss::DistanceComputer {
 public:
  explicit KeyDistances(const KeyPanels& keys) : keys_(keys) {}

  // Counts distinct keys in `counted`, of one byte a key, from now on.
  void CountIn(faiss::VisitedTable& counted) { counted_ = &counted; }
  uint64_t distinct_keys() const { return distinct_keys_; }

  void set_query(const float* query) override { query_ = query; }
  float operator()(Id id) override {
    // FAISS comes back to keys of the upper levels, of which its own table knows nothing.
    if (counted_ != nullptr && !counted_->get(static_cast<int>(id))) {
      counted_->set(static_cast<int>(id));
      ++distinct_keys_;
    }
    float score;
    ScoreRun({query_, keys_.head_dim()}, keys_.head_dim(), keys_.key(static_cast<size_t>(id)),
             keys_.dtype(), 1, &score);
    return Distance(score);
  }
  float symmetric_dis(Id a, Id b) override {
    return Distance(ScorePair(keys_.key(static_cast<size_t>(a)), keys_.key(static_cast<size_t>(b)),
                              keys_.dtype(), keys_.head_dim()));
  }

 private:
  static float Distance(float score) {
    return score == score ? -score : std::numeric_limits<float>::infinity();
  }

  const KeyPanels& keys_;
  const float* query_ = nullptr;  // [head_dim]
  faiss::VisitedTable* counted_ = nullptr;
  uint64_t distinct_keys_ = 0;
};

// What one search works in.
struct SearchScratch {
  explicit SearchScratch(size_t keys)
      : visited(static_cast<int>(keys)), counted(static_cast<int>(keys)) {}

  faiss::VisitedTable visited;
  faiss::VisitedTable counted;
  std::vector<Id> ids;
  std::vector<float> distances;
};

// OpenMP's locks, one for each node, as FAISS takes them while it links.
class NodeLocks {
 public:
  explicit NodeLocks(size_t count) : locks_(count) {
    for (omp_lock_t& lock : locks_) omp_init_lock(&lock);
  }
  ~NodeLocks() {
    for (omp_lock_t& lock : locks_) omp_destroy_lock(&lock);
  }
  NodeLocks(const NodeLocks&) = delete;
  NodeLocks& operator=(const NodeLocks&) = delete;

  std::vector<omp_lock_t>& locks() { return locks_; }

 private:
  std::vector<omp_lock_t> locks_;
};

// FAISS's graph alone, without faiss::IndexHNSW: that one wants all keys in fp32 to add them, and
// its search counts in global variables without a lock and opens an OpenMP region.
//
// Searches hold mu_ while FAISS runs, shared, as Append must wait for them: a graph that grows
// moves its arrays.
class FaissHnswIndex final : public KeyIndex {
 public:
  explicit FaissHnswIndex(const FaissHnswOptions& options) : options_(options) {}

  absl::Status Build(const KeyPanels& keys, absl::Span<const float> sample_queries,
                     ComputePool& pool) override {
    absl::MutexLock lock(&mu_);
    if (absl::Status status = CheckBuild(keys, sample_queries, pool); !status.ok()) return status;
    graph_.emplace(static_cast<int>(options_.links));
    graph_->efConstruction = static_cast<int>(options_.build_beam_width);
    // FAISS 1.7.3 sizes the beam of a search by the larger of this member and the k that it is
    // asked for, whatever the parameters of the search say. So the member is the least there is and
    // searches ask for as many keys as their beam is wide.
    graph_->efSearch = 1;
    return Insert(keys, 0, pool);
  }

  absl::Status Append(const KeyPanels& keys, ComputePool& pool) override {
    absl::MutexLock lock(&mu_);
    if (absl::Status status = CheckAppend(keys_, keys, pool); !status.ok()) return status;
    return Insert(keys, keys_->size(), pool);
  }

  absl::Status Search(absl::Span<const float> queries, const KeySearchOptions& options,
                      KeySearchResult& result) const override {
    absl::ReaderMutexLock lock(&mu_);
    const size_t head_dim = keys_.has_value() ? keys_->head_dim() : 0;
    if (absl::Status status = StartSearch(queries, head_dim, options, result); !status.ok()) {
      return status;
    }
    if (keys_->size() == 0) return absl::OkStatus();
    std::unique_ptr<SearchScratch> scratch = TakeScratch();
    const absl::Status status = CallFaiss("FAISS HNSW search", [&] {
      mu_.AssertReaderHeld();
      for (size_t row = 0; row < queries.size() / head_dim; ++row) {
        SearchRow(queries.subspan(row * head_dim, head_dim), options, row, *scratch, result);
      }
    });
    absl::MutexLock scratch_lock(&scratch_mu_);
    scratch_.push_back(std::move(scratch));
    return status;
  }

  absl::string_view name() const override { return "hnsw"; }
  size_t size() const override {
    absl::ReaderMutexLock lock(&mu_);
    return keys_.has_value() ? keys_->size() : 0;
  }
  size_t memory_bytes() const override {
    absl::ReaderMutexLock lock(&mu_);
    size_t bytes = sizeof(*this) + PanelListBytes(keys_);
    if (graph_.has_value()) {
      bytes += graph_->neighbors.capacity() * sizeof(Node) +
               graph_->offsets.capacity() * sizeof(size_t) +
               graph_->levels.capacity() * sizeof(int);
    }
    absl::MutexLock scratch_lock(&scratch_mu_);
    for (const auto& scratch : scratch_) {
      bytes += scratch->visited.visited.capacity() + scratch->counted.visited.capacity() +
               scratch->ids.capacity() * sizeof(Id) + scratch->distances.capacity() * sizeof(float);
    }
    return bytes;
  }
  std::vector<size_t> Efforts(size_t k) const override {
    const size_t last = std::max<size_t>(std::min(size(), kWidestBeam), 1);
    return EffortLadder(std::clamp<size_t>(k, 1, last), last);
  }

 private:
  // Links the keys from `first` on.
  absl::Status Insert(const KeyPanels& keys, size_t first, ComputePool& pool)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) {
    const size_t added = keys.size() - first;
    keys_.emplace(keys);
    {
      absl::MutexLock lock(&scratch_mu_);
      scratch_.clear();  // of another size
    }
    if (added == 0) return absl::OkStatus();
    if (absl::Status status = CallFaiss("FAISS HNSW levels",
                                        [&] {
                                          mu_.AssertHeld();
                                          graph_->prepare_level_tab(added);
                                        });
        !status.ok()) {
      return status;
    }
    // Upper levels come first, for the others to be found through them, as in FAISS. Within a level
    // the order is random: neighbours in a text resemble each other.
    std::vector<Node> order(added);
    std::iota(order.begin(), order.end(), static_cast<Node>(first));
    std::shuffle(order.begin(), order.end(), std::mt19937_64(kShuffleSeed));
    const std::vector<int>& levels = graph_->levels;
    std::stable_sort(order.begin(), order.end(), [&](Node a, Node b) {
      return levels[static_cast<size_t>(a)] > levels[static_cast<size_t>(b)];
    });
    return Link(order, pool);
  }

  absl::Status Link(absl::Span<const Node> order, ComputePool& pool)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) {
    NodeLocks locks(keys_->size());
    faiss::HNSW& graph = *graph_;
    const KeyPanels& keys = *keys_;
    const auto link = [&](absl::Span<const Node> nodes, faiss::VisitedTable& visited) {
      return CallFaiss("FAISS HNSW insertion", [&] {
        KeyDistances distances(keys);
        std::vector<float> key(keys.head_dim());
        for (const Node node : nodes) {
          DecodeKv(keys.key(static_cast<size_t>(node)), keys.dtype(), key.size(), key.data());
          distances.set_query(key.data());
          graph.add_with_locks(distances, graph.levels[static_cast<size_t>(node)] - 1, node,
                               locks.locks(), visited);
        }
      });
    };
    // One node at most raises the number of levels, which FAISS lets only one thread do.
    std::vector<faiss::VisitedTable> visited(options_.parallel_build ? pool.threads() : 1,
                                             faiss::VisitedTable(static_cast<int>(keys.size())));
    absl::Status first = link(order.subspan(0, 1), visited[0]);
    order.remove_prefix(1);
    if (!first.ok() || !options_.parallel_build) {
      return first.ok() ? link(order, visited[0]) : first;
    }
    std::vector<absl::Status> statuses(pool.threads());
    pool.ForEach((order.size() + kKeysPerJob - 1) / kKeysPerJob, [&](size_t job, size_t worker) {
      statuses[worker].Update(link(order.subspan(job * kKeysPerJob, kKeysPerJob), visited[worker]));
    });
    for (const absl::Status& status : statuses) first.Update(status);
    return first;
  }

  void SearchRow(absl::Span<const float> query, const KeySearchOptions& options, size_t row,
                 SearchScratch& scratch, KeySearchResult& result) const
      ABSL_SHARED_LOCKS_REQUIRED(mu_) {
    const size_t effort = options.effort > 0 ? options.effort : 2 * options.k;
    const size_t beam = std::min(std::max(effort, options.k), keys_->size());
    scratch.ids.assign(beam, -1);
    scratch.distances.resize(beam);
    KeyDistances distances(*keys_);
    distances.CountIn(scratch.counted);
    distances.set_query(query.data());
    faiss::SearchParametersHNSW parameters;
    parameters.efSearch = static_cast<int>(beam);
    graph_->search(distances, static_cast<int>(beam), scratch.ids.data(), scratch.distances.data(),
                   scratch.visited, &parameters);
    scratch.visited.advance();
    scratch.counted.advance();
    result.scored_keys += distances.distinct_keys();

    BestKeys best(std::min(options.k, keys_->size()));
    for (size_t i = 0; i < beam; ++i) {
      if (scratch.ids[i] < 0) continue;
      best.Offer(static_cast<uint32_t>(scratch.ids[i]), -scratch.distances[i]);
    }
    best.Drain(absl::MakeSpan(result.keys).subspan(row * options.k, options.k),
               absl::MakeSpan(result.scores).subspan(row * options.k, options.k));
  }

  std::unique_ptr<SearchScratch> TakeScratch() const ABSL_SHARED_LOCKS_REQUIRED(mu_) {
    absl::MutexLock lock(&scratch_mu_);
    if (scratch_.empty()) return std::make_unique<SearchScratch>(keys_->size());
    std::unique_ptr<SearchScratch> scratch = std::move(scratch_.back());
    scratch_.pop_back();
    return scratch;
  }

  const FaissHnswOptions options_;

  mutable absl::Mutex mu_;
  std::optional<KeyPanels> keys_ ABSL_GUARDED_BY(mu_);     // nullopt before Build
  std::optional<faiss::HNSW> graph_ ABSL_GUARDED_BY(mu_);  // as keys_

  mutable absl::Mutex scratch_mu_ ABSL_ACQUIRED_AFTER(mu_);
  // Of searches that ended, for those to come.
  mutable std::vector<std::unique_ptr<SearchScratch>> scratch_ ABSL_GUARDED_BY(scratch_mu_);
};

}  // namespace

absl::StatusOr<std::unique_ptr<KeyIndex>> MakeFaissHnswIndex(const FaissHnswOptions& options) {
  if (options.links < 2 || options.links > kMostLinks) {
    return absl::InvalidArgumentError(
        absl::StrCat("links is ", options.links, "; it must be from 2 to ", kMostLinks));
  }
  if (options.build_beam_width == 0 ||
      options.build_beam_width > size_t{std::numeric_limits<int>::max()}) {
    return absl::InvalidArgumentError(
        absl::StrCat("build_beam_width is ", options.build_beam_width));
  }
  return std::make_unique<FaissHnswIndex>(options);
}

}  // namespace terrace
