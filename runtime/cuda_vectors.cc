#include "runtime/cuda_vectors.h"

#include <cstring>
#include <utility>

#include "runtime/cuda_top_k_kernels.h"

namespace terrace {

CudaVectors::CudaVectors(const Options& options, std::unique_ptr<CudaQueue> queue)
    : options_(options),
      padded_(SummaryLayout{.count = 1, .dimensions = options.dimensions}.padded_dimensions()),
      queue_(std::move(queue)) {}

absl::StatusOr<std::unique_ptr<CudaVectors>> CudaVectors::Create(const Options& options, int device,
                                                                 absl::string_view what) {
  auto queue = CudaQueue::Create(device, what);
  if (!queue.ok()) return queue.status();
  std::unique_ptr<CudaVectors> vectors(new CudaVectors(options, *std::move(queue)));
  const size_t count = options.kv_heads * options.room;
  absl::Status status = vectors->vectors_.Reserve(count * vectors->padded_);
  if (status.ok()) status = vectors->scales_.Reserve(count * sizeof(float));
  if (!status.ok()) return status;
  return vectors;
}

absl::Status CudaVectors::Put(size_t head, size_t first, absl::Span<const int8_t> vectors,
                              absl::Span<const float> scales) {
  const size_t at = head * options_.room + first;
  absl::Status status = queue_->Enter();
  if (status.ok()) {
    status = queue_->Copy(vectors_.data() + at * padded_, vectors.data(), vectors.size());
  }
  if (status.ok()) {
    status = queue_->Copy(scales_.data<float>() + at, scales.data(), scales.size() * sizeof(float));
  }
  if (!status.ok()) return status;
  return queue_->Check(cudaStreamSynchronize(queue_->stream()));
}

absl::Status CudaVectors::BeginQueries(size_t rows, size_t extra) {
  rows_ = rows;
  extra_ = extra;
  absl::Status status = queue_->Enter();
  if (status.ok()) status = packed_.Reserve(sent_bytes());
  if (status.ok()) status = sent_.Reserve(sent_bytes());
  if (status.ok()) std::memset(packed_.data(), 0, query_bytes() + row_scales() * sizeof(float));
  return status;
}

// The order of CudaVectorScores::queries.
void CudaVectors::SetQueries(size_t head, const SummaryQueries& queries) {
  float* const scales = reinterpret_cast<float*>(packed_.data() + query_bytes());
  for (size_t row = 0; row < rows_; ++row) {
    const size_t group = head * groups() + row / kScoreRowGroup;
    const size_t in_group = row % kScoreRowGroup;
    const int16_t* const elements = queries.elements().data() + row * padded_;
    auto* const high = packed_.data<uint8_t>() + (group * 2 * kScoreRowGroup + in_group) * padded_;
    uint8_t* const low = high + kScoreRowGroup * padded_;
    for (size_t i = 0; i < padded_; ++i) {
      const auto bits = static_cast<uint16_t>(elements[i]);
      high[i] = static_cast<uint8_t>(bits >> 8);
      low[i] = static_cast<uint8_t>(bits & 0xff);
    }
    scales[group * kScoreRowGroup + in_group] = queries.scales()[row];
  }
}

absl::Span<float> CudaVectors::extra() {
  return {reinterpret_cast<float*>(packed_.data() + query_bytes()) + row_scales(), extra_};
}

const float* CudaVectors::sent_extra() const {
  return reinterpret_cast<const float*>(sent_.data() + query_bytes()) + row_scales();
}

absl::StatusOr<CudaVectorScores> CudaVectors::SendQueries(size_t count) {
  absl::Status status = queue_->Copy(sent_.data(), packed_.data(), sent_bytes());
  if (status.ok()) status = queue_->Start();
  if (!status.ok()) return status;
  return CudaVectorScores{
      .heads = static_cast<unsigned>(options_.kv_heads),
      .rows = static_cast<unsigned>(rows_),
      .count = static_cast<unsigned>(count),
      .dimensions = static_cast<unsigned>(padded_),
      .head_vectors = options_.room,
      .vectors = vectors_.data<int8_t>(),
      .scales = scales_.data<float>(),
      .queries = sent_.data<uint8_t>(),
      .row_scales = reinterpret_cast<const float*>(sent_.data() + query_bytes())};
}

absl::StatusOr<float*> CudaVectors::Scores(size_t floats) {
  if (absl::Status status = scores_.Reserve(floats * sizeof(float)); !status.ok()) return status;
  return scores_.data<float>();
}

absl::StatusOr<const uint32_t*> CudaVectors::TopK(const float* scores, size_t arrays, size_t count,
                                                  size_t k) {
  const auto arrays_32 = static_cast<unsigned>(arrays);
  const auto k_32 = static_cast<unsigned>(k);
  absl::Status status = scratch_.Reserve(CudaTopKScratch(arrays_32, k_32));
  if (status.ok()) status = best_.Reserve(arrays * k * (sizeof(uint32_t) + sizeof(float)));
  if (status.ok()) {
    status = queue_->Check(LaunchTopK(scores, arrays_32, static_cast<unsigned>(count), k_32,
                                      best_.data<uint32_t>(), best_.data<float>() + arrays * k,
                                      scratch_.data(), queue_->stream()));
  }
  if (!status.ok()) return status;
  return best_.data<uint32_t>();
}

absl::Status CudaVectors::Fetch(const void* from, size_t bytes, void* to) {
  absl::Status status = queue_->Stop();
  if (status.ok()) status = fetched_.Reserve(bytes);
  if (status.ok()) status = queue_->Copy(fetched_.data(), from, bytes);
  if (status.ok()) status = queue_->Finish();
  if (status.ok()) std::memcpy(to, fetched_.data(), bytes);
  return status;
}

}  // namespace terrace
