#include "index/graph_index.h"

#include <algorithm>
#include <cmath>
#include <cstring>
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
#include "index/vector_bytes.h"
#include "xxhash.h"

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

struct SavedHeader {
  uint32_t magic = 0x47435254;  // "TRCG"
  uint32_t version = 1;
  uint32_t head_dim = 0;
  uint32_t degree = 0;
  uint32_t dimensions = 0;  // of the metric
  uint32_t centroids = 0;
  uint32_t entry_keys = 0;
  uint32_t linked_keys = 0;
  uint64_t keys = 0;
  uint64_t body_bytes = 0;
  uint64_t checksum = 0;  // XXH3-64 of the header, in which this is 0, and the body with that seed
};

uint64_t ChecksumOf(SavedHeader header, absl::Span<const std::byte> body) {
  header.checksum = 0;
  return XXH3_64bits_withSeed(body.data(), body.size(), XXH3_64bits(&header, sizeof(header)));
}

class LinkedGraphIndex final : public GraphIndex {
 public:
  explicit LinkedGraphIndex(const GraphOptions& options)
      : options_(options), linked_(std::make_unique<Linked>(options.degree)) {}

  absl::Status Build(const KeyPanels& keys, absl::Span<const float> sample_queries,
                     ComputePool& pool) override {
    if (absl::Status status = CheckBuild(keys, sample_queries, pool); !status.ok()) return status;
    absl::MutexLock building(&build_mu_);
    auto linked = std::make_unique<Linked>(options_.degree);
    if (keys.size() > 0) BuildGraph(keys, Samples(keys, sample_queries), *linked, pool);
    Replace(keys, std::move(linked));
    Report(1);
    return absl::OkStatus();
  }

  absl::Status Append(const KeyPanels& keys, ComputePool& pool) override {
    absl::MutexLock building(&build_mu_);
    std::optional<KeyPanels> before;
    {
      absl::ReaderMutexLock lock(&mu_);
      if (keys_.has_value()) before.emplace(*keys_);
    }
    if (absl::Status status = CheckAppend(before, keys, pool); !status.ok()) return status;
    std::unique_ptr<Linked> linked;
    {
      absl::ReaderMutexLock lock(&mu_);
      const size_t tail = keys.size() - linked_->graph.size();
      if (tail > std::max(options_.tail_keys, keys.size() / kShareOfTail)) {
        linked = std::make_unique<Linked>(*linked_);
      }
    }
    if (linked != nullptr && linked->metric.has_value()) {
      LinkTail(keys, *linked, pool);
    } else if (linked != nullptr) {
      BuildGraph(keys, Samples(keys, {}), *linked, pool);
    }
    Replace(keys, std::move(linked));
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
    SearchGraph({linked_->graph, linked_->entries, 0, *keys_}, queries, options.k, width, *scratch,
                result);
    scratch_.Give(std::move(scratch));
    return absl::OkStatus();
  }

  void Save(std::vector<std::byte>& bytes) const override {
    absl::ReaderMutexLock lock(&mu_);
    const size_t start = bytes.size();
    bytes.resize(start + sizeof(SavedHeader));
    SavedHeader header;
    header.degree = static_cast<uint32_t>(options_.degree);
    if (keys_.has_value()) {
      header.head_dim = static_cast<uint32_t>(keys_->head_dim());
      header.keys = keys_->size();
    }
    if (linked_->metric.has_value()) {
      header.dimensions = static_cast<uint32_t>(linked_->metric->dimensions());
      WriteVector(linked_->metric->axes(), bytes);
    }
    header.centroids = static_cast<uint32_t>(linked_->entries.centroid_count());
    header.entry_keys = static_cast<uint32_t>(linked_->entries.keys().size());
    header.linked_keys = static_cast<uint32_t>(linked_->graph.size());
    WriteVector(linked_->entries.centroids(), bytes);
    WriteVector(linked_->entries.keys(), bytes);
    WriteVector(linked_->graph.links(), bytes);
    header.body_bytes = bytes.size() - start - sizeof(header);
    header.checksum =
        ChecksumOf(header, absl::MakeConstSpan(bytes).subspan(start + sizeof(header)));
    std::memcpy(bytes.data() + start, &header, sizeof(header));
  }

  absl::Status Load(absl::Span<const std::byte> bytes, const KeyPanels& keys) override {
    absl::MutexLock building(&build_mu_);
    absl::WriterMutexLock lock(&mu_);
    keys_.reset();
    linked_ = std::make_unique<Linked>(options_.degree);
    SavedHeader header;
    const SavedHeader expected;
    if (bytes.size() < sizeof(header)) return Damaged("less than a header");
    std::memcpy(&header, bytes.data(), sizeof(header));
    const absl::Span<const std::byte> body = bytes.subspan(sizeof(header));
    if (header.magic != expected.magic || header.body_bytes != body.size() ||
        header.checksum != ChecksumOf(header, body)) {
      return Damaged("header or checksum do not match");
    }
    if (header.version != expected.version || header.degree != options_.degree ||
        header.keys != keys.size() || (header.keys > 0 && header.head_dim != keys.head_dim())) {
      return absl::InvalidArgumentError(absl::StrCat(
          "saved graph: version ", header.version, ", degree ", header.degree, ", ", header.keys,
          " keys of ", header.head_dim, ", expected version ", expected.version, ", ",
          options_.degree, ", ", keys.size(), " keys of ", keys.head_dim()));
    }
    const size_t head_dim = header.head_dim;
    VectorReader reader(body);
    std::vector<float> axes, centroids;
    std::vector<uint32_t> entry_keys, links;
    const bool whole = reader.Read(header.dimensions * head_dim, axes) &&
                       reader.Read(header.centroids * head_dim, centroids) &&
                       reader.Read(header.entry_keys, entry_keys) &&
                       reader.Read(size_t{header.linked_keys} * options_.degree, links) &&
                       reader.empty();
    const auto is_key = [&](uint32_t key) { return key < header.linked_keys; };
    if (!whole || header.linked_keys > header.keys ||
        (header.linked_keys > 0) != (header.dimensions > 0 && header.centroids > 0) ||
        header.dimensions % 8 != 0 ||
        (header.centroids > 0 && header.entry_keys % header.centroids != 0) ||
        !std::all_of(entry_keys.begin(), entry_keys.end(), is_key) ||
        !linked_->graph.SetLinks(std::move(links))) {
      return Damaged("its parts do not fit together");
    }
    if (header.linked_keys > 0) {
      linked_->metric.emplace(QueryMetric::FromAxes(std::move(axes), head_dim));
      linked_->entries = GraphEntries(head_dim, std::move(centroids), std::move(entry_keys));
    }
    keys_.emplace(keys);
    return absl::OkStatus();
  }

  absl::string_view name() const override { return "graph"; }
  size_t size() const override {
    absl::ReaderMutexLock lock(&mu_);
    return keys_.has_value() ? keys_->size() : 0;
  }
  size_t memory_bytes() const override {
    absl::ReaderMutexLock lock(&mu_);
    return linked_->graph.memory_bytes() + linked_->entries.memory_bytes() +
           scratch_.memory_bytes() +
           (linked_->metric.has_value() ? linked_->metric->memory_bytes() : 0);
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
  // What is made of the keys that are not in the tail.
  struct Linked {
    explicit Linked(size_t degree) : graph(degree) {}
    KeyGraph graph;
    GraphEntries entries;
    std::optional<QueryMetric> metric;  // none while the graph is empty
  };

  // Waits for searches in what was before. Without `linked` that stays.
  void Replace(const KeyPanels& keys, std::unique_ptr<Linked> linked) {
    absl::WriterMutexLock lock(&mu_);
    keys_.emplace(keys);
    if (linked != nullptr) linked_ = std::move(linked);
  }
  static absl::Status Damaged(absl::string_view what) {
    return absl::DataLossError(absl::StrCat("saved graph: ", what));
  }
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

  void BuildGraph(const KeyPanels& keys, const std::vector<float>& samples, Linked& linked,
                  ComputePool& pool) const {
    linked.graph.Resize(keys.size());
    linked.metric.emplace(samples, keys.head_dim());
    linked.entries = GraphEntries(samples, keys, pool);
    Report(0.1);
    const std::vector<uint32_t> found = FindKeys(samples, keys, pool);
    Report(0.5);
    const std::vector<float> points = linked.metric->Project(keys, 0, pool);
    GraphBuilder builder(points.data(), linked.metric->dimensions(), options_.build_width,
                         linked.graph, pool);
    builder.Project(found, std::min(options_.keys_per_sample, keys.size()));
    Report(0.6);
    const std::vector<uint32_t> spread = SpreadKeys(linked);
    // Keys that no sample found are linked to those that one did; then to each other.
    builder.Connect(0, keys.size(), spread);
    Report(0.75);
    builder.Connect(0, keys.size(), spread);
    Report(0.95);
    builder.Reach(0, spread);
  }

  // [samples, min(keys_per_sample, keys.size())], best first.
  std::vector<uint32_t> FindKeys(const std::vector<float>& samples, const KeyPanels& keys,
                                 ComputePool& pool) const {
    if (options_.neighbours != nullptr) {
      auto found = options_.neighbours->Nearest(samples, keys, options_.keys_per_sample);
      if (found.ok()) return *std::move(found);
    }
    return ExactNeighbours(samples, keys, options_.keys_per_sample, pool);
  }

  void LinkTail(const KeyPanels& keys, Linked& linked, ComputePool& pool) const {
    const size_t first = linked.graph.size();
    linked.graph.Resize(keys.size());
    // Of all keys, which takes less than keeping projections would cost in memory.
    const std::vector<float> points = linked.metric->Project(keys, 0, pool);
    GraphBuilder builder(points.data(), linked.metric->dimensions(), options_.build_width,
                         linked.graph, pool);
    const std::vector<uint32_t> spread = SpreadKeys(linked);
    builder.Connect(first, keys.size(), spread);
    builder.Reach(0, spread);
  }

  static std::vector<uint32_t> SpreadKeys(const Linked& linked) {
    const size_t size = linked.graph.size();
    const size_t count = std::min(kSpreadKeys, size);
    std::vector<uint32_t> keys(count);
    for (size_t i = 0; i < count; ++i) keys[i] = static_cast<uint32_t>(i * size / count);
    return keys;
  }

  const GraphOptions options_;
  // One Build or Append at a time. They compute without mu_, which searches take, perhaps in a
  // thread of the pool.
  absl::Mutex build_mu_ ABSL_ACQUIRED_BEFORE(mu_);
  mutable absl::Mutex mu_;
  std::optional<KeyPanels> keys_ ABSL_GUARDED_BY(mu_);  // none before Build
  std::unique_ptr<Linked> linked_ ABSL_GUARDED_BY(mu_);
  mutable ScratchPool scratch_;
};

absl::Status OutOfRange(const char* field, size_t value, size_t least, size_t most) {
  return absl::InvalidArgumentError(
      absl::StrCat(field, ": ", value, ", must be from ", least, " to ", most));
}

}  // namespace

absl::StatusOr<std::unique_ptr<GraphIndex>> MakeGraphIndex(const GraphOptions& options) {
  if (options.degree < 4 || options.degree > 36) return OutOfRange("degree", options.degree, 4, 36);
  const std::pair<const char*, size_t> counts[] = {{"sample_count", options.sample_count},
                                                   {"keys_per_sample", options.keys_per_sample},
                                                   {"build_width", options.build_width},
                                                   {"default_width", options.default_width}};
  for (const auto& [field, value] : counts) {
    if (value == 0 || value > kMostKeys) return OutOfRange(field, value, 1, kMostKeys);
  }
  return std::make_unique<LinkedGraphIndex>(options);
}

}  // namespace terrace
