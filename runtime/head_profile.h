#ifndef TERRACE_RUNTIME_HEAD_PROFILE_H_
#define TERRACE_RUNTIME_HEAD_PROFILE_H_

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "runtime/model_shape.h"
#include "runtime/runtime_options.h"

namespace terrace {

// How much each KV head of a model needs what is neither sink nor window, as measured on texts that
// the model has to find something in. Few heads do (retrieval heads); the others may stream: they
// attend to sinks and window alone (DuoAttention, arXiv 2410.10819, section 2; RazorAttention,
// arXiv 2407.15891, section 3). `terrace eval --profile-heads` measures it. Thread-compatible.
struct HeadProfile {
  // Shares of attention, from 0 to 1, that the queries measured gave to tokens outside of sinks and
  // window.
  struct Head {
    double mean_outside = 0;  // over queries and the query heads of the group
    double max_outside = 0;   // the largest of one query and query head
  };

  // The model that was measured.
  uint32_t layers = 0;
  uint32_t query_heads = 0;
  uint32_t kv_heads = 0;
  uint32_t head_dim = 0;
  uint64_t model_id = 0;  // as ModelShape has it

  // The first tokens and the newest that did not count as outside.
  uint64_t sink_tokens = 0;
  uint64_t window_tokens = 0;

  std::string method;    // what the texts and the queries were, in words
  uint64_t texts = 0;    // at least 1
  uint64_t tokens = 0;   // of all texts, at least 1
  uint64_t queries = 0;  // positions measured, at least 1

  std::vector<Head> heads;  // [layers, kv_heads]

  const Head& head(size_t layer, size_t kv_head) const { return heads[layer * kv_heads + kv_head]; }
  // kInvalidArgument naming what differs when the profile is one of another model. A model_id of 0,
  // in the shape or here, is not compared.
  absl::Status CheckFits(const ModelShape& shape) const;
};

// A KV head of a layer.
struct HeadIndex {
  uint32_t layer = 0;
  uint32_t kv_head = 0;

  friend bool operator==(const HeadIndex&, const HeadIndex&) = default;
};

// All heads, the one first that needs least what is outside: by mean_outside, then by max_outside,
// then in their order.
std::vector<HeadIndex> HeadsByNeed(const HeadProfile& profile);

// Overrides for RuntimeOptions that have the heads which need least stream: `share` of all heads,
// rounded down. Such heads keep no summaries and fetch no blocks. REQUIRES: 0 <= share <= 1, and a
// profile that fits itself, as one that was read does.
std::vector<LookupOverride> StreamingOverrides(const HeadProfile& profile, double share);

// The profile as JSON, as ParseHeadProfile takes it.
std::string HeadProfileText(const HeadProfile& profile);
// kInvalidArgument naming the member, and what it should be: for text that is not JSON, that ends
// early, of another format or version, or in which a member is missing, unknown or out of range, or
// a head is missing or there twice.
absl::StatusOr<HeadProfile> ParseHeadProfile(absl::string_view text);
// The profile in a file of at most 64 MiB. Errors name the path: those of ParseHeadProfile, and the
// errno's code for a file that cannot be read.
absl::StatusOr<HeadProfile> ReadHeadProfile(const std::string& path);

}  // namespace terrace

#endif  // TERRACE_RUNTIME_HEAD_PROFILE_H_
