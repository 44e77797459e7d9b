#include "runtime/cuda_probe.h"

#include <cuda_runtime_api.h>

#include "absl/strings/str_cat.h"
#include "io/cuda_status.h"

namespace terrace {
namespace {

class CudaProbe final : public DeviceCopyProbe {
 public:
  CudaProbe(int device, size_t bytes) : device_(device), bytes_(bytes) {}

  ~CudaProbe() override {
    (void)cudaSetDevice(device_);
    if (begin_ != nullptr) (void)cudaEventDestroy(begin_);
    if (end_ != nullptr) (void)cudaEventDestroy(end_);
    if (stream_ != nullptr) (void)cudaStreamDestroy(stream_);
    (void)cudaFree(source_);
    (void)cudaFree(destination_);
  }

  absl::Status Open() {
    absl::Status status = CudaStatus(cudaSetDevice(device_), "CUDA probe: device");
    if (!status.ok()) return status;
    cudaDeviceProp properties = {};
    int driver = 0;
    int runtime = 0;
    status.Update(CudaStatus(cudaGetDeviceProperties(&properties, device_), "CUDA probe: device"));
    status.Update(CudaStatus(cudaDriverGetVersion(&driver), "CUDA probe: driver"));
    status.Update(CudaStatus(cudaRuntimeGetVersion(&runtime), "CUDA probe: runtime"));
    text_ = absl::StrCat(properties.name, ", driver API ", VersionText(driver), ", CUDA ",
                         VersionText(runtime));
    status.Update(CudaStatus(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking),
                             "CUDA probe: stream"));
    status.Update(CudaStatus(cudaEventCreate(&begin_), "CUDA probe: event"));
    status.Update(CudaStatus(cudaEventCreate(&end_), "CUDA probe: event"));
    status.Update(CudaStatus(cudaMalloc(&source_, bytes_), "CUDA probe: HBM"));
    status.Update(CudaStatus(cudaMalloc(&destination_, bytes_), "CUDA probe: HBM"));
    if (!status.ok()) return status;
    return CudaStatus(cudaMemsetAsync(source_, 0x5a, bytes_, stream_), "CUDA probe: set");
  }

  absl::StatusOr<double> Seconds(size_t copies) override {
    cudaError_t error = cudaSetDevice(device_);
    if (error == cudaSuccess) error = cudaEventRecord(begin_, stream_);
    for (size_t i = 0; i < copies && error == cudaSuccess; ++i) {
      error = cudaMemcpyAsync(destination_, source_, bytes_, cudaMemcpyDeviceToDevice, stream_);
    }
    if (error == cudaSuccess) error = cudaEventRecord(end_, stream_);
    if (error == cudaSuccess) error = cudaStreamSynchronize(stream_);
    float milliseconds = 0;
    if (error == cudaSuccess) error = cudaEventElapsedTime(&milliseconds, begin_, end_);
    if (error != cudaSuccess) return CudaStatus(error, "CUDA probe: copy");
    return static_cast<double>(milliseconds) / 1e3 / static_cast<double>(copies);
  }

  std::string DeviceText() const override { return text_; }

 private:
  static std::string VersionText(int version) {
    return absl::StrCat(version / 1000, ".", version % 1000 / 10);
  }

  const int device_;
  const size_t bytes_;
  std::string text_;
  cudaStream_t stream_ = nullptr;
  cudaEvent_t begin_ = nullptr;
  cudaEvent_t end_ = nullptr;
  void* source_ = nullptr;
  void* destination_ = nullptr;
};

}  // namespace

absl::StatusOr<std::unique_ptr<DeviceCopyProbe>> MakeDeviceCopyProbe(int device, size_t bytes) {
  auto probe = std::make_unique<CudaProbe>(device, bytes);
  if (absl::Status status = probe->Open(); !status.ok()) return status;
  return probe;
}

}  // namespace terrace
