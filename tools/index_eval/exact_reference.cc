#include "tools/index_eval/exact_reference.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <functional>

#include "index/key_scores.h"
#include "runtime/attention.h"

namespace terrace {
namespace {

double Norm(absl::Span<const float> vector) {
  double sum = 0;
  for (const float x : vector) sum += static_cast<double>(x) * x;
  return std::sqrt(sum);
}

}  // namespace

absl::StatusOr<ExactReference> ExactReference::Create(const EvalHead& head, size_t k,
                                                      ComputePool& pool) {
  ExactReference reference(head, std::min(k, head.key_count()));
  reference.rows_.resize(head.steps() * head.group);
  std::vector<absl::Status> statuses(head.steps());
  pool.ForEach(head.steps(),
               [&](size_t step, size_t) { statuses[step] = reference.AddStep(step); });
  for (const absl::Status& status : statuses) {
    if (!status.ok()) return status;
  }
  return reference;
}

absl::Status ExactReference::AddStep(size_t step) {
  const size_t count = head_->key_count(), group = head_->group, dim = head_->head_dim;
  const absl::Span<const float> queries = head_->step_queries(step);
  auto attention = AttentionAccumulator::Create(group, dim);
  if (!attention.ok()) return attention.status();
  attention->Reset(queries);
  attention->Add({head_->keys.data(), head_->values.data(), count, KvDtype::kFloat16});
  std::vector<float> output(group * dim), lse(group), scores(count * group), one(count);
  attention->Finish(absl::MakeSpan(output), absl::MakeSpan(lse));
  ScoreRun(queries, dim, head_->keys.data(), KvDtype::kFloat16, count, scores.data());
  const auto best = std::max<size_t>(
      1, static_cast<size_t>(std::llround(kBestShare * static_cast<double>(count))));
  const double scale = 1 / std::sqrt(static_cast<double>(dim));
  for (size_t member = 0; member < group; ++member) {
    for (size_t i = 0; i < count; ++i) one[i] = scores[i * group + member];
    Row& row = rows_[step * group + member];
    const auto nth = [&](size_t n) { return one.begin() + static_cast<ptrdiff_t>(n); };
    std::nth_element(one.begin(), nth(best - 1), one.end(), std::greater<>());
    for (size_t i = 0; i < best; ++i) row.best_mass += std::exp(one[i] * scale - lse[member]);
    std::nth_element(one.begin(), nth(k_ - 1), one.end(), std::greater<>());
    row.worst_score = one[k_ - 1];
    row.lse = lse[member];
    row.output.assign(output.begin() + static_cast<ptrdiff_t>(member * dim),
                      output.begin() + static_cast<ptrdiff_t>((member + 1) * dim));
  }
  return absl::OkStatus();
}

absl::Status ExactReference::CompareRow(size_t row, absl::Span<const uint32_t> found,
                                        FoundFigures& figures) const {
  const size_t dim = head_->head_dim;
  const Row& exact = rows_[row];
  const absl::Span<const float> query(head_->queries.data() + row * dim, dim);
  std::vector<float> scores(found.size());
  ScoreKeys(query, head_->panels(), found, scores.data());
  // Kernels of different batches may add up in different orders.
  const float enough = exact.worst_score - 1e-5f * std::abs(exact.worst_score);
  const auto hits = static_cast<size_t>(
      std::count_if(scores.begin(), scores.end(), [&](float score) { return score >= enough; }));
  figures.recall += static_cast<double>(std::min(hits, k_)) / static_cast<double>(k_);

  auto attention = AttentionAccumulator::Create(1, dim);
  if (!attention.ok()) return attention.status();
  std::vector<uint16_t> keys(found.size() * dim), values(found.size() * dim);
  for (size_t i = 0; i < found.size(); ++i) {
    std::memcpy(keys.data() + i * dim, head_->keys.data() + found[i] * dim, 2 * dim);
    std::memcpy(values.data() + i * dim, head_->values.data() + found[i] * dim, 2 * dim);
  }
  attention->Reset(query);
  attention->Add({keys.data(), values.data(), found.size(), KvDtype::kFloat16});
  std::vector<float> output(dim);
  float lse = 0;
  attention->Finish(absl::MakeSpan(output), {&lse, 1});
  const double mass = std::exp(static_cast<double>(lse) - exact.lse);
  figures.mass += mass;
  figures.mass_of_best += mass / exact.best_mass;
  for (size_t i = 0; i < dim; ++i) output[i] -= exact.output[i];
  const double size = Norm(exact.output);
  figures.output_error += size > 0 ? Norm(output) / size : 0;
  return absl::OkStatus();
}

absl::StatusOr<FoundFigures> ExactReference::Compare(
    absl::Span<const KeySearchResult> found) const {
  FoundFigures figures;
  for (size_t step = 0; step < found.size(); ++step) {
    const size_t width = found[step].keys.size() / head_->group;
    for (size_t member = 0; member < head_->group; ++member) {
      absl::Span<const uint32_t> keys(found[step].keys.data() + member * width, width);
      const auto end = std::find(keys.begin(), keys.end(), KeySearchResult::kNoKey);
      keys = keys.first(static_cast<size_t>(end - keys.begin()));
      const absl::Status status = CompareRow(step * head_->group + member, keys, figures);
      if (!status.ok()) return status;
    }
    const auto scored = static_cast<double>(found[step].scored_keys);
    figures.scanned_share += scored / static_cast<double>(head_->key_count());
    figures.distances += scored + static_cast<double>(found[step].scored_centroids);
  }
  for (double* const sum : {&figures.recall, &figures.scanned_share, &figures.distances,
                            &figures.mass, &figures.mass_of_best, &figures.output_error}) {
    *sum /= static_cast<double>(rows_.size());
  }
  return figures;
}

double ExactReference::best_mass() const {
  double sum = 0;
  for (const Row& row : rows_) sum += row.best_mass;
  return sum / static_cast<double>(rows_.size());
}

}  // namespace terrace
