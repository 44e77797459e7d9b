#ifndef TERRACE_RUNTIME_SPARSE_FFN_H_
#define TERRACE_RUNTIME_SPARSE_FFN_H_

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "absl/types/span.h"
#include "index/compute_pool.h"
#include "runtime/bundle_file.h"
#include "runtime/weight_layout.h"

namespace terrace {

// Which part of a neuron's work is to do.
enum class FfnStage : uint8_t {
  kWhole,  // everything up to what its down column is multiplied by
  kGate,   // only what decides whether it fires
  kRest,   // what kGate left, of neurons that fire
};

// A group of neurons of one layer, in memory.
struct FfnGroup {
  const std::byte* bytes = nullptr;  // [layout.group_bytes()]
  uint32_t group = 0;                // of the layer
  FfnStage stage = FfnStage::kWhole;
  uint8_t verify = 0;       // fragments that nobody verified yet; a bit each
  uint32_t entry = 0;       // the caller's own
  float* scales = nullptr;  // [neurons, tokens], written: what down columns are multiplied by
  // Set by Activate.
  bool intact = true;  // fragments are what was packed; else nothing was computed
  bool fires = false;  // kGate: for some token some neuron does
};

// The input of a layer.
struct FfnInput {
  absl::Span<const float> x;               // [tokens, width]
  absl::Span<const float> expert_weights;  // [tokens, experts], or empty: 1
  size_t tokens = 0;
};

// The arithmetic of a feed-forward layer over groups of its neurons. Results are the same bits for
// any number of threads and any cut of the groups into calls. Thread-compatible.
class SparseFfn {
 public:
  // Everything is borrowed.
  SparseFfn(const BundleFile& file, const WeightLayout& layout, ComputePool& pool);

  // Verifies groups and computes what their down columns are multiplied by; in parallel.
  void Activate(uint32_t layer, const FfnInput& input, absl::Span<FfnGroup> groups);
  // out[t] += scales * down columns, [tokens, width], group after group; in parallel.
  void AddDown(absl::Span<const FfnGroup> groups, size_t tokens, absl::Span<float> out);

  // Over all threads.
  double verify_seconds() const;

 private:
  bool Verify(uint32_t layer, const FfnGroup& group) const;
  void ActivateOne(const FfnInput& input, FfnGroup& group, absl::Span<float> sums) const;
  void AddColumns(absl::Span<const FfnGroup> groups, size_t tokens, size_t token, size_t begin,
                  size_t end, float* out) const;

  const BundleFile& file_;
  const WeightLayout& layout_;
  ComputePool& pool_;
  std::vector<std::vector<float>> sums_;  // [threads][tokens]
  std::atomic<int64_t> verify_nanoseconds_ = 0;
};

}  // namespace terrace

#endif  // TERRACE_RUNTIME_SPARSE_FFN_H_
