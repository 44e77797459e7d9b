#include "tools/index_eval/cluster_attention.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstring>
#include <functional>
#include <numeric>
#include <utility>

#include "absl/types/span.h"
#include "index/cluster_table.h"
#include "runtime/attention.h"

namespace terrace {
namespace {

// Attention of the heads of a group, or of a part of their keys.
struct Partial {
  Partial(size_t rows, size_t dim) : out(rows * dim), lse(rows) {}

  std::vector<float> out;  // [rows, head_dim]
  std::vector<float> lse;  // [rows]
};

// |a - b| / |b|, the mean over the rows.
double Error(const std::vector<float>& a, const std::vector<float>& b, size_t dim) {
  const size_t rows = b.size() / dim;
  double sum = 0;
  for (size_t row = 0; row < rows; ++row) {
    double apart = 0, size = 0;
    for (size_t i = row * dim; i < (row + 1) * dim; ++i) {
      apart += std::pow(double{a[i]} - double{b[i]}, 2);
      size += double{b[i]} * double{b[i]};
    }
    if (size > 0) sum += std::sqrt(apart / size);
  }
  return sum / static_cast<double>(rows);
}

size_t KeysOf(double share, size_t keys) {
  return std::max<size_t>(1, static_cast<size_t>(share * static_cast<double>(keys)));
}

// Decodes steps of one head.
class Decoder {
 public:
  Decoder(const EvalHead& head, const ClusterTable& table, AttentionAccumulator attention)
      : head_(head),
        table_(table),
        attention_(std::move(attention)),
        exact_(head.group, head.head_dim),
        rest_(head.group, head.head_dim) {}

  // Adds what a step gives to `budgets`, one for each of kReadShares.
  void AddStep(size_t step, absl::Span<BudgetFigures> budgets) {
    const absl::Span<const float> queries = head_.step_queries(step);
    const KvRun all = {.keys = head_.keys.data(),
                       .values = head_.values.data(),
                       .tokens = head_.key_count(),
                       .dtype = KvDtype::kFloat16};
    exact_ = Attend(queries, all);
    masses_.assign(all.tokens, 0);
    attention_.AddColumnMass(all, {}, exact_.lse, absl::MakeSpan(masses_));
    best_masses_.assign(masses_.begin(), masses_.end());
    std::sort(best_masses_.begin(), best_masses_.end(), std::greater<>());
    std::partial_sum(best_masses_.begin(), best_masses_.end(), best_masses_.begin());

    std::vector<float> scaled(queries.begin(), queries.end());
    const float scale = 1 / std::sqrt(static_cast<float>(head_.head_dim));
    for (float& element : scaled) element *= scale;
    table_.Score(scaled, scores_);
    const size_t loose = all.tokens - table_.keys();
    for (BudgetFigures& figures : budgets) {
      const size_t budget = KeysOf(figures.share, all.tokens);
      const size_t of_table = budget - std::min(budget, loose);
      ReadClusters(of_table);
      AddRead(queries, budget, figures.whole_clusters);
      ReadKeys(of_table);
      AddRead(queries, budget, figures.single_keys);
    }
  }

 private:
  Partial Attend(absl::Span<const float> queries, const KvRun& run) {
    Partial partial(head_.group, head_.head_dim);
    attention_.Reset(queries);
    attention_.Add(run);
    attention_.Finish(absl::MakeSpan(partial.out), absl::MakeSpan(partial.lse));
    return partial;
  }

  // Puts the keys of the best clusters into read_, and what the others are estimated to give into
  // rest_.
  void ReadClusters(size_t budget) {
    std::vector<uint32_t> chosen;
    // Rank would buy a cluster even with nothing.
    if (budget > 0 && table_.clusters() > 0) table_.Rank(scores_, {.keys = budget}, chosen);
    BeginRead();
    for (const uint32_t cluster : chosen) {
      const ClusterTable::Members members = table_.members(cluster);
      for (const uint16_t offset : members.offsets) Read(members.first_key + offset);
    }
    table_.Estimate(scores_, chosen, absl::MakeSpan(rest_.out), absl::MakeSpan(rest_.lse));
  }

  // The same for the best keys.
  void ReadKeys(size_t budget) {
    KeyChoice chosen;
    table_.RankKeys(scores_, {.keys = budget}, chosen);
    BeginRead();
    for (size_t i = 0; i < chosen.clusters.size(); ++i) {
      const ClusterTable::Members members = table_.members(chosen.clusters[i]);
      for (size_t at = chosen.begins[i]; at < chosen.begins[i + 1]; ++at) {
        Read(members.first_key + members.offsets[chosen.places[at]]);
      }
    }
    table_.Estimate(scores_, chosen, absl::MakeSpan(rest_.out), absl::MakeSpan(rest_.lse));
  }

  // Reads the last keys, of which the table knows nothing.
  void BeginRead() {
    read_keys_.clear();
    read_values_.clear();
    read_mass_ = 0;
    for (size_t key = table_.keys(); key < head_.key_count(); ++key) Read(key);
  }

  void Read(size_t key) {
    const auto row = static_cast<ptrdiff_t>(key * head_.head_dim);
    const auto end = row + static_cast<ptrdiff_t>(head_.head_dim);
    read_keys_.insert(read_keys_.end(), head_.keys.begin() + row, head_.keys.begin() + end);
    read_values_.insert(read_values_.end(), head_.values.begin() + row, head_.values.begin() + end);
    read_mass_ += double{masses_[key]};
  }

  void AddRead(absl::Span<const float> queries, size_t budget, ReadFigures& figures) {
    const size_t dim = head_.head_dim;
    const size_t read = read_keys_.size() / dim;
    Partial found = Attend(queries, {.keys = read_keys_.data(),
                                     .values = read_values_.data(),
                                     .tokens = read,
                                     .dtype = KvDtype::kFloat16});
    figures.error_without += Error(found.out, exact_.out, dim);
    MergePartials(dim, rest_.out, rest_.lse, absl::MakeSpan(found.out), absl::MakeSpan(found.lse));
    figures.error += Error(found.out, exact_.out, dim);
    figures.read_share += static_cast<double>(read) / static_cast<double>(head_.key_count());
    figures.mass += read_mass_ / static_cast<double>(head_.group);
    figures.mass_of_oracle += read_mass_ / best_masses_[std::max(budget, read) - 1];
  }

  const EvalHead& head_;
  const ClusterTable& table_;
  AttentionAccumulator attention_;

  // Of the step.
  Partial exact_;
  ClusterScores scores_;
  std::vector<float> masses_;        // [keys], the sum over the group
  std::vector<double> best_masses_;  // [keys]: of the best key, of the two best, and so on

  // Of the last choice.
  std::vector<uint16_t> read_keys_;    // [read, head_dim] fp16
  std::vector<uint16_t> read_values_;  // [read, head_dim] fp16
  double read_mass_ = 0;               // the sum over the group
  Partial rest_;                       // of the keys that are not read, estimated
};

}  // namespace

absl::StatusOr<ClusterAttention> MeasureClusterAttention(const EvalHead& head,
                                                         const ClusteringOptions& options,
                                                         ComputePool& pool) {
  using Clock = std::chrono::steady_clock;
  const Clock::time_point start = Clock::now();
  const KeyPanels keys = head.panels();
  const KeyPanels values =
      KeyPanels::Contiguous(head.values.data(), head.key_count(), head.head_dim, KvDtype::kFloat16);
  absl::StatusOr<ClusterTable> table = ClusterTable::Create(
      {.head_dim = head.head_dim,
       .has_values = true,
       .spread_correction = true,
       .clustering = options},
      head.samples.empty() ? QuerySpace(head.head_dim) : QuerySpace(head.samples, keys));
  if (!table.ok()) return table.status();
  const size_t clustered = keys.size() - keys.size() % table->cluster_keys();
  const absl::Status added = table->Add(keys, &values, clustered, pool);
  if (!added.ok()) return added;

  ClusterAttention result;
  result.build_seconds = std::chrono::duration<double>(Clock::now() - start).count();
  const auto bytes = static_cast<double>(table->memory_bytes());
  result.bytes_per_key = bytes / static_cast<double>(keys.size());
  result.kv_share = bytes / static_cast<double>(2 * keys.size() * keys.key_bytes());
  for (const double share : kReadShares) {
    result.budgets.emplace_back();
    result.budgets.back().share = share;
  }
  absl::StatusOr<AttentionAccumulator> attention =
      AttentionAccumulator::Create(head.group, head.head_dim);
  if (!attention.ok()) return attention.status();
  Decoder decoder(head, *table, *std::move(attention));
  for (size_t step = 0; step < head.steps(); ++step) {
    decoder.AddStep(step, absl::MakeSpan(result.budgets));
  }
  for (BudgetFigures& figures : result.budgets) {
    for (ReadFigures* const read : {&figures.whole_clusters, &figures.single_keys}) {
      for (double* const sum : {&read->read_share, &read->mass, &read->mass_of_oracle, &read->error,
                                &read->error_without}) {
        *sum /= static_cast<double>(head.steps());
      }
    }
  }
  return result;
}

}  // namespace terrace
