#include "index/graph_index.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <optional>
#include <random>
#include <utility>

#include "absl/base/thread_annotations.h"
#include "absl/strings/str_cat.h"
#include "absl/synchronization/mutex.h"
#include "index/exact_knn.h"
#include "index/graph_build.h"
#include "index/graph_search.h"
#include "index/key_input.h"
#include "index/kv_convert.h"
#include "index/query_metric.h"

namespace terrace {
namespace {

constexpr size_t kMostKeys = std::numeric_limits<int32_t>::max();
constexpr size_t kSpreadKeys = 32;       // from which searches for the neighbours of a key start
constexpr size_t kShareOfTail = 64;      // of all keys, may be in the tail
constexpr size_t kWidestEffort = 4096;   // beyond it, a scan is as fast
constexpr size_t kKeysAsSamples = 4096;  // where Build is given no queries

// The scratch of threads that are between searches, so that there are as many as ever searched at
// the same time. Thread-safe.
class ScratchPool {
 public:
  std::unique_ptr<GraphScratch> Take() {
    absl::MutexLock lock(&mu_);
    if (idle_.empty()) return std::make_unique<GraphScratch>();
    std::unique_ptr<GraphScratch> scratch = std::move(idle_.back());
    idle_.pop_back();
    return scratch;
  }
  void Give(std::unique_ptr<GraphScratch> scratch) {
    absl::MutexLock lock(&mu_);
    idle_.push_back(std::move(scratch));
  }
  size_t memory_bytes() const {
    absl::MutexLock lock(&mu_);
    size_t bytes = 0;
    for (const auto& scratch : idle_) bytes += scratch->memory_bytes();
    return bytes;
  }

 private:
  mutable absl::Mutex mu_;
  std::vector<std::unique_ptr<GraphScratch>> idle_ ABSL_GUARDED_BY(mu_);
};

// At most `most` of the rows, of norm 1 and in no order; rows of zeros are left out.
//
// Samples of the heads of a group take turns, so that every fourth row may be of one head alone:
// they are drawn at random, from each part of the context as many. With no order left, whoever
// takes a part of the result may take any.
std::vector<float> UnitRows(size_t rows, size_t most, size_t head_dim,
                            absl::FunctionRef<void(size_t row, float* to)> get) {
  const size_t used = std::min(rows, most);
  std::mt19937_64 random(1);
  std::vector<size_t> drawn(used);
  for (size_t i = 0; i < used; ++i) drawn[i] = (i * rows + random() % rows) / used;
  for (size_t i = used; i > 1; --i) std::swap(drawn[i - 1], drawn[random() % i]);
  std::vector<float> units;
  units.reserve(used * head_dim);
  std::vector<float> row(head_dim);
  for (const size_t i : drawn) {
    get(i, row.data());
    const double norm = std::sqrt(std::inner_product(row.begin(), row.end(), row.begin(), 0.0));
    if (norm == 0) continue;
    for (const float element : row) units.push_back(static_cast<float>(element / norm));
  }
  return units;
}

class GraphIndex final : public KeyIndex {
 public:
  explicit GraphIndex(const GraphOptions& options) : options_(options), graph_(options.degree) {}

  absl::Status Build(const KeyPanels& keys, absl::Span<const float> sample_queries,
                     ComputePool& pool) override {
    if (absl::Status status = CheckBuild(keys, sample_queries, pool); !status.ok()) return status;
    absl::WriterMutexLock lock(&mu_);
    keys_.emplace(keys);
    graph_ = KeyGraph(options_.degree);
    entries_ = GraphEntries();
    metric_.reset();
    if (keys.size() > 0) BuildGraph(Samples(keys, sample_queries), pool);
    Report(1);
    return absl::OkStatus();
  }

  absl::Status Append(const KeyPanels& keys, ComputePool& pool) override {
    absl::WriterMutexLock lock(&mu_);
    if (absl::Status status = CheckAppend(keys_, keys, pool); !status.ok()) return status;
    keys_.emplace(keys);
    const size_t tail = keys.size() - graph_.size();
    if (tail <= std::max(options_.tail_keys, keys.size() / kShareOfTail)) return absl::OkStatus();
    if (metric_.has_value()) {
      LinkTail(pool);
    } else {
      BuildGraph(Samples(keys, {}), pool);
    }
    return absl::OkStatus();
  }

  absl::Status Search(absl::Span<const float> queries, const KeySearchOptions& options,
                      KeySearchResult& result) const override {
    absl::ReaderMutexLock lock(&mu_);
    if (absl::Status status =
            StartSearch(queries, keys_.has_value() ? keys_->head_dim() : 0, options, result);
        !status.ok()) {
      return status;
    }
    const size_t effort = options.effort > 0 ? options.effort : options_.default_width;
    const size_t width = std::min(std::max(options.k, effort), std::max<size_t>(keys_->size(), 1));
    std::unique_ptr<GraphScratch> scratch = scratch_.Take();
    SearchGraph({graph_, entries_, 0, *keys_}, queries, options.k, width, *scratch, result);
    scratch_.Give(std::move(scratch));
    return absl::OkStatus();
  }

  absl::string_view name() const override { return "graph"; }
  size_t size() const override {
    absl::ReaderMutexLock lock(&mu_);
    return keys_.has_value() ? keys_->size() : 0;
  }
  size_t memory_bytes() const override {
    absl::ReaderMutexLock lock(&mu_);
    return graph_.memory_bytes() + entries_.memory_bytes() + scratch_.memory_bytes() +
           (metric_.has_value() ? metric_->memory_bytes() : 0);
  }
  std::vector<size_t> Efforts(size_t k) const override {
    std::vector<size_t> efforts;
    const auto add = [&](size_t effort) {
      if (efforts.empty() || effort > efforts.back()) efforts.push_back(effort);
    };
    for (const size_t percent : {100, 110, 125, 150, 200, 300, 400, 800, 1600}) {
      add(std::max<size_t>(k * percent / 100, 1));
    }
    add(std::min(size(), kWidestEffort));
    return efforts;
  }

 private:
  void Report(double share) const {
    if (options_.progress) options_.progress(share);
  }

  // Unit rows, at least one.
  std::vector<float> Samples(const KeyPanels& keys, absl::Span<const float> queries) const {
    const size_t head_dim = keys.head_dim();
    std::vector<float> samples = UnitRows(
        queries.size() / head_dim, options_.sample_count, head_dim,
        [&](size_t row, float* to) { std::copy_n(queries.data() + row * head_dim, head_dim, to); });
    if (samples.empty()) {
      samples = UnitRows(
          keys.size(), std::min(options_.sample_count, kKeysAsSamples), head_dim,
          [&](size_t row, float* to) { DecodeKv(keys.key(row), keys.dtype(), head_dim, to); });
    }
    // Keys of zeros alone: every direction is as good as another.
    if (samples.empty()) {
      samples.assign(head_dim, 0.0f);
      samples[0] = 1;
    }
    return samples;
  }

  void BuildGraph(const std::vector<float>& samples, ComputePool& pool)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) {
    const KeyPanels& keys = *keys_;
    graph_.Resize(keys.size());
    metric_.emplace(samples, keys.head_dim());
    entries_ = GraphEntries(samples, keys, pool);
    Report(0.1);
    const std::vector<uint32_t> found =
        ExactNeighbours(samples, keys, options_.keys_per_sample, pool);
    Report(0.5);
    const std::vector<float> points = metric_->Project(keys, 0, pool);
    GraphBuilder builder(points.data(), metric_->dimensions(), options_.build_width, graph_, pool);
    builder.Project(found, std::min(options_.keys_per_sample, keys.size()));
    Report(0.6);
    const std::vector<uint32_t> spread = SpreadKeys();
    // Keys that no sample found are linked to those that one did; then to each other.
    builder.Connect(0, keys.size(), spread);
    Report(0.75);
    builder.Connect(0, keys.size(), spread);
    Report(0.95);
    builder.Reach(0, spread);
  }

  void LinkTail(ComputePool& pool) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) {
    const size_t first = graph_.size();
    graph_.Resize(keys_->size());
    // Of all keys, which takes less than keeping projections would cost in memory.
    const std::vector<float> points = metric_->Project(*keys_, 0, pool);
    GraphBuilder builder(points.data(), metric_->dimensions(), options_.build_width, graph_, pool);
    const std::vector<uint32_t> spread = SpreadKeys();
    builder.Connect(first, keys_->size(), spread);
    builder.Reach(0, spread);
  }

  std::vector<uint32_t> SpreadKeys() const ABSL_SHARED_LOCKS_REQUIRED(mu_) {
    const size_t count = std::min(kSpreadKeys, graph_.size());
    std::vector<uint32_t> keys(count);
    for (size_t i = 0; i < count; ++i) keys[i] = static_cast<uint32_t>(i * graph_.size() / count);
    return keys;
  }

  const GraphOptions options_;
  mutable absl::Mutex mu_;
  std::optional<KeyPanels> keys_ ABSL_GUARDED_BY(mu_);  // none before Build
  KeyGraph graph_ ABSL_GUARDED_BY(mu_);                 // over the keys that are not in the tail
  GraphEntries entries_ ABSL_GUARDED_BY(mu_);
  std::optional<QueryMetric> metric_ ABSL_GUARDED_BY(mu_);  // none while the graph is empty
  mutable ScratchPool scratch_;
};

absl::Status OutOfRange(const char* field, size_t value, size_t least, size_t most) {
  return absl::InvalidArgumentError(
      absl::StrCat(field, ": ", value, ", must be from ", least, " to ", most));
}

}  // namespace

absl::StatusOr<std::unique_ptr<KeyIndex>> MakeGraphIndex(const GraphOptions& options) {
  if (options.degree < 4 || options.degree > 36) return OutOfRange("degree", options.degree, 4, 36);
  const std::pair<const char*, size_t> counts[] = {{"sample_count", options.sample_count},
                                                   {"keys_per_sample", options.keys_per_sample},
                                                   {"build_width", options.build_width},
                                                   {"default_width", options.default_width}};
  for (const auto& [field, value] : counts) {
    if (value == 0 || value > kMostKeys) return OutOfRange(field, value, 1, kMostKeys);
  }
  return std::make_unique<GraphIndex>(options);
}

}  // namespace terrace
