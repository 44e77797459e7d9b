#ifndef TERRACE_RUNTIME_LOOKUP_POLICY_H_
#define TERRACE_RUNTIME_LOOKUP_POLICY_H_

#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "absl/types/span.h"
#include "index/block_summary.h"
#include "runtime/model_shape.h"

namespace terrace {

// How a KV head finds what it attends to beyond the sinks and the local window.
enum class LookupKind : uint8_t {
  kFull,       // everything: exact
  kStreaming,  // nothing (StreamingLLM, arXiv 2309.17453)
  kInfllm,     // blocks by their representatives (InfLLM, arXiv 2402.04617)
  kQuest,      // blocks by the bounds of their keys (Quest, arXiv 2406.10774)
  kGraph,      // single tokens by a graph over their keys (RetrievalAttention, arXiv 2409.10516)
  kCluster,    // clusters of keys; the others by estimate (RetroInfer, arXiv 2505.02922)
};

inline constexpr size_t kLookupKinds = 6;

// "full", "streaming", "infllm", "quest", "graph", "cluster".
const char* LookupKindName(LookupKind kind);
// kInvalidArgument naming the known ones.
absl::StatusOr<LookupKind> ParseLookupKind(absl::string_view name);

struct LookupOptions {
  LookupKind kind = LookupKind::kFull;
  size_t blocks = 16;  // infllm and quest: blocks that a step attends to
  // infllm: how many keys stand for a block, and which.
  size_t representatives = 8;
  RepresentativeChoice choice = RepresentativeChoice::kLargestNorm;
  // infllm: one list of blocks for all heads of a layer, ranked by the sum over heads, queries and
  // representatives. Otherwise each KV head has its own, ranked by its strongest match.
  bool pooled = false;
  size_t page_tokens = 16;  // quest: tokens that share a bound

  size_t keys = 100;  // graph: tokens that each query attends to
  size_t effort = 0;  // graph: the width of the search's beam; 0: two and a half times `keys`
  // cluster: of the indexed tokens, the share that a step attends to; the others are estimated.
  double share = 0.03;
  // cluster: tokens with less than this share of a query's attention, the mean over the group, are
  // estimated even so; clusters that are read as a whole where the mean over their tokens is less.
  double min_share = 2e-5;
  // cluster: how long a call waits for clusters that it wants. What comes later is estimated too.
  absl::Duration patience = absl::InfiniteDuration();
};

// infllm as the paper has it: pooled, by most mass.
LookupOptions PublishedInfllm(size_t blocks, size_t representatives = 4);

// The rules of one lookup: which keys it takes, what it keeps of a block, how it ranks blocks.
//
//             keys before RoPE                     keys after RoPE
//   full      -                                    everything, at its position
//   streaming sinks at the edge of the window      sinks at their position
//   infllm    sinks and blocks at the edge of the  -
//             window, as the paper does
//   quest     -                                    blocks at their position
//   graph,    -                                    tokens at their position
//   cluster
//
// Constant after construction, so thread-safe.
class LookupPolicy {
 public:
  // kInvalidArgument naming the field, or the state of keys that the policy does not take.
  static absl::StatusOr<std::unique_ptr<LookupPolicy>> Create(const LookupOptions& options,
                                                              const ModelShape& shape,
                                                              size_t tokens_per_block);

  const LookupOptions& options() const { return options_; }
  LookupKind kind() const { return options_.kind; }
  bool looks_up() const { return summary_ != nullptr; }
  // Whether sealed tokens are in an index of the context's own, from where calls with few positions
  // look them up. Calls with more, and tokens that the index does not have yet, attend to all.
  bool has_index() const {
    return options_.kind == LookupKind::kGraph || options_.kind == LookupKind::kCluster;
  }
  // All KV heads of a layer attend to the same blocks. Heads that share must share one policy.
  bool shares_blocks() const { return looks_up() && options_.pooled; }
  // What it keeps of a block; null where nothing.
  const BlockSummary* summary() const { return summary_.get(); }

  // Reduces logits to one figure a block, larger is better: `scores` is [rows, blocks] and holds
  // the estimate of Score, `levels` is [rows], a logit that is strong for that row. `ranks` is
  // [blocks].
  void Rank(absl::Span<const float> scores, absl::Span<const float> levels,
            absl::Span<float> ranks) const;
  // The best blocks by `ranks`, ascending, into `chosen`, whose memory is reused. The earlier block
  // is the better one among equals.
  void Choose(absl::Span<const float> ranks, std::vector<uint32_t>& chosen) const;

 private:
  LookupPolicy(const LookupOptions& options, std::unique_ptr<BlockSummary> summary)
      : options_(options), summary_(std::move(summary)) {}

  const LookupOptions options_;
  const std::unique_ptr<BlockSummary> summary_;
};

}  // namespace terrace

#endif  // TERRACE_RUNTIME_LOOKUP_POLICY_H_
