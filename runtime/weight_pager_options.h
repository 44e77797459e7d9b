#ifndef TERRACE_RUNTIME_WEIGHT_PAGER_OPTIONS_H_
#define TERRACE_RUNTIME_WEIGHT_PAGER_OPTIONS_H_

#include <cstddef>
#include <cstdint>
#include <memory>

#include "absl/status/status.h"
#include "index/compute_pool.h"
#include "io/block_device.h"
#include "io/device_profile.h"
#include "io/device_share.h"
#include "io/timeline.h"
#include "runtime/memory_budget.h"

namespace terrace {

// What a row of the cache is: what is kept, evicted and read as one.
enum class WeightRow : uint8_t {
  kGroup,   // a group of neighbouring neurons; one neuron where its bundle fills pages
  kExpert,  // all groups of an expert, for mixtures of which a token uses some experts whole
};

struct WeightPagerOptions {
  // All memory that the pager takes, its tables and staging included; of the bundle file's own
  // directory nothing. Divided evenly among the layers.
  uint64_t dram_bytes = 0;
  // Where these bytes come from, as the client "weights"; with dram_bytes 0, all that are available
  // to it. Null: nobody counts.
  std::shared_ptr<MemoryBudget> memory = {};
  // A layer keeps the rows that its last so many tokens used. 0: as many as the memory holds, that
  // is, a row stays until its place is needed, and the one unused for longest goes first.
  size_t window_tokens = 0;
  // The share of a layer's rows in memory that the hottest neurons of the file's calibration hold
  // for good. Without frequencies in the file none are. From 0 to 1.
  double pinned_share = 0.5;
  // Else the first rows of the file are pinned: what an engine would do that knows nothing of them.
  bool pin_hottest = true;
  WeightRow row = WeightRow::kGroup;
  // Of a gate-first file with a ReLU gate: read gates first, the other parts only of groups that
  // fire. Elsewhere it has no effect.
  bool gate_first = true;
  // Ffn adds what the window's other neurons contribute to those that were required: it costs
  // compute, and mends what a predictor missed as far as it is there. Results then depend on what
  // is in memory.
  bool compute_resident = false;
  // Reads join over a gap that the profile says is cheaper to read than to leave out, as long as
  // the bytes of such gaps stay below this share of the bytes that are wanted.
  double max_overread = 0.2;
  DeviceProfile profile = {};
  // Reads inside the device at once, and of those the ones that nobody waits for.
  size_t depth = 64;
  size_t prefetch_depth = 32;
  IoEngine engine = IoEngine::kAuto;
  bool direct_io = true;
  // The depth that the disk has for all who use it, such as the tier of KV blocks, whose reads come
  // first. Null: the disk is the pager's.
  std::shared_ptr<DeviceShare> device_share = {};
  // Where steps and reads are recorded; shared by all who record. Null: nowhere.
  std::shared_ptr<Timeline> timeline = {};
  // A read that failed or brought wrong bytes is repeated so many times.
  size_t rereads = 2;
  // The threads that compute; null: the pager has its own, `threads` of them, 0 being one for each
  // processor. Outlives the pager. Nothing that runs in it may call the pager.
  ComputePool* pool = nullptr;
  size_t threads = 0;

  // kInvalidArgument naming the field, its value and its limit.
  absl::Status Validate() const;
};

}  // namespace terrace

#endif  // TERRACE_RUNTIME_WEIGHT_PAGER_OPTIONS_H_
