#ifndef TERRACE_TOOLS_INDEX_EVAL_QKV_DUMP_H_
#define TERRACE_TOOLS_INDEX_EVAL_QKV_DUMP_H_

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "tools/engine/safetensors.h"

namespace terrace {

// What a dump has of one KV head.
struct QkvHead {
  std::vector<uint16_t> keys;    // [tokens, head_dim] fp16, after RoPE
  std::vector<uint16_t> values;  // [tokens, head_dim] fp16
  std::vector<float> queries;    // [tokens, group, head_dim], after RoPE
};

// Queries, keys and values of one sequence, as `terrace generate --dump-qkv` writes them; see
// QkvDumpWriter for the tensors. Heads stay in the file until they are read. Thread-safe.
class QkvDump {
 public:
  // The errors of SafetensorsFile::Open; kInvalidArgument, naming path and tensor, when one is
  // missing, is unknown or has another shape or dtype than the others imply.
  static absl::StatusOr<QkvDump> Open(const std::string& path);

  size_t layers() const { return layers_; }
  size_t kv_heads() const { return kv_heads_; }
  size_t group() const { return group_; }
  size_t head_dim() const { return head_dim_; }
  size_t tokens() const { return tokens_; }
  size_t prompt_tokens() const { return prompt_tokens_; }  // at most tokens()

  // kInvalidArgument, naming the tensor, for a number that is not finite in fp16.
  // REQUIRES: layer and head that the dump has.
  absl::StatusOr<QkvHead> Read(size_t layer, size_t kv_head) const;

 private:
  explicit QkvDump(SafetensorsFile file) : file_(std::move(file)) {}
  absl::Status Check();
  absl::Status ReadPromptTokens();
  absl::Status ReadRows(const std::string& name, std::vector<float>& rows) const;

  SafetensorsFile file_;
  size_t layers_ = 0;
  size_t kv_heads_ = 0;
  size_t group_ = 0;
  size_t head_dim_ = 0;
  size_t tokens_ = 0;
  size_t prompt_tokens_ = 0;
};

}  // namespace terrace

#endif  // TERRACE_TOOLS_INDEX_EVAL_QKV_DUMP_H_
