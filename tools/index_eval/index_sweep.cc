#include "tools/index_eval/index_sweep.h"

#include <algorithm>
#include <chrono>
#include <functional>
#include <utility>

#include "absl/strings/str_cat.h"
#include "index/key_scores.h"

namespace terrace {
namespace {

using Clock = std::chrono::steady_clock;

double SecondsSince(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

Latency Percentiles(std::vector<double> seconds) {
  std::sort(seconds.begin(), seconds.end());
  const auto at = [&](double share) {
    const auto rank = static_cast<size_t>(share * static_cast<double>(seconds.size()));
    return 1e6 * seconds[std::min(rank, seconds.size() - 1)];
  };
  return {at(0.5), at(0.99)};
}

class Sweep {
 public:
  Sweep(absl::Span<const EvalHead> heads, const SweepOptions& options,
        const std::atomic<bool>& stop, absl::FunctionRef<void(absl::string_view)> progress)
      : heads_(heads),
        options_(options),
        stop_(stop),
        progress_(progress),
        pool_(options.threads) {}

  absl::StatusOr<SweepResult> Run(absl::Span<const IndexKind> kinds) {
    result_.k = options_.k;
    result_.threads = pool_.threads();
    result_.head_dim = heads_[0].head_dim;
    result_.group = heads_[0].group;
    result_.steps = heads_[0].steps();
    result_.samples = heads_[0].samples.size() / heads_[0].head_dim;
    for (const EvalHead& head : heads_) {
      progress_(absl::StrCat("exact attention, ", head.name));
      auto reference = ExactReference::Create(head, options_.k, pool_);
      if (!reference.ok()) return reference.status();
      result_.heads.push_back(head.name);
      result_.head_keys.push_back(head.key_count());
      result_.best_masses.push_back(reference->best_mass());
      references_.push_back(*std::move(reference));
      if (stop_) return Stopped();
    }
    progress_("exact scans");
    result_.scan_group = ScanLatency(result_.group);
    result_.scan_rows = ScanLatency(1);
    for (const IndexKind& kind : kinds) {
      if (absl::Status status = RunKind(kind); !status.ok()) return status;
    }
    return std::move(result_);
  }

 private:
  static absl::Status Stopped() { return absl::CancelledError("interrupted by a signal"); }
  static absl::Status Explain(const absl::Status& status, absl::string_view index,
                              const EvalHead& head) {
    return absl::Status(status.code(),
                        absl::StrCat("index ", index, ", ", head.name, ": ", status.message()));
  }

  // Of exact searches for a group, with `rows` rows in a pass.
  Latency ScanLatency(size_t rows) const {
    constexpr size_t kScans = 24;  // each reads all keys
    const size_t steps = std::min(result_.steps, (kScans + heads_.size() - 1) / heads_.size());
    std::vector<double> seconds;
    std::vector<float> scores, one;
    for (size_t step = 0; step < steps; ++step) {
      for (const EvalHead& head : heads_) {
        const size_t count = head.key_count();
        const size_t k = std::min(options_.k, count);
        scores.resize(count * rows);
        one.resize(count);
        const Clock::time_point start = Clock::now();
        for (size_t first = 0; first < head.group; first += rows) {
          const absl::Span<const float> queries =
              head.step_queries(step).subspan(first * head.head_dim, rows * head.head_dim);
          ScoreRun(queries, head.head_dim, head.keys.data(), KvDtype::kFloat16, count,
                   scores.data());
          for (size_t row = 0; row < rows; ++row) KeepBest(scores, row, rows, k, one);
        }
        seconds.push_back(SecondsSince(start));
      }
    }
    return Percentiles(std::move(seconds));
  }

  // The k best of a row in a heap, as an exact search keeps them.
  static void KeepBest(const std::vector<float>& scores, size_t row, size_t rows, size_t k,
                       std::vector<float>& heap) {
    heap.clear();
    for (size_t at = row; at < scores.size(); at += rows) {
      if (heap.size() < k) {
        heap.push_back(scores[at]);
        std::push_heap(heap.begin(), heap.end(), std::greater<>());
      } else if (scores[at] > heap.front()) {
        std::pop_heap(heap.begin(), heap.end(), std::greater<>());
        heap.back() = scores[at];
        std::push_heap(heap.begin(), heap.end(), std::greater<>());
      }
    }
  }

  absl::Status RunKind(const IndexKind& kind) {
    IndexResult result;
    result.name = kind.name;
    result.kind = kind.kind;
    std::vector<std::unique_ptr<KeyIndex>> indexes;
    for (const EvalHead& head : heads_) {
      progress_(absl::StrCat("building ", kind.name, ", ", head.name));
      auto index = kind.make();
      if (!index.ok()) return Explain(index.status(), kind.name, head);
      const Clock::time_point start = Clock::now();
      const absl::Status status = (*index)->Build(head.panels(), head.samples, pool_);
      if (!status.ok()) return Explain(status, kind.name, head);
      result.build_seconds.push_back(SecondsSince(start));
      result.bytes_per_key.push_back(static_cast<double>((*index)->memory_bytes()) /
                                     static_cast<double>(head.key_count()));
      indexes.push_back(*std::move(index));
      if (stop_) return Stopped();
    }
    const std::vector<size_t> efforts =
        options_.efforts.empty() ? indexes[0]->Efforts(options_.k) : options_.efforts;
    for (const size_t effort : efforts) {
      progress_(absl::StrCat("searching ", kind.name, ", effort ", effort));
      auto searched = Search(kind.name, indexes, effort);
      if (!searched.ok()) return searched.status();
      result.efforts.push_back(*std::move(searched));
      const std::vector<FoundFigures>& found = result.efforts.back().heads;
      if (std::all_of(found.begin(), found.end(), [&](const FoundFigures& figures) {
            return figures.recall >= options_.enough_recall;
          })) {
        break;
      }
    }
    if (absl::Status status = MeasureAttention(kind, result); !status.ok()) return status;
    result_.indexes.push_back(std::move(result));
    return absl::OkStatus();
  }

  absl::Status MeasureAttention(const IndexKind& kind, IndexResult& result) {
    if (!kind.clustering.has_value()) return absl::OkStatus();
    for (const EvalHead& head : heads_) {
      progress_(absl::StrCat("attention with ", kind.name, ", ", head.name));
      auto attention = MeasureClusterAttention(head, *kind.clustering, pool_);
      if (!attention.ok()) return Explain(attention.status(), kind.name, head);
      result.attention.push_back(*std::move(attention));
      if (stop_) return Stopped();
    }
    return absl::OkStatus();
  }

  absl::StatusOr<EffortResult> Search(absl::string_view name,
                                      absl::Span<const std::unique_ptr<KeyIndex>> indexes,
                                      size_t effort) {
    EffortResult result;
    result.effort = effort;
    std::vector<std::vector<KeySearchResult>> found(heads_.size());
    for (auto& steps : found) steps.resize(result_.steps);
    std::vector<double> seconds;
    for (size_t step = 0; step < result_.steps; ++step) {
      for (size_t head = 0; head < heads_.size(); ++head) {
        const absl::Span<const float> queries = heads_[head].step_queries(step);
        // As in decoding, where the memory of earlier results is used again.
        KeySearchResult& to = found[head][step];
        to.keys.reserve(result_.group * options_.k);
        to.scores.reserve(result_.group * options_.k);
        const Clock::time_point start = Clock::now();
        const absl::Status status = indexes[head]->Search(queries, {options_.k, effort}, to);
        seconds.push_back(SecondsSince(start));
        if (!status.ok()) return Explain(status, name, heads_[head]);
      }
      if (stop_) return Stopped();
    }
    result.group_search = Percentiles(std::move(seconds));
    for (size_t head = 0; head < heads_.size(); ++head) {
      auto figures = references_[head].Compare(found[head]);
      if (!figures.ok()) return figures.status();
      result.heads.push_back(*figures);
    }
    return result;
  }

  const absl::Span<const EvalHead> heads_;
  const SweepOptions& options_;
  const std::atomic<bool>& stop_;
  const absl::FunctionRef<void(absl::string_view)> progress_;
  ComputePool pool_;
  std::vector<ExactReference> references_;  // [heads]
  SweepResult result_;
};

}  // namespace

absl::StatusOr<SweepResult> RunIndexSweep(absl::Span<const EvalHead> heads,
                                          absl::Span<const IndexKind> kinds,
                                          const SweepOptions& options,
                                          const std::atomic<bool>& stop,
                                          absl::FunctionRef<void(absl::string_view)> progress) {
  return Sweep(heads, options, stop, progress).Run(kinds);
}

}  // namespace terrace
