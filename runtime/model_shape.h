#ifndef TERRACE_RUNTIME_MODEL_SHAPE_H_
#define TERRACE_RUNTIME_MODEL_SHAPE_H_

#include <cstddef>
#include <cstdint>
#include <string>

#include "absl/status/status.h"
#include "index/kv_dtype.h"
#include "runtime/rope.h"

namespace terrace {

// Whether keys are stored before or after their rotary embedding; queries come in the same state.
enum class KeyState : uint8_t { kBeforeRope, kAfterRope };

// "before RoPE", "after RoPE".
const char* KeyStateName(KeyState state);

// What Terrace must know of a model to keep its keys and values.
struct ModelShape {
  uint32_t layers = 0;
  uint32_t query_heads = 0;
  uint32_t kv_heads = 0;              // divides query_heads
  uint32_t head_dim = 0;              // a multiple of 8, up to 512
  KvDtype dtype = KvDtype::kFloat16;  // as stored
  KeyState key_state = KeyState::kAfterRope;
  RopeOptions rope = {};  // used where keys come before RoPE
  // Tells models of one shape apart, such as a hash of the weights: their blocks are never mixed
  // up.
  uint64_t model_id = 0;

  static constexpr uint32_t kMaxLayers = 4096;
  static constexpr uint32_t kMaxHeads = 4096;
  static constexpr uint32_t kMaxHeadDim = 512;

  size_t group() const { return query_heads / kv_heads; }  // query heads per KV head
  // K and V of `tokens` tokens of one layer and KV head.
  size_t BlockBytes(size_t tokens) const { return 2 * tokens * head_dim * KvDtypeBytes(dtype); }
  // Differs between shapes whose blocks mean something else.
  uint64_t Fingerprint(size_t tokens_per_block) const;
  // "32 layers x 8 KV heads (group 4) x 128, fp16, keys after RoPE".
  std::string ToString() const;

  // kInvalidArgument naming the field, its value and its limit.
  absl::Status Validate() const;
};

}  // namespace terrace

#endif  // TERRACE_RUNTIME_MODEL_SHAPE_H_
