#ifndef TERRACE_TOOLS_INDEX_EVAL_QKV_DUMP_WRITER_H_
#define TERRACE_TOOLS_INDEX_EVAL_QKV_DUMP_WRITER_H_

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "index/kv_dtype.h"
#include "io/unique_fd.h"
#include "tools/engine/attention_source.h"
#include "tools/engine/model_config.h"

namespace terrace {

// Writes queries, keys and values of one sequence as a safetensors file, which QkvDump reads:
//   prompt_tokens                [1] F32, how many of the tokens are the prompt's
//   layers.L.query_heads.H.query [tokens, head_dim] F32
//   layers.L.kv_heads.H.key      [tokens, head_dim] F16
//   layers.L.kv_heads.H.value    [tokens, head_dim] F16
// Queries and keys are after RoPE, and the query heads of a group follow each other.
//
// Each tensor has its place in the file from the start, for the most tokens that may come, so that
// rows go to the file as they come and take no memory. Finish closes the gaps. A writer that goes
// without Finish takes its file away. Thread-compatible.
class QkvDumpWriter {
 public:
  struct Options {
    int64_t prompt_tokens = 0;  // less than 2^24
    int64_t max_tokens = 0;     // prompt included
  };

  // Replaces what was at `path`, once Finish is called. kInvalidArgument for options out of range;
  // the errno's code, naming the path, when the file cannot be made.
  static absl::StatusOr<std::unique_ptr<QkvDumpWriter>> Create(const std::string& path,
                                                               const ModelConfig& config,
                                                               const Options& options);
  ~QkvDumpWriter();
  QkvDumpWriter(const QkvDumpWriter&) = delete;
  QkvDumpWriter& operator=(const QkvDumpWriter&) = delete;

  // Takes the tokens of a layer, which replace those that it has at these positions.
  // kInvalidArgument, naming the layer, for a position beyond the end and for a number that is not
  // finite as stored; kResourceExhausted for more than max_tokens.
  absl::Status Add(const AttentionStep& step);
  // Makes it a whole file of the tokens that every layer has, and puts it at its path.
  absl::Status Finish();

 private:
  struct Tensor {
    std::string name;
    KvDtype dtype = KvDtype::kFloat32;
    uint64_t offset = 0;  // in the file, until Finish
  };

  QkvDumpWriter(std::string path, UniqueFd fd, const ModelConfig& config, const Options& options);
  void LayOut();
  std::string Header(int64_t tokens) const;
  absl::Status WriteAt(uint64_t offset, const void* bytes, size_t count) const;
  // Rows of one head: row i at rows + i * stride elements.
  absl::Status WriteRows(const Tensor& tensor, const AttentionStep& step, const float* rows,
                         size_t stride);
  absl::Status MoveDown(const Tensor& tensor, uint64_t to, uint64_t bytes);
  uint64_t RowBytes(const Tensor& tensor) const {
    return config_.head_dim * KvDtypeBytes(tensor.dtype);
  }

  const std::string path_;
  UniqueFd fd_;
  const ModelConfig config_;
  const Options options_;
  bool finished_ = false;
  std::vector<int64_t> tokens_;  // [layers]
  std::vector<Tensor> tensors_;  // layer by layer: queries, keys, values, each by head
  uint64_t data_offset_ = 0;
  std::vector<char> buffer_;
};

// Attention from another source, of which a dump is made on the way. Borrows both. One call at a
// time. REQUIRES: a source that wants queries and keys after RoPE.
class DumpedAttention : public AttentionSource {
 public:
  DumpedAttention(AttentionSource& source, QkvDumpWriter& dump) : source_(source), dump_(dump) {}

  bool rotated() const override { return source_.rotated(); }
  absl::Status Attend(const AttentionStep& step) override {
    if (absl::Status status = dump_.Add(step); !status.ok()) return status;
    return source_.Attend(step);
  }
  absl::Status Truncate(int64_t tokens) override { return source_.Truncate(tokens); }

 private:
  AttentionSource& source_;
  QkvDumpWriter& dump_;
};

}  // namespace terrace

#endif  // TERRACE_TOOLS_INDEX_EVAL_QKV_DUMP_WRITER_H_
