#ifndef TERRACE_RUNTIME_CUDA_VECTORS_H_
#define TERRACE_RUNTIME_CUDA_VECTORS_H_

#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "index/summary_scores.h"
#include "runtime/cuda_queue.h"
#include "runtime/cuda_scoring_kernels.h"

namespace terrace {

// The 8-bit vectors of all KV heads of a layer on a CUDA device, and what a call that scores them
// sends and gets back. Private to files built with CUDA. Thread-compatible.
class CudaVectors {
 public:
  struct Options {
    size_t kv_heads = 0;
    size_t dimensions = 0;  // as SummaryLayout has them
    size_t room = 0;        // vectors of each head
  };
  static absl::StatusOr<std::unique_ptr<CudaVectors>> Create(const Options& options, int device,
                                                             absl::string_view what);

  // Vectors `first` on of a head: `vectors` is [n, padded dimensions], `scales` is [n]. Returns
  // when they are there.
  absl::Status Put(size_t head, size_t first, absl::Span<const int8_t> vectors,
                   absl::Span<const float> scales);

  // Makes room for the queries of all heads and `extra` floats beside them, in pinned memory, as
  // the device wants them.
  absl::Status BeginQueries(size_t rows, size_t extra);
  void SetQueries(size_t head, const SummaryQueries& queries);
  absl::Span<float> extra();
  // Sends all that. Then kernels find it in what this returns, of the first `count` vectors.
  absl::StatusOr<CudaVectorScores> SendQueries(size_t count);
  const float* sent_extra() const;

  // Where kernels write floats, [floats].
  absl::StatusOr<float*> Scores(size_t floats);
  // Finds the k best of each of `arrays` of `count` scores: on the device, until Fetch, [arrays, k]
  // places and behind them their scores.
  absl::StatusOr<const uint32_t*> TopK(const float* scores, size_t arrays, size_t count, size_t k);
  // Ends the timing, waits, and writes `bytes` from the device.
  absl::Status Fetch(const void* from, size_t bytes, void* to);

  CudaQueue& queue() { return *queue_; }

 private:
  CudaVectors(const Options& options, std::unique_ptr<CudaQueue> queue);

  size_t groups() const { return (rows_ + kScoreRowGroup - 1) / kScoreRowGroup; }
  size_t query_bytes() const { return options_.kv_heads * groups() * 2 * kScoreRowGroup * padded_; }
  size_t row_scales() const { return options_.kv_heads * groups() * kScoreRowGroup; }
  size_t sent_bytes() const { return query_bytes() + (row_scales() + extra_) * sizeof(float); }

  const Options options_;
  const size_t padded_;  // dimensions
  const std::unique_ptr<CudaQueue> queue_;
  CudaArray vectors_{CudaArray::Where::kDevice};  // [kv_heads, room, padded]
  CudaArray scales_{CudaArray::Where::kDevice};   // [kv_heads, room]

  // Of the call under way.
  size_t rows_ = 0;
  size_t extra_ = 0;
  CudaArray packed_{CudaArray::Where::kPinnedHost};  // queries, row scales, extra
  CudaArray sent_{CudaArray::Where::kDevice};        // the same
  CudaArray scores_{CudaArray::Where::kDevice};
  CudaArray scratch_{CudaArray::Where::kDevice};
  CudaArray best_{CudaArray::Where::kDevice};
  CudaArray fetched_{CudaArray::Where::kPinnedHost};
};

}  // namespace terrace

#endif  // TERRACE_RUNTIME_CUDA_VECTORS_H_
