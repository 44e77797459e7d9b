#include "runtime/runtime_options.h"

#include <numeric>

#include "absl/strings/str_cat.h"
#include "io/aligned_buffer.h"
#include "runtime/tail.h"

namespace terrace {
namespace {

constexpr size_t kMaxTokensPerBlock = 4096;
constexpr size_t kMaxWindow = size_t{1} << 20;
constexpr size_t kMaxActiveContexts = 4096;
constexpr size_t kMaxThreads = 1024;

absl::Status Between(absl::string_view field, uint64_t value, uint64_t least, uint64_t most) {
  if (value >= least && value <= most) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat(field, ": ", value, " is not from ", least, " to ", most));
}

absl::Status ValidateBlocks(const RuntimeOptions& options) {
  const size_t bytes = options.BlockBytes();
  if (IsPageAligned(bytes)) return absl::OkStatus();
  const size_t token = options.shape.BlockBytes(1);
  return absl::InvalidArgumentError(absl::StrCat(
      "tokens_per_block: ", options.tokens_per_block, " tokens of ", token, " bytes are ", bytes,
      ", not whole pages of 4096; use a multiple of ", kPageBytes / std::gcd(kPageBytes, token)));
}

absl::Status ValidateOverride(const LookupOverride& change, const ModelShape& shape) {
  if (change.layer.has_value() && *change.layer >= shape.layers) {
    return absl::InvalidArgumentError(absl::StrCat("overrides: layer ", *change.layer,
                                                   " is not below the ", shape.layers,
                                                   " layers of the model"));
  }
  if (change.kv_head.has_value() && *change.kv_head >= shape.kv_heads) {
    return absl::InvalidArgumentError(absl::StrCat("overrides: kv_head ", *change.kv_head,
                                                   " is not below the ", shape.kv_heads,
                                                   " KV heads of the model"));
  }
  return absl::OkStatus();
}

bool Same(const LookupOptions& a, const LookupOptions& b) {
  return a.kind == b.kind && a.blocks == b.blocks && a.pooled == b.pooled &&
         a.representatives == b.representatives && a.choice == b.choice;
}

// Heads that share one list of blocks must agree on it.
absl::Status ValidateSharing(const RuntimeOptions& options) {
  for (uint32_t layer = 0; layer < options.shape.layers; ++layer) {
    const LookupOptions& first = options.LookupOf(layer, 0);
    for (uint32_t head = 1; head < options.shape.kv_heads; ++head) {
      const LookupOptions& other = options.LookupOf(layer, head);
      if ((first.pooled || other.pooled) && !Same(first, other)) {
        return absl::InvalidArgumentError(
            absl::StrCat("overrides: the heads of layer ", layer,
                         " share their blocks (pooled), so they need one lookup, but KV head ",
                         head, " has another than KV head 0"));
      }
    }
  }
  return absl::OkStatus();
}

}  // namespace

const LookupOptions& RuntimeOptions::LookupOf(uint32_t layer, uint32_t kv_head) const {
  for (auto change = overrides.rbegin(); change != overrides.rend(); ++change) {
    if (change->layer.value_or(layer) == layer && change->kv_head.value_or(kv_head) == kv_head) {
      return change->lookup;
    }
  }
  return lookup;
}

uint64_t RuntimeOptions::HbmWindowBytes() const {
  return tiers.hbm_bytes > 0 ? active_contexts * TailBytes(*this) : 0;
}

absl::Status RuntimeOptions::Validate() const {
  if (absl::Status status = shape.Validate(); !status.ok()) return status;
  for (const absl::Status& status :
       {Between("tokens_per_block", tokens_per_block, 1, kMaxTokensPerBlock),
        Between("sink_tokens", sink_tokens, 0, tokens_per_block),
        Between("window_tokens", window_tokens, 1, kMaxWindow),
        Between("max_append_tokens", max_append_tokens, 1, kMaxWindow),
        Between("index_tail_tokens", index_tail_tokens, 1, kMaxWindow),
        Between("active_contexts", active_contexts, 1, kMaxActiveContexts),
        Between("threads", threads, 0, kMaxThreads), ValidateBlocks(*this)}) {
    if (!status.ok()) return status;
  }
  for (const LookupOverride& change : overrides) {
    if (absl::Status status = ValidateOverride(change, shape); !status.ok()) return status;
  }
  if (absl::Status status = ValidateSharing(*this); !status.ok()) return status;
  if (tiers.dram_bytes < BlockBytes() * shape.kv_heads) {
    return absl::InvalidArgumentError(absl::StrCat(
        "tiers.dram_bytes: ", tiers.dram_bytes, " is less than one block of ", BlockBytes(),
        " bytes for each of the ", shape.kv_heads, " KV heads of a layer"));
  }
  const uint64_t windows = HbmWindowBytes();
  const uint64_t least = windows + BlockBytes() * shape.kv_heads;
  if (tiers.hbm_bytes > 0 && tiers.hbm_bytes < least) {
    return absl::InvalidArgumentError(absl::StrCat(
        "tiers.hbm_bytes: ", tiers.hbm_bytes, " is less than ", least, ": the windows of ",
        active_contexts, " active_contexts take ", windows, ", and one block of ", BlockBytes(),
        " bytes for each of the ", shape.kv_heads, " KV heads of a layer comes beside them"));
  }
  TierManagerOptions completed = tiers;
  completed.block_bytes = BlockBytes();
  return completed.Validate();
}

}  // namespace terrace
