#ifndef TERRACE_RUNTIME_NEURON_PREDICTOR_H_
#define TERRACE_RUNTIME_NEURON_PREDICTOR_H_

#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "index/compute_pool.h"
#include "runtime/bundle_file.h"

namespace terrace {

// Says which neurons of a layer fire for a token, before their weights are there. For networks
// with ReLU and one expert a layer. Thread-compatible. Where one is given, `pool` computes what is
// large enough; it outlives the predictor, and nothing that runs in it may call the predictor.
class NeuronPredictor {
 public:
  virtual ~NeuronPredictor() = default;

  // "oracle", "low-rank", "core", "gate-first", "all".
  virtual const char* name() const = 0;
  // Replaces `places`, ascending, by those of the neurons that are expected to fire for x,
  // [width], the input of the layer's network. Errors are those of reading.
  virtual absl::Status Predict(uint32_t layer, absl::Span<const float> x,
                               std::vector<uint32_t>& places) = 0;
  // Tokens of a prompt, [tokens, width], whose network is computed without a prediction. `begins`:
  // they are the first of a text. Errors are those of reading.
  virtual absl::Status Observe(uint32_t layer, bool begins, absl::Span<const float> x);
  // Of memory, beside the directory of the bundle file.
  virtual size_t memory_bytes() const { return 0; }
};

// All neurons: what paging costs without a prediction. With a gate-first file, whose pager reads
// what does not fire only in part, this is how PowerInfer-2 needs no other predictor.
std::unique_ptr<NeuronPredictor> MakeAllPredictor(const BundleShape& shape);

// Those that fire, exactly: gate rows stay in memory, which is why this is for measuring. The sums
// are the pager's own, bit for bit. Errors are those of reading the file, and of CheckPredictable.
absl::StatusOr<std::unique_ptr<NeuronPredictor>> MakeOraclePredictor(
    std::shared_ptr<const BundleFile> file, ComputePool* pool = nullptr);

// By the low-rank factors of the file, which stay in memory with it. kInvalidArgument, naming the
// file, when it has none; otherwise the errors of CheckPredictable.
absl::StatusOr<std::unique_ptr<NeuronPredictor>> MakeLowRankPredictor(
    std::shared_ptr<const BundleFile> file, ComputePool* pool = nullptr);

// Of a token, the core neurons are the strongest `token_share` of those that fire; of a prompt, the
// `text_share` of all neurons that were in the core of most tokens. They stay the prediction for
// whatever follows (Wang et al., "CoreInfer", 2024, stability-guided). Layers below `first_layer`,
// and texts without a prompt, predict all.
struct CoreOptions {
  double token_share = 0.4;  // alpha
  double text_share = 0.4;   // beta
  uint32_t first_layer = 0;

  // kInvalidArgument naming the field.
  absl::Status Validate() const;
};
// Gate rows are read from the file for each piece of a prompt, in passing. Errors are those of the
// options, of opening the file, and of CheckPredictable.
absl::StatusOr<std::unique_ptr<NeuronPredictor>> MakeCorePredictor(
    std::shared_ptr<const BundleFile> file, const CoreOptions& options);

// kInvalidArgument, naming the file, where some neurons cannot be left out: its activation is never
// exactly 0, or it has several experts, which a router chooses.
absl::Status CheckPredictable(const BundleFile& file);

}  // namespace terrace

#endif  // TERRACE_RUNTIME_NEURON_PREDICTOR_H_
