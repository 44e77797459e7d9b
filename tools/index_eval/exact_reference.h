#ifndef TERRACE_TOOLS_INDEX_EVAL_EXACT_REFERENCE_H_
#define TERRACE_TOOLS_INDEX_EVAL_EXACT_REFERENCE_H_

#include <cstddef>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "index/compute_pool.h"
#include "index/key_index.h"
#include "tools/index_eval/eval_heads.h"

namespace terrace {

// The share of the keys whose attention mass is the measure for what an index captures.
inline constexpr double kBestShare = 0.03;

// What an index found for the queries of a head, as means over them.
struct FoundFigures {
  double recall = 0;         // of the k best keys; a key as good as the last of them counts
  double scanned_share = 0;  // distinct keys scored, of all keys
  double distances = 0;      // keys and centroids scored
  double mass = 0;           // attention mass of the keys found, of that of all keys
  double mass_of_best = 0;   // the same, of that of the best kBestShare of all keys
  double output_error = 0;   // of attention over the keys found, relative, Euclidean
};

// Exact search and attention for the queries of one head, with which results are compared. Borrows
// the head. Thread-compatible once created; Compare is thread-safe.
class ExactReference {
 public:
  // Errors of AttentionAccumulator::Create.
  static absl::StatusOr<ExactReference> Create(const EvalHead& head, size_t k, ComputePool& pool);

  // `found` has a result for each step of the head. Errors of AttentionAccumulator::Create.
  absl::StatusOr<FoundFigures> Compare(absl::Span<const KeySearchResult> found) const;

  // The attention mass of the best kBestShare of the keys, the mean over the queries.
  double best_mass() const;

 private:
  struct Row {
    float worst_score = 0;  // of the k best keys
    float lse = 0;          // of the scaled scores of all keys
    double best_mass = 0;   // of the best kBestShare
    std::vector<float> output;
  };

  ExactReference(const EvalHead& head, size_t k) : head_(&head), k_(k) {}
  absl::Status AddStep(size_t step);
  absl::Status CompareRow(size_t row, absl::Span<const uint32_t> found,
                          FoundFigures& figures) const;

  const EvalHead* head_;
  size_t k_;               // at most as many as there are keys
  std::vector<Row> rows_;  // [steps * group]
};

}  // namespace terrace

#endif  // TERRACE_TOOLS_INDEX_EVAL_EXACT_REFERENCE_H_
