#ifndef TERRACE_TESTS_SUPPORT_CONTEXT_RIG_H_
#define TERRACE_TESTS_SUPPORT_CONTEXT_RIG_H_

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <vector>

#include "absl/status/status.h"
#include "runtime/runtime.h"
#include "tests/support/temp_dir.h"

namespace terrace {

// A small shape, blocks of one page, and memory for all of it.
RuntimeOptions SmallRuntime();

// A made-up model: queries, keys and values follow from seed, layer, position and head alone, so
// every context of a rig holds the same ones. Keys and queries are in ModelShape::key_state.
class ContextRig {
 public:
  // With an NVMe tier in `options` and no directory, in one of its own.
  explicit ContextRig(RuntimeOptions options, uint64_t seed = 1, TierManager::Parts parts = {});

  Runtime& runtime() { return *runtime_; }
  const RuntimeOptions& options() const { return options_; }
  const ModelShape& shape() const { return options_.shape; }
  // Closes the runtime, which must have no context left, and opens it again with what it left.
  void Reopen() {
    ReopenWith([] {});
  }
  // The same, with something done, and the options changed, in between.
  void ReopenWith(
      const std::function<void()>& in_between,
      const std::function<void(RuntimeOptions&)>& change = [](RuntimeOptions&) {});

  std::vector<float> Queries(size_t layer, int64_t position) const;  // [query_heads, head_dim]
  std::vector<float> Keys(size_t layer, int64_t position) const;     // [kv_heads, head_dim]
  std::vector<float> Values(size_t layer, int64_t position) const;

  // The next `tokens` tokens of one layer, and the attention of their queries.
  absl::Status Append(Context& context, size_t layer, size_t tokens) const;
  absl::StatusOr<std::vector<float>> Attend(Context& context, size_t layer, int64_t first_position,
                                            size_t positions,
                                            std::vector<float>* lse = nullptr) const;
  // A step of the model: `tokens` tokens through all layers. Returns the output of each layer.
  absl::StatusOr<std::vector<std::vector<float>>> Step(Context& context, size_t tokens) const;
  // Steps of `chunk` tokens until the context has `tokens`.
  absl::Status Prefill(Context& context, int64_t tokens, size_t chunk) const;

  // Attention in float64 of the query at `position` over the tokens that `sees` names, with keys
  // and values as they are stored: [query_heads, head_dim].
  std::vector<double> Expected(size_t layer, int64_t position,
                               const std::function<bool(int64_t)>& sees) const;
  // The largest error relative to the largest expected element.
  static double Error(absl::Span<const float> got, absl::Span<const double> expected);

 private:
  std::vector<float> Row(int kind, size_t layer, int64_t position, size_t elements) const;

  TempDir directory_;
  RuntimeOptions options_;
  const uint64_t seed_;
  std::unique_ptr<Runtime> runtime_;
};

}  // namespace terrace

#endif  // TERRACE_TESTS_SUPPORT_CONTEXT_RIG_H_
