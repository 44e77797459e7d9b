#ifndef TERRACE_TOOLS_INDEX_EVAL_SYNTHETIC_HEAD_H_
#define TERRACE_TOOLS_INDEX_EVAL_SYNTHETIC_HEAD_H_

#include <cstddef>
#include <cstdint>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace terrace {

// The dynamic part of one KV head, without sinks and window, whose queries are out of the
// distribution of its keys, as RetrievalAttention (arXiv 2409.10516, section 2) finds those of
// models to be.
//
// The queries of each head of the group lie in an affine subspace of `query_dims` dimensions,
// `shared_dims` of which all heads have in common; the union of them is the query space. What a
// query wants is a topic of the context, and the offset of its subspace drifts from step to step.
// A key has a part in the query space, which alone decides its score, and a part outside, which has
// most of its variance and tells nothing about it:
//   in the query space: the centre of its topic, whose size is heavy-tailed, a part that moves
//     slowly along the context, and a part of its own;
//   outside: a constant offset, the centre of its style, and noise that is larger in some channels.
// Topics and styles come in runs of tokens, independently of each other.
struct SyntheticHeadOptions {
  size_t keys = 131072;
  size_t head_dim = 128;
  size_t group = 4;
  size_t samples = 16384;  // queries of prefill, all heads together
  size_t steps = 128;      // of decoding
  uint64_t seed = 1;

  size_t query_dims = 12;
  size_t shared_dims = 6;
  size_t topics = 512;
  size_t topic_run = 32;  // mean number of tokens
  size_t styles = 64;
  size_t style_run = 256;  // mean number of tokens
  // Both are 1 for heads like those of models. A higher query_scale concentrates the attention mass
  // on fewer keys and changes no ranking; a higher outside_scale misleads what looks at keys alone
  // more.
  double query_scale = 1.0;
  double outside_scale = 1.0;

  // kInvalidArgument naming the field and its limits.
  absl::Status Validate() const;
};

struct SyntheticHead {
  size_t head_dim = 0;
  size_t group = 0;
  std::vector<uint16_t> keys;    // [keys, head_dim] fp16
  std::vector<uint16_t> values;  // [keys, head_dim] fp16: a part of the topic, and noise
  // [samples, head_dim]; row i belongs to head i % group, at a position that grows with i.
  std::vector<float> sample_queries;
  // [steps * group, head_dim], after the samples: row i belongs to head i % group at step i /
  // group.
  std::vector<float> decode_queries;

  size_t key_count() const { return keys.size() / head_dim; }
};

// Equal options give equal heads in one build of the program. kInvalidArgument as for Validate.
absl::StatusOr<SyntheticHead> MakeSyntheticHead(const SyntheticHeadOptions& options);

}  // namespace terrace

#endif  // TERRACE_TOOLS_INDEX_EVAL_SYNTHETIC_HEAD_H_
