#include "io/cuda_memory.h"

#include <cstdint>
#include <utility>

#include "absl/strings/str_cat.h"
#include "io/cuda_status.h"

namespace terrace {
namespace {

// The driver grows a pool by so much at once, so allocations that do not fill their share of it
// need more of the pool than they have bytes.
constexpr size_t kPoolGrainBytes = size_t{32} << 20;

}  // namespace

CudaDeviceScope::CudaDeviceScope(int device) {
  // Where this fails, so does what follows, with the same error. It must not remain for others, who
  // ask for the last error after they have launched a kernel.
  if (cudaGetDevice(&before_) == cudaSuccess && before_ == device) return;
  changed_ = cudaSetDevice(device) == cudaSuccess;
  if (!changed_) (void)cudaGetLastError();
}

CudaDeviceScope::~CudaDeviceScope() {
  if (changed_) static_cast<void>(cudaSetDevice(before_));
}

// Memory of the pool.
class CudaMemory::Block final : public DeviceMemory {
 public:
  Block(std::shared_ptr<CudaMemory> owner, std::byte* data, size_t size)
      : owner_(std::move(owner)), data_(data), size_(size) {}
  ~Block() override { owner_->Free(data_, size_); }
  std::byte* data() const override { return data_; }
  size_t size() const override { return size_; }

 private:
  const std::shared_ptr<CudaMemory> owner_;
  std::byte* const data_;
  const size_t size_;
};

class CudaMemory::PinnedRange final : public PinnedMemory {
 public:
  PinnedRange(std::shared_ptr<CudaMemory> owner, std::byte* begin)
      : owner_(std::move(owner)), begin_(begin) {}
  ~PinnedRange() override { owner_->Unpin(begin_); }

 private:
  const std::shared_ptr<CudaMemory> owner_;
  std::byte* const begin_;
};

absl::StatusOr<std::shared_ptr<CudaMemory>> CudaMemory::Create(const CudaCopyOptions& options) {
  int count = 0;
  const absl::Status counted = CudaStatus(cudaGetDeviceCount(&count), "CUDA copy engine");
  if (!counted.ok()) return counted;
  if (count == 0) return absl::UnavailableError("CUDA copy engine: there is no CUDA device");
  if (options.device < 0 || options.device >= count) {
    return absl::InvalidArgumentError(absl::StrCat("CUDA copy engine: there is no device ",
                                                   options.device, " among the ", count,
                                                   " that answer"));
  }
  std::shared_ptr<CudaMemory> memory(new CudaMemory(options));
  if (absl::Status status = memory->Open(); !status.ok()) return status;
  return memory;
}

absl::Status CudaMemory::Open() {
  const CudaDeviceScope scope(device_);
  const auto failed = [&](cudaError_t error, absl::string_view what) {
    return Check(error, absl::StrCat("CUDA copy engine: device ", device_, ": ", what));
  };
  size_t free_bytes = 0;
  cudaDeviceProp properties = {};
  absl::Status status = failed(cudaMemGetInfo(&free_bytes, &device_bytes_), "memory");
  status.Update(failed(cudaGetDeviceProperties(&properties, device_), "properties"));
  int has_pools = 0;
  status.Update(failed(cudaDeviceGetAttribute(&has_pools, cudaDevAttrMemoryPoolsSupported, device_),
                       "memory pools"));
  if (!status.ok()) return status;
  name_ = properties.name;
  if (has_pools == 0) {
    return absl::UnavailableError(absl::StrCat("CUDA copy engine: device ", device_, ", ", name_,
                                               ", has no stream-ordered memory pools"));
  }
  cudaMemPoolProps pool = {};
  pool.allocType = cudaMemAllocationTypePinned;
  pool.location.type = cudaMemLocationTypeDevice;
  pool.location.id = device_;
  // Reserve is what keeps to the capacity, to the byte. 0 leaves the bound to the device.
  if (capacity_bytes_ < device_bytes_) {
    const size_t grains = (capacity_bytes_ + kPoolGrainBytes - 1) / kPoolGrainBytes + 1;
    const size_t bound = grains * kPoolGrainBytes;
    if (bound < device_bytes_) pool.maxSize = bound;
  }
  status = failed(cudaMemPoolCreate(&pool_, &pool), "cannot make a memory pool");
  if (!status.ok()) return status;
  uint64_t kept_bytes = capacity_bytes_;
  status = failed(cudaMemPoolSetAttribute(pool_, cudaMemPoolAttrReleaseThreshold, &kept_bytes),
                  "memory pool");
  if (!status.ok()) return status;
  return failed(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking), "cannot make a stream");
}

// Nobody holds memory of it any more. Of a lost device nothing can be given back.
CudaMemory::~CudaMemory() {
  const CudaDeviceScope scope(device_);
  if (stream_ != nullptr) static_cast<void>(cudaStreamDestroy(stream_));
  if (pool_ != nullptr) static_cast<void>(cudaMemPoolDestroy(pool_));
}

absl::Status CudaMemory::Check(cudaError_t error, absl::string_view what) {
  if (error == cudaSuccess) return absl::OkStatus();
  const absl::Status status = CudaStatus(error, what);
  if (absl::IsUnavailable(status)) {
    absl::MutexLock lock(&mu_);
    if (lost_.ok()) lost_ = status;
  }
  return status;
}

absl::Status CudaMemory::lost() const {
  absl::MutexLock lock(&mu_);
  return lost_;
}

absl::Status CudaMemory::Reserve(size_t bytes) {
  absl::MutexLock lock(&mu_);
  if (!lost_.ok()) return lost_;
  const size_t free_bytes = capacity_bytes_ - used_bytes_;
  if (bytes > free_bytes) {
    return absl::ResourceExhaustedError(absl::StrCat("CUDA memory: ", bytes, " bytes asked for, ",
                                                     free_bytes, " free of the ", capacity_bytes_,
                                                     " that it may have"));
  }
  if (bytes > device_bytes_) {
    return absl::ResourceExhaustedError(absl::StrCat(
        "CUDA memory: ", bytes, " bytes asked for, and ", name_, " has ", device_bytes_));
  }
  used_bytes_ += bytes;
  return absl::OkStatus();
}

absl::StatusOr<std::unique_ptr<DeviceMemory>> CudaMemory::Allocate(size_t bytes) {
  if (absl::Status reserved = Reserve(bytes); !reserved.ok()) return reserved;
  if (bytes == 0) return std::make_unique<Block>(shared_from_this(), nullptr, 0);
  const CudaDeviceScope scope(device_);
  void* data = nullptr;
  cudaError_t error = cudaMallocFromPoolAsync(&data, bytes, pool_, stream_);
  if (error == cudaErrorMemoryAllocation) {
    // What the pool keeps may be in pieces that are too small.
    static_cast<void>(cudaGetLastError());
    static_cast<void>(cudaStreamSynchronize(stream_));
    static_cast<void>(cudaMemPoolTrimTo(pool_, 0));
    error = cudaMallocFromPoolAsync(&data, bytes, pool_, stream_);
  }
  const bool allocated = error == cudaSuccess;
  // Other streams use it without waiting for this one.
  if (allocated) error = cudaStreamSynchronize(stream_);
  const absl::Status status =
      Check(error, absl::StrCat("CUDA memory: cannot allocate ", bytes, " bytes"));
  if (!status.ok()) {
    if (allocated) static_cast<void>(cudaFreeAsync(data, stream_));
    absl::MutexLock lock(&mu_);
    used_bytes_ -= bytes;
    return status;
  }
  std::byte* const begin = static_cast<std::byte*>(data);
  {
    absl::MutexLock lock(&mu_);
    allocations_.Add({.begin = begin, .bytes = bytes, .in_kernels = true});
  }
  return std::make_unique<Block>(shared_from_this(), begin, bytes);
}

void CudaMemory::Free(std::byte* data, size_t bytes) {
  if (data == nullptr) return;
  {
    // First, as somebody else may be given the same address at once.
    absl::MutexLock lock(&mu_);
    allocations_.Remove(data);
  }
  const CudaDeviceScope scope(device_);
  static_cast<void>(Check(cudaFreeAsync(data, stream_), "CUDA memory: cannot free"));
  static_cast<void>(Check(cudaStreamSynchronize(stream_), "CUDA memory: cannot free"));
  // Last, as the bytes can be had only now.
  absl::MutexLock lock(&mu_);
  used_bytes_ -= bytes;
}

absl::StatusOr<std::unique_ptr<PinnedMemory>> CudaMemory::Pin(absl::Span<std::byte> memory) {
  if (absl::Status gone = lost(); !gone.ok()) return gone;
  if (memory.empty()) return std::make_unique<PinnedMemory>();
  const CudaDeviceScope scope(device_);
  const absl::Status status =
      Check(cudaHostRegister(memory.data(), memory.size(),
                             cudaHostRegisterPortable | cudaHostRegisterMapped),
            absl::StrCat("CUDA: cannot pin ", memory.size(), " bytes of host memory"));
  if (!status.ok()) return status;
  void* mapped = nullptr;
  const bool in_kernels =
      cudaHostGetDevicePointer(&mapped, memory.data(), 0) == cudaSuccess && mapped == memory.data();
  if (!in_kernels) static_cast<void>(cudaGetLastError());
  {
    absl::MutexLock lock(&mu_);
    pinned_.Add({.begin = memory.data(), .bytes = memory.size(), .in_kernels = in_kernels});
  }
  return std::make_unique<PinnedRange>(shared_from_this(), memory.data());
}

void CudaMemory::Unpin(std::byte* begin) {
  {
    absl::MutexLock lock(&mu_);
    pinned_.Remove(begin);
  }
  const CudaDeviceScope scope(device_);
  static_cast<void>(Check(cudaHostUnregister(begin), "CUDA: cannot unpin host memory"));
}

std::vector<CopyPiece> CudaMemory::Plan(absl::Span<const Copy> batch, CudaCopyMethod method) const {
  absl::MutexLock lock(&mu_);
  return PlanCopies(batch, pinned_, allocations_, method);
}

}  // namespace terrace
