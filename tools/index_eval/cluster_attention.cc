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
      : head_(head), table_(table), attention_(std::move(attention)) {}

  // Adds what a step gives to `budgets`, one for each of kReadShares.
  void AddStep(size_t step, absl::Span<BudgetFigures> budgets) {
    const absl::Span<const float> queries = head_.step_queries(step);
    const KvRun all = {.keys = head_.keys.data(),
                       .values = head_.values.data(),
                       .tokens = head_.key_count(),
                       .dtype = KvDtype::kFloat16};
    const Partial exact = Attend(queries, all);
    masses_.assign(all.tokens, 0);
    attention_.AddColumnMass(all, {}, exact.lse, absl::MakeSpan(masses_));

    std::vector<float> scaled(queries.begin(), queries.end());
    const float scale = 1 / std::sqrt(static_cast<float>(head_.head_dim));
    for (float& element : scaled) element *= scale;
    table_.Score(scaled, scores_);
    std::vector<uint32_t> chosen;
    for (BudgetFigures& figures : budgets) {
      const size_t budget = KeysOf(figures.share, all.tokens);
      table_.Rank(scores_, {.keys = budget}, chosen);
      AddBudget(queries, chosen, exact, OracleMass(budget), figures);
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

  // The sum over the group of the mass of the `count` best keys.
  double OracleMass(size_t count) {
    sorted_ = masses_;
    const auto end = sorted_.begin() + static_cast<ptrdiff_t>(count);
    std::nth_element(sorted_.begin(), end - 1, sorted_.end(), std::greater<>());
    return std::accumulate(sorted_.begin(), end, 0.0);
  }

  void AddBudget(absl::Span<const float> queries, absl::Span<const uint32_t> chosen,
                 const Partial& exact, double oracle_mass, BudgetFigures& figures) {
    const size_t dim = head_.head_dim;
    std::vector<uint16_t> keys, values;
    double mass = 0;
    for (const uint32_t cluster : chosen) {
      const ClusterTable::Members members = table_.members(cluster);
      for (const uint16_t offset : members.offsets) {
        const size_t key = members.first_key + offset;
        mass += masses_[key];
        const auto row = static_cast<ptrdiff_t>(key * dim);
        keys.insert(keys.end(), head_.keys.begin() + row,
                    head_.keys.begin() + row + static_cast<ptrdiff_t>(dim));
        values.insert(values.end(), head_.values.begin() + row,
                      head_.values.begin() + row + static_cast<ptrdiff_t>(dim));
      }
    }
    const size_t read = keys.size() / dim;
    Partial found = Attend(
        queries,
        {.keys = keys.data(), .values = values.data(), .tokens = read, .dtype = KvDtype::kFloat16});
    figures.error_without += Error(found.out, exact.out, dim);
    Partial rest(head_.group, dim);
    table_.Estimate(scores_, chosen, absl::MakeSpan(rest.out), absl::MakeSpan(rest.lse));
    MergePartials(dim, rest.out, rest.lse, absl::MakeSpan(found.out), absl::MakeSpan(found.lse));
    figures.error += Error(found.out, exact.out, dim);
    figures.read_share += static_cast<double>(read) / static_cast<double>(head_.key_count());
    figures.mass += mass / static_cast<double>(head_.group);
    figures.mass_of_oracle += mass / oracle_mass;
  }

  const EvalHead& head_;
  const ClusterTable& table_;
  AttentionAccumulator attention_;
  ClusterScores scores_;
  std::vector<float> masses_;  // [keys], the sum over the group
  std::vector<float> sorted_;
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
  const absl::Status added = table->Add(keys, &values, keys.size(), pool);
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
    for (double* const sum : {&figures.read_share, &figures.mass, &figures.mass_of_oracle,
                              &figures.error, &figures.error_without}) {
      *sum /= static_cast<double>(head.steps());
    }
  }
  return result;
}

}  // namespace terrace
