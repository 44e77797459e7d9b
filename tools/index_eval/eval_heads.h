#ifndef TERRACE_TOOLS_INDEX_EVAL_EVAL_HEADS_H_
#define TERRACE_TOOLS_INDEX_EVAL_EVAL_HEADS_H_

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "index/key_panels.h"
#include "tools/index_eval/qkv_dump.h"
#include "tools/index_eval/synthetic_head.h"

namespace terrace {

// The dynamic part of one KV head, and queries for it.
struct EvalHead {
  std::string name;
  size_t head_dim = 0;
  size_t group = 0;
  std::vector<uint16_t> keys;    // [keys, head_dim] fp16
  std::vector<uint16_t> values;  // [keys, head_dim] fp16
  std::vector<float> samples;    // [samples, head_dim], for Build
  std::vector<float> queries;    // [steps, group, head_dim], of later tokens than the samples

  size_t key_count() const { return keys.size() / head_dim; }
  size_t steps() const { return queries.size() / (group * head_dim); }
  // Valid while the head stays where it is.
  KeyPanels panels() const {
    return KeyPanels::Contiguous(keys.data(), key_count(), head_dim, KvDtype::kFloat16);
  }
  absl::Span<const float> step_queries(size_t step) const {
    return {queries.data() + step * group * head_dim, group * head_dim};
  }
};

// What to take of a dump.
struct DumpSelection {
  size_t sinks = 4;     // first tokens of the prompt that are left out
  size_t window = 512;  // last ones
  size_t samples = 16384;
  size_t steps = 64;
  std::vector<size_t> layers;    // empty: all
  std::vector<size_t> kv_heads;  // empty: all
};

// `count` heads with the seeds from options.seed on. Errors of MakeSyntheticHead.
absl::StatusOr<std::vector<EvalHead>> MakeSyntheticHeads(const SyntheticHeadOptions& options,
                                                         size_t count);

// Keys of the prompt without sinks and window; samples are queries of the prompt beyond the sinks,
// and steps those of generated tokens, both evenly spread where there are more than asked for.
// Errors of QkvDump::Read; kInvalidArgument, naming the path, when no key or no step is left, and
// for layers and heads that it has not.
absl::StatusOr<std::vector<EvalHead>> ReadDumpHeads(const QkvDump& dump, const std::string& path,
                                                    const DumpSelection& selection);

}  // namespace terrace

#endif  // TERRACE_TOOLS_INDEX_EVAL_EVAL_HEADS_H_
