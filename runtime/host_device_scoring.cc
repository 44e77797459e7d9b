#include <algorithm>
#include <cmath>
#include <utility>
#include <vector>

#include "index/cluster_kernels.h"
#include "index/compute_pool.h"
#include "io/check.h"
#include "runtime/device_scoring.h"
#include "runtime/scoped_seconds.h"
#include "runtime/scoring_checks.h"
#include "runtime/top_k.h"

namespace terrace {
namespace {

// What a job scores of one head.
constexpr size_t kJobBlocks = 256;

class HostSummaries final : public DeviceSummaries {
 public:
  HostSummaries(const BlockSummary& summary, const DeviceSummaryOptions& options)
      : summary_(summary),
        options_(options),
        pool_(options.threads),
        bytes_(options.kv_heads * options.blocks * summary.bytes()) {
    const std::byte* at = bytes_.data();
    summaries_.resize(options.kv_heads * options.blocks);
    for (const std::byte*& of_block : summaries_) {
      of_block = at;
      at += summary.bytes();
    }
  }

  absl::Status Append(absl::Span<const std::byte* const> summaries) override {
    const size_t heads = options_.kv_heads;
    if (summaries.size() % heads != 0) {
      return absl::InvalidArgumentError("summaries for some of the KV heads");
    }
    const size_t count = summaries.size() / heads;
    if (absl::Status status = CheckRoom(blocks_, count, options_.blocks, "blocks"); !status.ok()) {
      return status;
    }
    for (size_t i = 0; i < summaries.size(); ++i) {
      const size_t place = i % heads * options_.blocks + blocks_ + i / heads;
      std::copy_n(summaries[i], summary_.bytes(), bytes_.data() + place * summary_.bytes());
    }
    blocks_ += count;
    return absl::OkStatus();
  }

  void Truncate(size_t blocks) override {
    TERRACE_CHECK(blocks <= blocks_);
    blocks_ = blocks;
  }
  size_t blocks() const override { return blocks_; }

  absl::Status Score(absl::Span<const float> queries, absl::Span<float> scores) override {
    absl::Status status =
        CheckRows(options_.kv_heads, options_.head_dim, queries.size(), blocks_, scores.size());
    if (!status.ok()) return status;
    seconds_ = 0;
    const ScopedSeconds timer(seconds_);
    ScoreAll(queries, scores.data());
    return absl::OkStatus();
  }

  absl::Status Best(absl::Span<const float> queries, size_t k, absl::Span<uint32_t> best) override {
    absl::Status status = CheckTopK(k, blocks_);
    if (status.ok()) {
      status = CheckRows(options_.kv_heads, options_.head_dim, queries.size(), k, best.size());
    }
    if (!status.ok()) return status;
    seconds_ = 0;
    const ScopedSeconds timer(seconds_);
    const size_t arrays = queries.size() / options_.head_dim;
    scores_.resize(arrays * blocks_);
    ScoreAll(queries, scores_.data());
    pool_.ForEach(arrays, [&](size_t i, size_t) {
      LargestScores(scores_.data() + i * blocks_, blocks_, k, best.data() + i * k);
    });
    return absl::OkStatus();
  }

  double device_seconds() const override { return seconds_; }

 private:
  void ScoreAll(absl::Span<const float> queries, float* scores) {
    const size_t head_floats = queries.size() / options_.kv_heads;
    const size_t rows = head_floats / options_.head_dim;
    const size_t head_jobs = (blocks_ + kJobBlocks - 1) / kJobBlocks;
    by_worker_.resize(pool_.threads());
    pool_.ForEach(options_.kv_heads * head_jobs, [&](size_t job, size_t worker) {
      const size_t head = job / head_jobs;
      const size_t first = job % head_jobs * kJobBlocks;
      const size_t count = std::min(kJobBlocks, blocks_ - first);
      std::vector<float>& some = by_worker_[worker];
      some.resize(rows * count);
      summary_.Score(queries.subspan(head * head_floats, head_floats),
                     absl::MakeConstSpan(summaries_).subspan(head * options_.blocks + first, count),
                     absl::MakeSpan(some));
      for (size_t row = 0; row < rows; ++row) {
        std::copy_n(some.data() + row * count, count,
                    scores + (head * rows + row) * blocks_ + first);
      }
    });
  }

  const BlockSummary& summary_;
  const DeviceSummaryOptions options_;
  ComputePool pool_;
  std::vector<std::byte> bytes_;             // [kv_heads, room, summary bytes]
  std::vector<const std::byte*> summaries_;  // [kv_heads, room]
  size_t blocks_ = 0;
  std::vector<float> scores_;
  std::vector<std::vector<float>> by_worker_;
  double seconds_ = 0;
};

// Keeps nothing: the tables are here.
class HostClusters final : public DeviceClusters {
 public:
  explicit HostClusters(const DeviceClusterOptions& options)
      : options_(options), pool_(options.threads) {}

  absl::Status Extend(absl::Span<const ClusterTable* const> tables) override {
    absl::Status status = CheckTables(options_, tables, segments_, /*exactly=*/false);
    if (status.ok()) {
      status =
          CheckRoom(clusters_, tables[0]->clusters() - clusters_, options_.clusters, "clusters");
    }
    if (!status.ok()) return status;
    for (size_t i = segments_.size(); i < tables[0]->segments(); ++i) {
      segments_.push_back(tables[0]->segment_means(i).clusters);
      clusters_ += segments_.back();
    }
    return absl::OkStatus();
  }

  void Truncate(size_t segments) override {
    TERRACE_CHECK(segments <= segments_.size());
    for (; segments_.size() > segments; segments_.pop_back()) clusters_ -= segments_.back();
  }
  size_t clusters() const override { return clusters_; }

  absl::Status Score(absl::Span<const ClusterTable* const> tables, absl::Span<const float> queries,
                     absl::Span<float> logits) override {
    absl::Status status = CheckTables(options_, tables, segments_, /*exactly=*/true);
    if (status.ok()) {
      status =
          CheckRows(options_.kv_heads, options_.head_dim, queries.size(), clusters_, logits.size());
    }
    if (!status.ok()) return status;
    seconds_ = 0;
    const ScopedSeconds timer(seconds_);
    ScoreAll(tables, queries, logits.data());
    return absl::OkStatus();
  }

  absl::Status Best(absl::Span<const ClusterTable* const> tables, absl::Span<const float> queries,
                    size_t k, absl::Span<uint32_t> best, absl::Span<float> worth) override {
    absl::Status status = CheckTables(options_, tables, segments_, /*exactly=*/true);
    if (status.ok()) status = CheckTopK(k, clusters_);
    if (status.ok())
      status = CheckBestClusters(options_, queries.size(), k, best.size(), worth.size());
    if (!status.ok()) return status;
    seconds_ = 0;
    const ScopedSeconds timer(seconds_);
    const size_t rows = queries.size() / options_.kv_heads / options_.head_dim;
    logits_.resize(options_.kv_heads * rows * clusters_);
    worth_.assign(options_.kv_heads * clusters_, 0.0f);
    ScoreAll(tables, queries, logits_.data());
    pool_.ForEach(options_.kv_heads, [&](size_t head, size_t) {
      float* const shares = worth_.data() + head * clusters_;
      for (size_t row = 0; row < rows; ++row) {
        float* const weights = logits_.data() + (head * rows + row) * clusters_;
        const double total =
            WeighLogits(weights, clusters_, LargestLogit(weights, clusters_), weights);
        AddShares(weights, clusters_, static_cast<float>(1 / total), shares);
      }
      // Products of huge keys overflow, perhaps both ways at once.
      for (size_t c = 0; c < clusters_; ++c) shares[c] = shares[c] > 0 ? shares[c] : 0;
      LargestScores(shares, clusters_, k, best.data() + head * k);
      for (size_t i = 0; i < (worth.empty() ? 0 : k); ++i) {
        worth[head * k + i] = shares[best[head * k + i]];
      }
    });
    return absl::OkStatus();
  }

  double device_seconds() const override { return seconds_; }

 private:
  void ScoreAll(absl::Span<const ClusterTable* const> tables, absl::Span<const float> queries,
                float* logits) {
    const size_t head_floats = queries.size() / options_.kv_heads;
    const size_t rows = head_floats / options_.head_dim;
    const float log_keys = std::log(static_cast<float>(tables[0]->cluster_keys()));
    std::vector<SummaryQueries> prepared;
    std::vector<float> shifts(options_.kv_heads * segments_.size() * rows);
    std::vector<float> gains(shifts.size());
    const size_t head_raises = segments_.size() * rows;
    for (size_t head = 0; head < tables.size(); ++head) {
      const auto of_head = queries.subspan(head * head_floats, head_floats);
      prepared.emplace_back(SummaryLayout{.count = 1, .dimensions = options_.head_dim}, of_head);
      tables[head]->Raises(of_head, absl::MakeSpan(shifts).subspan(head * head_raises, head_raises),
                           absl::MakeSpan(gains).subspan(head * head_raises, head_raises));
    }
    std::vector<size_t> firsts(segments_.size());
    for (size_t i = 1; i < firsts.size(); ++i) firsts[i] = firsts[i - 1] + segments_[i - 1];
    pool_.ForEach(tables.size() * segments_.size(), [&](size_t job, size_t) {
      const size_t head = job / segments_.size();
      const size_t segment = job % segments_.size();
      const ClusterTable::SegmentMeans means = tables[head]->segment_means(segment);
      float* const to = logits + head * rows * clusters_ + firsts[segment];
      prepared[head].ScoreEach(means.layout, means.means, clusters_, to);
      std::vector<float> plain(means.clusters);
      for (size_t row = 0; row < rows; ++row) {
        float* const of_row = to + row * clusters_;
        std::copy_n(of_row, means.clusters, plain.data());
        RaiseLogits(means.spreads.data(), means.clusters,
                    {.shift = shifts[job * rows + row],
                     .gain = gains[job * rows + row],
                     .log_keys = log_keys},
                    plain.data(), of_row);
      }
    });
  }

  const DeviceClusterOptions options_;
  ComputePool pool_;
  std::vector<size_t> segments_;  // clusters of each
  size_t clusters_ = 0;
  std::vector<float> logits_;
  std::vector<float> worth_;  // [kv_heads, clusters]
  double seconds_ = 0;
};

}  // namespace

absl::StatusOr<std::unique_ptr<DeviceSummaries>> MakeHostSummaries(
    const BlockSummary& summary, const DeviceSummaryOptions& options) {
  if (absl::Status status = CheckSummaryOptions(summary, options); !status.ok()) return status;
  return std::make_unique<HostSummaries>(summary, options);
}

absl::StatusOr<std::unique_ptr<DeviceClusters>> MakeHostClusters(
    const DeviceClusterOptions& options) {
  if (absl::Status status = CheckClusterOptions(options); !status.ok()) return status;
  return std::make_unique<HostClusters>(options);
}

}  // namespace terrace
