#ifndef TERRACE_TOOLS_ENGINE_ENGINE_H_
#define TERRACE_TOOLS_ENGINE_ENGINE_H_

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "absl/types/span.h"
#include "io/timeline.h"
#include "runtime/rope.h"
#include "tools/engine/attention_source.h"
#include "tools/engine/dense_ffn.h"
#include "tools/engine/ffn_source.h"
#include "tools/engine/model_config.h"
#include "tools/engine/model_weights.h"
#include "tools/engine/weight_products.h"

namespace terrace {

struct EngineOptions {
  size_t chunk_tokens = 512;  // run together; at least 1. Buffers are sized for so many.
  // Without, UseFfn names what computes them before the first Forward.
  FfnWeights ffn = FfnWeights::kLoad;
  // Where passes and their parts are recorded; shared by all who record. Null: nowhere.
  std::shared_ptr<Timeline> timeline = {};

  // kInvalidArgument naming the field.
  absl::Status Validate() const;
};

// Which tokens the output head runs for.
enum class LogitsOf : uint8_t { kNone, kLastToken, kEveryToken };

// Tokens to run through the model.
struct ForwardStep {
  absl::Span<const int32_t> tokens;
  int64_t position = 0;  // of the first token: how many the attention source has
  LogitsOf logits_of = LogitsOf::kLastToken;
};

// Where the time of forward passes went.
struct EngineTimes {
  int64_t tokens = 0;
  absl::Duration attention;  // in the attention source, storing of keys and values included
  absl::Duration ffn;        // in the FFN source
  absl::Duration rest;
};

// A Llama model in fp32: RMSNorm, rotated attention from an AttentionSource, gated feed-forward
// network of its own or from an FfnSource. It is the reference that attention over tiers is tried
// with, not a fast server: one sequence a call, products by OpenBLAS, split over oneTBB, or by
// other WeightProducts. Everything between the products is computed here, on the calling thread.
// Thread-compatible.
class Engine {
 public:
  // Reads config.json and the weights from a folder. Errors are theirs, and those of the options.
  static absl::StatusOr<std::unique_ptr<Engine>> Load(const std::string& directory,
                                                      const EngineOptions& options = {});
  // Of a model in memory, whose weights have the shapes of its config.
  static absl::StatusOr<std::unique_ptr<Engine>> Create(const ModelConfig& config,
                                                        ModelWeights weights,
                                                        const EngineOptions& options = {});

  const ModelConfig& config() const { return config_; }
  const ModelWeights& weights() const { return weights_; }
  Timeline* timeline() const { return options_.timeline.get(); }

  // From now on this computes the feed-forward networks; null: the engine's own. `ffn` is borrowed
  // until it is replaced. REQUIRES: not null where the weights were not loaded.
  void UseFfn(FfnSource* ffn);
  // From now on these multiply with the engine's own weights; null: the CPU. `products` is borrowed
  // until it is replaced.
  void UseProducts(WeightProducts* products);

  // Elements that Forward writes for the step.
  size_t LogitCount(const ForwardStep& step) const;

  // Runs the tokens through the model, in chunks, and appends them to `attention`.
  // logits: [1 or tokens, vocab] as step.logits_of says, empty for kNone.
  // kInvalidArgument, with nothing run, for no tokens, an id outside of the vocabulary or a
  // negative position; errors of the attention and FFN sources and of the products come as they
  // are, with some layers perhaps having some of the tokens: attention.Truncate(step.position)
  // takes them away.
  absl::Status Forward(const ForwardStep& step, AttentionSource& attention,
                       absl::Span<float> logits);

  const EngineTimes& times() const { return times_; }
  void ResetTimes() { times_ = {}; }

 private:
  Engine(const ModelConfig& config, ModelWeights weights, const EngineOptions& options, Rope rope);

  absl::Status CheckStep(const ForwardStep& step) const;
  // Each works on one chunk, whose activations are in hidden_.
  absl::Status RunLayers(size_t tokens, int64_t position, AttentionSource& attention);
  absl::Status RunAttention(size_t layer, size_t tokens, int64_t position,
                            AttentionSource& attention);
  absl::Status RunFfn(size_t layer, size_t tokens, int64_t position);
  absl::Status RunHead(size_t first_token, size_t tokens, absl::Span<float> logits);

  void Embed(absl::Span<const int32_t> tokens);
  void PrepareAngles(size_t tokens, int64_t position);
  void Rotate(size_t tokens, size_t width, absl::Span<float> rows) const;

  const ModelConfig config_;
  const ModelWeights weights_;
  const EngineOptions options_;
  const Rope rope_;
  CpuProducts cpu_products_;
  WeightProducts* products_ = &cpu_products_;
  std::unique_ptr<DenseFfn> dense_ffn_;  // null where the weights were not loaded
  FfnSource* ffn_ = nullptr;
  EngineTimes times_;

  // Of one chunk: [chunk_tokens, ...], with what one token has.
  std::vector<float> hidden_;    // hidden
  std::vector<float> normed_;    // hidden
  std::vector<float> query_;     // query_heads, head_dim
  std::vector<float> key_;       // kv_heads, head_dim
  std::vector<float> value_;     // kv_heads, head_dim
  std::vector<float> attended_;  // query_heads, head_dim
  std::vector<float> added_;     // hidden: what a part of the layer adds
  std::vector<float> cosines_;   // head_dim / 2
  std::vector<float> sines_;     // head_dim / 2
};

}  // namespace terrace

#endif  // TERRACE_TOOLS_ENGINE_ENGINE_H_
