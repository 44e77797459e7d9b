#include "index/flat_index.h"

#include <algorithm>
#include <cstdint>
#include <optional>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "index/best_keys.h"
#include "index/key_input.h"
#include "index/key_scores.h"

namespace terrace {
namespace {

// Keys scored at a time. Their scores stay in the first cache level until they are ranked.
constexpr size_t kTileKeys = 512;

class FlatIndex final : public KeyIndex {
 public:
  absl::Status Build(const KeyPanels& keys, absl::Span<const float> sample_queries,
                     ComputePool& pool) override {
    absl::MutexLock lock(&mu_);
    if (absl::Status status = CheckBuild(keys, sample_queries, pool); !status.ok()) return status;
    keys_.emplace(keys);
    return absl::OkStatus();
  }

  absl::Status Append(const KeyPanels& keys, ComputePool& pool) override {
    absl::MutexLock lock(&mu_);
    if (absl::Status status = CheckAppend(keys_, keys, pool); !status.ok()) return status;
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
    Scan(queries, options.k, result);
    return absl::OkStatus();
  }

  absl::string_view name() const override { return "flat"; }
  size_t size() const override {
    absl::ReaderMutexLock lock(&mu_);
    return keys_.has_value() ? keys_->size() : 0;
  }
  size_t memory_bytes() const override {
    absl::ReaderMutexLock lock(&mu_);
    return sizeof(*this) + PanelListBytes(keys_);
  }
  std::vector<size_t> Efforts(size_t) const override { return {std::max<size_t>(size(), 1)}; }

 private:
  void Scan(absl::Span<const float> queries, size_t k, KeySearchResult& result) const
      ABSL_SHARED_LOCKS_REQUIRED(mu_) {
    const size_t head_dim = keys_->head_dim();
    const size_t rows = queries.size() / head_dim;
    if (rows == 0) return;
    std::vector<BestKeys> best(rows, BestKeys(std::min(k, keys_->size())));
    std::vector<float> scores(std::min(kTileKeys, keys_->size()) * rows);
    for (size_t key = 0; key < keys_->size();) {
      const size_t count = std::min(keys_->Run(key), kTileKeys);
      ScoreRun(queries, head_dim, keys_->key(key), keys_->dtype(), count, scores.data());
      for (size_t row = 0; row < rows; ++row) {
        for (size_t i = 0; i < count; ++i) {
          best[row].Offer(static_cast<uint32_t>(key + i), scores[i * rows + row]);
        }
      }
      key += count;
    }
    for (size_t row = 0; row < rows; ++row) {
      best[row].Drain(absl::MakeSpan(result.keys).subspan(row * k, k),
                      absl::MakeSpan(result.scores).subspan(row * k, k));
    }
    result.scored_keys = uint64_t{keys_->size()} * rows;
  }

  mutable absl::Mutex mu_;
  std::optional<KeyPanels> keys_ ABSL_GUARDED_BY(mu_);  // nullopt before Build
};

}  // namespace

std::unique_ptr<KeyIndex> MakeFlatIndex() { return std::make_unique<FlatIndex>(); }

}  // namespace terrace
