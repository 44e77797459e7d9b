#ifndef TERRACE_RUNTIME_RUNTIME_OPTIONS_H_
#define TERRACE_RUNTIME_RUNTIME_OPTIONS_H_

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <vector>

#include "absl/status/status.h"
#include "io/timeline.h"
#include "runtime/lookup_policy.h"
#include "runtime/memory_budget.h"
#include "runtime/model_shape.h"
#include "tiers/tier_options.h"

namespace terrace {

// A lookup for some heads instead of RuntimeOptions::lookup. Later ones win.
struct LookupOverride {
  std::optional<uint32_t> layer;    // nullopt: every layer
  std::optional<uint32_t> kv_head;  // nullopt: every KV head
  LookupOptions lookup = {};
};

// What a Runtime is opened with.
struct RuntimeOptions {
  ModelShape shape = {};

  // The memories that blocks are kept in; tiers.dram_bytes is needed. block_bytes and
  // model_fingerprint follow from the shape and are set by Open. With tiers.reuse, saved contexts
  // and cached prefixes of an earlier run are there again.
  //
  // With tiers.hbm_bytes, attention runs in HBM, on the device of tiers.hbm_device: over sinks and
  // windows, which come out of hbm_bytes (HbmWindowBytes) and are there besides in host memory, and
  // over blocks, which lookups bring there. Keys that graph or cluster found one by one stay in
  // DRAM, where the CPU attends to them meanwhile.
  TierManagerOptions tiers = {};

  // Where tiers.dram_bytes, the windows and index_bytes come from, as the client "kv", where they
  // share memory with others such as a WeightPager. Null: nobody counts.
  std::shared_ptr<MemoryBudget> memory = {};

  // A block has so many tokens; with the shape, it must come to whole pages of 4 KiB.
  size_t tokens_per_block = 128;
  // The first tokens of a context, which every query attends to; at most a block.
  size_t sink_tokens = 64;
  // The newest tokens before a query, which it attends to. The window begins at the block that
  // holds the oldest of them, so up to a block less one more.
  size_t window_tokens = 512;
  // The most that one Append brings to a layer.
  size_t max_append_tokens = 512;

  // How heads find what is neither sink nor window.
  LookupOptions lookup = {};
  std::vector<LookupOverride> overrides = {};

  // graph and cluster: sealed tokens that a step of decoding attends to one by one before they are
  // worth indexing.
  size_t index_tail_tokens = 1024;
  // The memory that indexes of all contexts may take, beside the tiers; 0: a quarter of
  // tiers.dram_bytes and a tenth of tiers.nvme_bytes. What finds no room is attended to exactly.
  uint64_t index_bytes = 0;

  // Contexts whose sinks and windows are in memory at once. When one more is used, the one that was
  // idle longest moves to the tiers until it is used again.
  size_t active_contexts = 4;
  // That compute attention, the caller's included; 0: as many as there are processors.
  size_t threads = 0;

  // Where calls and their phases are recorded, those of the tiers as well; shared by all who
  // record. Null: nowhere, unless tiers.timeline says otherwise.
  std::shared_ptr<Timeline> timeline = {};

  // index_bytes, spelled out.
  uint64_t IndexBytes() const {
    return index_bytes > 0 ? index_bytes : tiers.dram_bytes / 4 + tiers.nvme_bytes / 10;
  }
  // What sinks and windows of active_contexts take of tiers.hbm_bytes, if that is not 0.
  uint64_t HbmWindowBytes() const;
  // The bytes of a block.
  size_t BlockBytes() const { return shape.BlockBytes(tokens_per_block); }
  const LookupOptions& LookupOf(uint32_t layer, uint32_t kv_head) const;

  // kInvalidArgument naming the field, its value and its limit.
  absl::Status Validate() const;
};

}  // namespace terrace

#endif  // TERRACE_RUNTIME_RUNTIME_OPTIONS_H_
