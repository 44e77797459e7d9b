#ifndef TERRACE_TOOLS_ENGINE_OUTSIDE_METER_H_
#define TERRACE_TOOLS_ENGINE_OUTSIDE_METER_H_

#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "runtime/head_profile.h"
#include "tools/engine/attention_source.h"
#include "tools/engine/model_config.h"
#include "tools/engine/plain_attention.h"

namespace terrace {

// Plain attention that, of the queries it is told to, measures which share of each KV head's
// attention goes to tokens that are neither among the first `sink_tokens` nor among the newest
// `window_tokens`. Queries that have no such tokens say nothing and do not count.
// Thread-compatible; computes on oneTBB.
class OutsideMeter final : public AttentionSource {
 public:
  struct Options {
    int64_t max_tokens = 0;  // of a text
    int64_t sink_tokens = 0;
    int64_t window_tokens = 0;  // at least 1: the token of the query itself
  };

  // Errors of PlainAttention::Create.
  static absl::StatusOr<std::unique_ptr<OutsideMeter>> Create(const ModelConfig& config,
                                                              const Options& options);

  bool rotated() const override { return attention_->rotated(); }
  // Measures what it attends to, while set_measures(true).
  absl::Status Attend(const AttentionStep& step) override;
  absl::Status Truncate(int64_t tokens) override { return attention_->Truncate(tokens); }

  void set_measures(bool measures) { measures_ = measures; }

  // Positions that counted, of one layer.
  uint64_t queries() const { return queries_; }
  // Of all that counted: [layers, kv_heads]; zeros where nothing did.
  std::vector<HeadProfile::Head> Heads() const;

 private:
  struct Sum {
    double outside = 0;  // over queries and query heads
    double largest = 0;
  };

  OutsideMeter(const ModelConfig& config, const Options& options,
               std::unique_ptr<PlainAttention> attention);

  void MeasureHead(const AttentionStep& step, size_t kv_head, Sum& sum) const;
  // Tokens from which `position` counts: before it, all are sinks or in the window.
  int64_t FirstPosition() const { return options_.sink_tokens + options_.window_tokens; }

  const size_t query_heads_;
  const size_t kv_heads_;
  const size_t head_dim_;
  const Options options_;
  const std::unique_ptr<PlainAttention> attention_;
  bool measures_ = false;
  uint64_t queries_ = 0;
  std::vector<Sum> sums_;  // [layers, kv_heads]
};

}  // namespace terrace

#endif  // TERRACE_TOOLS_ENGINE_OUTSIDE_METER_H_
