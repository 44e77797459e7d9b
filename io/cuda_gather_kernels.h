#ifndef TERRACE_IO_CUDA_GATHER_KERNELS_H_
#define TERRACE_IO_CUDA_GATHER_KERNELS_H_

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>

namespace terrace {

// Private, for files that are built with CUDA only.
struct GatherCopy {
  const void* source;
  void* destination;
  uint64_t bytes;
};

// The most copies of one launch: their table travels as a kernel parameter, of which there are 32
// KB from CUDA 12.1 and driver 530 on.
inline constexpr size_t kGatherMaxCopies = 1024;

// cudaSuccess where the kernels run on the current device; cudaErrorNoKernelImageForDevice where
// the library has no code for it. Loads them.
cudaError_t LoadGather();

// Starts a kernel that carries out `count` copies, 1 to kGatherMaxCopies of them, of at most 1 GiB
// each. Host memory must be pinned and mapped at the addresses given. Any alignment is right; 16
// bytes on both sides is fast. With `shares_bus` it takes less of the bus, for copy engines that
// work beside it. `copies` is read before it returns.
cudaError_t LaunchGather(const GatherCopy* copies, size_t count, bool shares_bus,
                         cudaStream_t stream);

}  // namespace terrace

#endif  // TERRACE_IO_CUDA_GATHER_KERNELS_H_
