#include <cuda_runtime_api.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <memory>
#include <utility>

#include "absl/strings/str_cat.h"
#include "io/check.h"
#include "io/cuda_memory.h"
#include "io/cuda_status.h"
#include "runtime/attention_plan.h"
#include "runtime/cuda_attention_kernels.h"
#include "runtime/device_attention.h"

namespace terrace {
namespace {

// Pieces of the tensor cores' kernel that a multiprocessor works on one after the other: enough for
// none to wait long for the last of the others, few enough for their beginnings and ends not to
// count.
constexpr size_t kRounds = 4;

// Arrays begin at multiples of this, which is what cudaMalloc gives.
constexpr size_t kArrayAlignment = 256;

// Queries, plan and results that are reserved for at first.
constexpr size_t kReservedBytes = size_t{1} << 20;

// Memory of the device, or of the host for it to copy from and to. Grows by doubling and loses what
// is in it then.
class CudaBuffer {
 public:
  enum class Place : uint8_t { kDevice, kPinned };

  explicit CudaBuffer(Place place) : place_(place) {}
  ~CudaBuffer() { Free(); }
  CudaBuffer(const CudaBuffer&) = delete;
  CudaBuffer& operator=(const CudaBuffer&) = delete;

  std::byte* data() const { return data_; }

  // REQUIRES: no copy or kernel that uses it is under way.
  absl::Status Reserve(size_t bytes) {
    if (bytes <= size_) return absl::OkStatus();
    const size_t grown = std::max(bytes, 2 * size_);
    Free();
    void* memory = nullptr;
    const cudaError_t error =
        place_ == Place::kDevice ? cudaMalloc(&memory, grown) : cudaMallocHost(&memory, grown);
    if (error != cudaSuccess) {
      return CudaStatus(error, absl::StrCat("CUDA attention: ", grown, " bytes of ",
                                            place_ == Place::kDevice ? "HBM" : "pinned memory"));
    }
    data_ = static_cast<std::byte*>(memory);
    size_ = grown;
    return absl::OkStatus();
  }

 private:
  // An error would be one of work before, which has been reported.
  void Free() {
    if (data_ == nullptr) return;
    (void)(place_ == Place::kDevice ? cudaFree(data_) : cudaFreeHost(data_));
    data_ = nullptr;
    size_ = 0;
  }

  const Place place_;
  std::byte* data_ = nullptr;
  size_t size_ = 0;
};

// Arrays that lie one after the other in one buffer.
class Arrangement {
 public:
  // The offset of an array of so many bytes behind the others.
  size_t Add(size_t bytes) {
    const size_t at = bytes_;
    bytes_ += (bytes + kArrayAlignment - 1) / kArrayAlignment * kArrayAlignment;
    return at;
  }
  size_t bytes() const { return bytes_; }

 private:
  size_t bytes_ = 0;
};

class CudaAttention final : public DeviceAttention {
 public:
  CudaAttention(size_t head_dim, int device, size_t pieces)
      : head_dim_(head_dim), device_(device), plan_({.head_dim = head_dim, .pieces = pieces}) {}

  ~CudaAttention() override {
    const CudaDeviceScope scope(device_);
    if (stream_ != nullptr) (void)cudaStreamSynchronize(stream_);
    if (begin_ != nullptr) (void)cudaEventDestroy(begin_);
    if (end_ != nullptr) (void)cudaEventDestroy(end_);
    if (stream_ != nullptr) (void)cudaStreamDestroy(stream_);
  }

  // Once, before anything else; the current device is device_.
  absl::Status Open(size_t reserved_rows) {
    int lowest = 0;
    int highest = 0;
    absl::Status status =
        CudaStatus(cudaDeviceGetStreamPriorityRange(&lowest, &highest), "CUDA attention: priority");
    // A step waits for attention, while copies for later steps may run at the same time.
    status.Update(CudaStatus(cudaStreamCreateWithPriority(&stream_, cudaStreamNonBlocking, highest),
                             "CUDA attention: stream"));
    status.Update(CudaStatus(cudaEventCreate(&begin_), "CUDA attention: event"));
    status.Update(CudaStatus(cudaEventCreate(&end_), "CUDA attention: event"));
    for (CudaBuffer* buffer : {&staging_, &input_, &results_, &output_}) {
      status.Update(buffer->Reserve(kReservedBytes));
    }
    status.Update(partials_.Reserve(reserved_rows * (head_dim_ + 2) * sizeof(float)));
    return status;
  }

  absl::Status Start(absl::Span<const AttentionJob> jobs) override {
    TERRACE_CHECK(!started_);
    if (!lost_.ok()) return lost_;
    if (absl::Status status = plan_.Make(jobs); !status.ok()) return status;
    jobs_ = jobs;
    if (plan_.rows() > 0) {
      const CudaDeviceScope scope(device_);
      if (absl::Status status = UseDevice(); !status.ok()) return status;
      if (absl::Status status = Arrange(); !status.ok()) return status;
      FillStaging();
      if (absl::Status status = Enqueue(); !status.ok()) {
        // What was enqueued before the error may still use the buffers.
        (void)cudaStreamSynchronize(stream_);
        return lost_ = status;
      }
    }
    started_ = true;
    return absl::OkStatus();
  }

  absl::Status Finish() override {
    if (!std::exchange(started_, false)) return absl::OkStatus();
    device_seconds_ = 0;
    if (plan_.rows() == 0) return absl::OkStatus();
    const CudaDeviceScope scope(device_);
    absl::Status status = UseDevice();
    if (status.ok()) {
      status = CudaStatus(cudaStreamSynchronize(stream_), "CUDA attention: finish");
      if (!status.ok()) lost_ = status;
    }
    float milliseconds = 0;
    if (status.ok()) {
      status =
          CudaStatus(cudaEventElapsedTime(&milliseconds, begin_, end_), "CUDA attention: time");
    }
    if (!status.ok()) return status;
    device_seconds_ = static_cast<double>(milliseconds) / 1e3;
    const auto* out = reinterpret_cast<const float*>(results_.data());
    const auto* lse = reinterpret_cast<const float*>(results_.data() + lse_at_);
    for (const AttentionJob& job : jobs_) {
      std::copy_n(out, job.out.size(), job.out.data());
      std::copy_n(lse, job.lse.size(), job.lse.data());
      out += job.out.size();
      lse += job.lse.size();
    }
    return absl::OkStatus();
  }

  bool started() const override { return started_; }
  bool usable() const override { return lost_.ok(); }
  double device_seconds() const override { return device_seconds_; }

 private:
  // The current device is one of the thread's, and any thread may call.
  absl::Status UseDevice() { return CudaStatus(cudaSetDevice(device_), "CUDA attention: device"); }

  // Decides where everything goes, in buffers that are large enough.
  absl::Status Arrange() {
    const size_t row_bytes = head_dim_ * sizeof(float);
    Arrangement input;
    queries_at_ = input.Add(plan_.rows() * row_bytes);
    parts_at_ = input.Add(plan_.parts().size() * sizeof(DevicePart));
    for (size_t kernel = 0; kernel < kAttentionKernels; ++kernel) {
      const auto pieces = plan_.pieces(static_cast<AttentionKernel>(kernel));
      pieces_at_[kernel] = input.Add(pieces.size() * sizeof(DevicePiece));
    }
    ranges_at_ = input.Add(plan_.ranges().size() * sizeof(DeviceRange));
    limits_at_ = input.Add(plan_.limits().size() * sizeof(uint32_t));
    input_bytes_ = input.bytes();

    Arrangement output;
    output.Add(plan_.rows() * row_bytes);
    lse_at_ = output.Add(plan_.rows() * sizeof(float));
    output_bytes_ = output.bytes();

    Arrangement partials;
    partials.Add(plan_.partial_rows() * row_bytes);
    stats_at_ = partials.Add(plan_.partial_rows() * sizeof(float2));

    absl::Status status = staging_.Reserve(input_bytes_);
    if (status.ok()) status = input_.Reserve(input_bytes_);
    if (status.ok()) status = results_.Reserve(output_bytes_);
    if (status.ok()) status = output_.Reserve(output_bytes_);
    if (status.ok()) status = partials_.Reserve(partials.bytes());
    return status;
  }

  template <typename T>
  void Stage(absl::Span<const T> array, size_t at) {
    if (!array.empty()) std::memcpy(staging_.data() + at, array.data(), array.size() * sizeof(T));
  }

  void FillStaging() {
    size_t at = queries_at_;
    for (const AttentionJob& job : jobs_) {
      Stage(job.queries, at);
      at += job.queries.size() * sizeof(float);
    }
    Stage(plan_.parts(), parts_at_);
    for (size_t kernel = 0; kernel < kAttentionKernels; ++kernel) {
      Stage(plan_.pieces(static_cast<AttentionKernel>(kernel)), pieces_at_[kernel]);
    }
    Stage(plan_.ranges(), ranges_at_);
    Stage(plan_.limits(), limits_at_);
  }

  template <typename T>
  T* InputAt(size_t at) const {
    return reinterpret_cast<T*>(input_.data() + at);
  }

  absl::Status Enqueue() {
    cudaError_t error = cudaMemcpyAsync(input_.data(), staging_.data(), input_bytes_,
                                        cudaMemcpyHostToDevice, stream_);
    if (error == cudaSuccess) error = cudaEventRecord(begin_, stream_);
    for (size_t kernel = 0; kernel < kAttentionKernels && error == cudaSuccess; ++kernel) {
      error = EnqueueKernel(static_cast<AttentionKernel>(kernel));
    }
    if (error == cudaSuccess) {
      error = LaunchMerge({.ranges = InputAt<DeviceRange>(ranges_at_),
                           .partial_out = reinterpret_cast<float*>(partials_.data()),
                           .partial_stats = reinterpret_cast<float2*>(partials_.data() + stats_at_),
                           .out = reinterpret_cast<float*>(output_.data()),
                           .lse = reinterpret_cast<float*>(output_.data() + lse_at_),
                           .range_count = static_cast<uint32_t>(plan_.ranges().size()),
                           .max_range_rows = static_cast<uint32_t>(plan_.max_range_rows()),
                           .head_dim = static_cast<uint32_t>(head_dim_)},
                          stream_);
    }
    if (error == cudaSuccess) error = cudaEventRecord(end_, stream_);
    if (error == cudaSuccess) {
      error = cudaMemcpyAsync(results_.data(), output_.data(), output_bytes_,
                              cudaMemcpyDeviceToHost, stream_);
    }
    return CudaStatus(error, "CUDA attention: start");
  }

  cudaError_t EnqueueKernel(AttentionKernel kernel) {
    const size_t pieces = plan_.pieces(kernel).size();
    if (pieces == 0) return cudaSuccess;
    const AttentionLaunch launch = {
        .queries = InputAt<float>(queries_at_),
        .parts = InputAt<DevicePart>(parts_at_),
        .pieces = InputAt<DevicePiece>(pieces_at_[static_cast<size_t>(kernel)]),
        .limits = InputAt<uint32_t>(limits_at_),
        .partial_out = reinterpret_cast<float*>(partials_.data()),
        .partial_stats = reinterpret_cast<float2*>(partials_.data() + stats_at_),
        .piece_count = static_cast<uint32_t>(pieces),
        .head_dim = static_cast<uint32_t>(head_dim_),
        .scale = static_cast<float>(M_LOG2E / std::sqrt(static_cast<double>(head_dim_)))};
    switch (kernel) {
      case AttentionKernel::kTensorFloat16:
        return LaunchTensorAttention(/*bfloat16=*/false, launch, stream_);
      case AttentionKernel::kTensorBfloat16:
        return LaunchTensorAttention(/*bfloat16=*/true, launch, stream_);
      case AttentionKernel::kPlainFloat32:
      case AttentionKernel::kPlainFloat16:
      case AttentionKernel::kPlainBfloat16:
        break;
    }
    return LaunchPlainAttention(kernel, launch, stream_);
  }

  const size_t head_dim_;
  const int device_;

  cudaStream_t stream_ = nullptr;
  cudaEvent_t begin_ = nullptr;  // of what the device computes
  cudaEvent_t end_ = nullptr;
  CudaBuffer staging_{CudaBuffer::Place::kPinned};   // queries and plan
  CudaBuffer input_{CudaBuffer::Place::kDevice};     // the same
  CudaBuffer partials_{CudaBuffer::Place::kDevice};  // results of pieces
  CudaBuffer output_{CudaBuffer::Place::kDevice};    // results
  CudaBuffer results_{CudaBuffer::Place::kPinned};   // the same

  // The batch under way: offsets in bytes.
  absl::Span<const AttentionJob> jobs_;
  AttentionPlan plan_;
  size_t queries_at_ = 0;
  size_t parts_at_ = 0;
  size_t pieces_at_[kAttentionKernels] = {};
  size_t ranges_at_ = 0;
  size_t limits_at_ = 0;
  size_t input_bytes_ = 0;
  size_t lse_at_ = 0;
  size_t output_bytes_ = 0;
  size_t stats_at_ = 0;

  bool started_ = false;
  absl::Status lost_;  // what every later Start returns
  double device_seconds_ = 0;
};

// Finds the device, makes it current and says how many pieces it works on at once.
absl::StatusOr<size_t> PrepareDevice(size_t head_dim, int device) {
  int count = 0;
  if (absl::Status status = CudaStatus(cudaGetDeviceCount(&count), "CUDA attention");
      !status.ok()) {
    return status;
  }
  if (device < 0 || device >= count) {
    return absl::InvalidArgumentError(
        absl::StrCat("CUDA attention: device ", device, " of ", count, " devices"));
  }
  int major = 0;
  int processors = 0;
  int at_once = 0;
  absl::Status status = CudaStatus(cudaSetDevice(device), "CUDA attention: device");
  if (status.ok()) {
    status = CudaStatus(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device),
                        "CUDA attention: compute capability");
  }
  if (status.ok() && major < 8) {
    return absl::UnavailableError(
        absl::StrCat("CUDA attention: device ", device, " is older than compute capability 8.0"));
  }
  if (status.ok()) {
    status = CudaStatus(cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, device),
                        "CUDA attention: multiprocessors");
  }
  if (status.ok()) {
    const auto dim = static_cast<uint32_t>(head_dim);
    status = CudaStatus(head_dim <= kMaxTensorHeadDim ? PrepareTensorAttention(dim, &at_once)
                                                      : PreparePlainAttention(dim, &at_once),
                        "CUDA attention: kernels");
  }
  if (!status.ok()) return status;
  return static_cast<size_t>(processors) * static_cast<size_t>(std::max(1, at_once));
}

}  // namespace

absl::StatusOr<std::unique_ptr<DeviceAttention>> MakeCudaAttention(
    const DeviceAttention::Options& options, int device) {
  if (options.head_dim == 0 || options.head_dim % 8 != 0 ||
      options.head_dim > kMaxAttentionHeadDim) {
    return absl::InvalidArgumentError(absl::StrCat("head_dim: ", options.head_dim,
                                                   " is not a multiple of 8 from 8 to ",
                                                   kMaxAttentionHeadDim));
  }
  const CudaDeviceScope scope(device);
  const absl::StatusOr<size_t> at_once = PrepareDevice(options.head_dim, device);
  if (!at_once.ok()) return at_once.status();
  const size_t pieces = options.pieces > 0 ? options.pieces : kRounds * *at_once;
  auto attention = std::make_unique<CudaAttention>(options.head_dim, device, pieces);
  const size_t rows = pieces * std::min<size_t>(options.usual_rows, kPieceRows);
  if (absl::Status status = attention->Open(rows); !status.ok()) return status;
  return attention;
}

}  // namespace terrace
