#include <cmath>
#include <cstring>
#include <utility>
#include <vector>

#include "io/check.h"
#include "runtime/cuda_vectors.h"
#include "runtime/device_scoring.h"
#include "runtime/scoring_checks.h"

namespace terrace {
namespace {

constexpr char kWhat[] = "CUDA scoring";

class CudaSummaries final : public DeviceSummaries {
 public:
  CudaSummaries(const BlockSummary& summary, const DeviceSummaryOptions& options,
                std::unique_ptr<CudaVectors> vectors)
      : summary_(summary),
        layout_(summary.layout()),
        options_(options),
        vectors_(std::move(vectors)) {}

  absl::Status Append(absl::Span<const std::byte* const> summaries) override {
    const size_t heads = options_.kv_heads;
    if (summaries.size() % heads != 0) {
      return absl::InvalidArgumentError("summaries for some of the KV heads");
    }
    const size_t count = summaries.size() / heads;
    if (absl::Status status = CheckRoom(blocks_, count, options_.blocks, "blocks"); !status.ok()) {
      return status;
    }
    // Vectors of all blocks lie one after the other, and so do their scales, which in a summary
    // would put the next one off its alignment.
    std::vector<int8_t> elements;
    std::vector<float> scales;
    for (size_t head = 0; head < heads && count > 0; ++head) {
      elements.clear();
      scales.clear();
      for (size_t block = 0; block < count; ++block) {
        const std::byte* const summary = summaries[block * heads + head];
        const int8_t* const from = layout_.vectors(summary);
        elements.insert(elements.end(), from, from + layout_.scales_at());
        scales.insert(scales.end(), layout_.scales(summary),
                      layout_.scales(summary) + layout_.count);
      }
      absl::Status status = vectors_->Put(head, blocks_ * layout_.count, elements, scales);
      if (!status.ok()) return status;
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
    if (!status.ok() || scores.empty()) return status;
    const auto scored = ScoreAll(queries);
    if (!scored.ok()) return scored.status();
    return vectors_->Fetch(*scored, scores.size() * sizeof(float), scores.data());
  }

  absl::Status Best(absl::Span<const float> queries, size_t k, absl::Span<uint32_t> best) override {
    absl::Status status = CheckTopK(k, blocks_);
    if (status.ok()) {
      status = CheckRows(options_.kv_heads, options_.head_dim, queries.size(), k, best.size());
    }
    if (!status.ok()) return status;
    const auto scored = ScoreAll(queries);
    if (!scored.ok()) return scored.status();
    const auto found = vectors_->TopK(*scored, queries.size() / options_.head_dim, blocks_, k);
    if (!found.ok()) return found.status();
    return vectors_->Fetch(*found, best.size() * sizeof(uint32_t), best.data());
  }

  double device_seconds() const override { return vectors_->queue().seconds(); }

 private:
  // Where the scores will be on the device.
  absl::StatusOr<const float*> ScoreAll(absl::Span<const float> queries) {
    const size_t head_floats = queries.size() / options_.kv_heads;
    const size_t rows = head_floats / options_.head_dim;
    absl::Status status = vectors_->BeginQueries(rows, 0);
    if (!status.ok()) return status;
    for (size_t head = 0; head < options_.kv_heads; ++head) {
      vectors_->SetQueries(head,
                           summary_.Prepare(queries.subspan(head * head_floats, head_floats)));
    }
    const auto scores = vectors_->Scores(options_.kv_heads * rows * blocks_);
    if (!scores.ok()) return scores.status();
    const auto sent = vectors_->SendQueries(blocks_ * layout_.count);
    if (!sent.ok()) return sent.status();
    status = vectors_->queue().Check(LaunchSummaryScores(
        *sent, static_cast<unsigned>(layout_.count), *scores, vectors_->queue().stream()));
    if (!status.ok()) return status;
    return *scores;
  }

  const BlockSummary& summary_;
  const SummaryLayout layout_;
  const DeviceSummaryOptions options_;
  const std::unique_ptr<CudaVectors> vectors_;
  size_t blocks_ = 0;
};

class CudaClusters final : public DeviceClusters {
 public:
  CudaClusters(const DeviceClusterOptions& options, std::unique_ptr<CudaVectors> vectors)
      : options_(options), vectors_(std::move(vectors)) {}

  absl::Status Reserve() {
    absl::Status status = segment_of_.Reserve(options_.clusters * sizeof(uint32_t));
    if (!status.ok()) return status;
    return spreads_.Reserve(options_.kv_heads * options_.clusters * sizeof(float));
  }

  absl::Status Extend(absl::Span<const ClusterTable* const> tables) override {
    absl::Status status = CheckTables(options_, tables, segments_, /*exactly=*/false);
    if (!status.ok()) return status;
    const size_t count = tables[0]->clusters() - clusters_;
    status = CheckRoom(clusters_, count, options_.clusters, "clusters");
    if (!status.ok() || count == 0) return status;
    for (size_t head = 0; head < tables.size(); ++head) {
      status = Send(head, *tables[head]);
      if (!status.ok()) return status;
    }
    std::vector<uint32_t> segment_of;
    for (size_t i = segments_.size(); i < tables[0]->segments(); ++i) {
      segment_of.insert(segment_of.end(), tables[0]->segment_means(i).clusters,
                        static_cast<uint32_t>(i));
    }
    status = Send(segment_of_, clusters_, segment_of);
    if (!status.ok()) return status;
    for (size_t i = segments_.size(); i < tables[0]->segments(); ++i) {
      segments_.push_back(tables[0]->segment_means(i).clusters);
    }
    clusters_ += count;
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
    if (!status.ok() || logits.empty()) return status;
    const auto scored = ScoreAll(tables, queries);
    if (!scored.ok()) return scored.status();
    return vectors_->Fetch(scored->logits, logits.size() * sizeof(float), logits.data());
  }

  absl::Status Best(absl::Span<const ClusterTable* const> tables, absl::Span<const float> queries,
                    size_t k, absl::Span<uint32_t> best, absl::Span<float> worth) override {
    absl::Status status = CheckTables(options_, tables, segments_, /*exactly=*/true);
    if (status.ok()) status = CheckTopK(k, clusters_);
    if (status.ok()) {
      status = CheckBestClusters(options_, queries.size(), k, best.size(), worth.size());
    }
    if (!status.ok()) return status;
    const auto scored = ScoreAll(tables, queries);
    if (!scored.ok()) return scored.status();
    const size_t rows = queries.size() / options_.kv_heads / options_.head_dim;
    status = vectors_->queue().Check(
        LaunchClusterWorth(scored->logits, static_cast<unsigned>(options_.kv_heads),
                           static_cast<unsigned>(rows), static_cast<unsigned>(clusters_),
                           scored->partials, scored->worth, vectors_->queue().stream()));
    if (!status.ok()) return status;
    const auto found = vectors_->TopK(scored->worth, options_.kv_heads, clusters_, k);
    if (!found.ok()) return found.status();
    // Places and their shares.
    const size_t bytes = best.size() * sizeof(uint32_t);
    fetched_.resize(2 * bytes);
    status = vectors_->Fetch(*found, fetched_.size(), fetched_.data());
    if (!status.ok()) return status;
    std::memcpy(best.data(), fetched_.data(), bytes);
    if (!worth.empty()) std::memcpy(worth.data(), fetched_.data() + bytes, bytes);
    return absl::OkStatus();
  }

  double device_seconds() const override { return vectors_->queue().seconds(); }

 private:
  // On the device.
  struct Scored {
    float* partials;
    float* logits;
    float* worth;
  };

  // Sends the clusters of a head that are not there.
  absl::Status Send(size_t head, const ClusterTable& table) {
    std::vector<int8_t> elements;
    std::vector<float> scales;
    std::vector<float> spreads;
    for (size_t i = segments_.size(); i < table.segments(); ++i) {
      const ClusterTable::SegmentMeans means = table.segment_means(i);
      const int8_t* const from = means.layout.vectors(means.means);
      elements.insert(elements.end(), from, from + means.layout.scales_at());
      scales.insert(scales.end(), means.layout.scales(means.means),
                    means.layout.scales(means.means) + means.clusters);
      spreads.insert(spreads.end(), means.spreads.begin(), means.spreads.end());
    }
    absl::Status status = vectors_->Put(head, clusters_, elements, scales);
    if (!status.ok()) return status;
    return Send(spreads_, head * options_.clusters + clusters_, spreads);
  }

  template <typename T>
  absl::Status Send(const CudaArray& array, size_t first, const std::vector<T>& elements) {
    CudaQueue& queue = vectors_->queue();
    absl::Status status = queue.Enter();
    if (status.ok()) {
      status = queue.Copy(array.data<T>() + first, elements.data(), elements.size() * sizeof(T));
    }
    if (!status.ok()) return status;
    return queue.Check(cudaStreamSynchronize(queue.stream()));
  }

  absl::StatusOr<Scored> ScoreAll(absl::Span<const ClusterTable* const> tables,
                                  absl::Span<const float> queries) {
    const size_t heads = options_.kv_heads;
    const size_t head_floats = queries.size() / heads;
    const size_t rows = head_floats / options_.head_dim;
    const size_t raises = segments_.size() * rows;  // of a head
    absl::Status status = vectors_->BeginQueries(rows, 2 * heads * raises);
    if (!status.ok()) return status;
    const absl::Span<float> shifts = vectors_->extra().first(heads * raises);
    const absl::Span<float> gains = vectors_->extra().subspan(heads * raises);
    for (size_t head = 0; head < heads; ++head) {
      const auto of_head = queries.subspan(head * head_floats, head_floats);
      vectors_->SetQueries(head,
                           SummaryQueries({.count = 1, .dimensions = options_.head_dim}, of_head));
      tables[head]->Raises(of_head, shifts.subspan(head * raises, raises),
                           gains.subspan(head * raises, raises));
    }
    // The partials come first, as pairs want their alignment.
    const size_t partials = heads * rows * CudaWorthPartials(static_cast<unsigned>(clusters_));
    const size_t logits = heads * rows * clusters_;
    const auto scores = vectors_->Scores(partials + logits + heads * clusters_);
    if (!scores.ok()) return scores.status();
    const Scored scored = {
        .partials = *scores, .logits = *scores + partials, .worth = *scores + partials + logits};
    const auto sent = vectors_->SendQueries(clusters_);
    if (!sent.ok()) return sent.status();
    const CudaLogitRaises by = {.log_keys = std::log(static_cast<float>(tables[0]->cluster_keys())),
                                .segments = static_cast<unsigned>(segments_.size()),
                                .segment_of = segment_of_.data<uint32_t>(),
                                .spreads = spreads_.data<float>(),
                                .shifts = vectors_->sent_extra(),
                                .gains = vectors_->sent_extra() + heads * raises};
    CudaQueue& queue = vectors_->queue();
    status = queue.Check(LaunchClusterLogits(*sent, by, scored.logits, queue.stream()));
    if (!status.ok()) return status;
    return scored;
  }

  const DeviceClusterOptions options_;
  const std::unique_ptr<CudaVectors> vectors_;
  CudaArray segment_of_{CudaArray::Where::kDevice};  // [clusters]
  CudaArray spreads_{CudaArray::Where::kDevice};     // [kv_heads, room]
  std::vector<size_t> segments_;                     // clusters of each
  size_t clusters_ = 0;
  std::vector<std::byte> fetched_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<DeviceSummaries>> MakeCudaSummaries(
    const BlockSummary& summary, const DeviceSummaryOptions& options, int device) {
  if (absl::Status status = CheckSummaryOptions(summary, options); !status.ok()) return status;
  const SummaryLayout layout = summary.layout();
  auto vectors = CudaVectors::Create({.kv_heads = options.kv_heads,
                                      .dimensions = layout.dimensions,
                                      .room = options.blocks * layout.count},
                                     device, kWhat);
  if (!vectors.ok()) return vectors.status();
  return std::make_unique<CudaSummaries>(summary, options, *std::move(vectors));
}

absl::StatusOr<std::unique_ptr<DeviceClusters>> MakeCudaClusters(
    const DeviceClusterOptions& options, int device) {
  if (absl::Status status = CheckClusterOptions(options); !status.ok()) return status;
  auto vectors = CudaVectors::Create(
      {.kv_heads = options.kv_heads, .dimensions = options.head_dim, .room = options.clusters},
      device, kWhat);
  if (!vectors.ok()) return vectors.status();
  auto clusters = std::make_unique<CudaClusters>(options, *std::move(vectors));
  if (absl::Status status = clusters->Reserve(); !status.ok()) return status;
  return clusters;
}

}  // namespace terrace
