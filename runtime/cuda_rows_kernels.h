#ifndef TERRACE_RUNTIME_CUDA_ROWS_KERNELS_H_
#define TERRACE_RUNTIME_CUDA_ROWS_KERNELS_H_

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>

namespace terrace {

// What DeviceRows does, for `count` rows; all addresses are the device's. Return at once. Private
// to files built with CUDA. REQUIRES: row_bytes is a multiple of 16 and count * row_bytes is at
// most 16 GiB.
struct CudaRowCopy {
  std::byte* const* panels = nullptr;
  unsigned panel_rows = 0;
  const uint32_t* rows = nullptr;  // [count]
  unsigned count = 0;
  unsigned row_bytes = 0;
};
cudaError_t LaunchGatherRows(const CudaRowCopy& copy, std::byte* packed, cudaStream_t stream);
cudaError_t LaunchScatterRows(const CudaRowCopy& copy, const std::byte* packed,
                              cudaStream_t stream);

}  // namespace terrace

#endif  // TERRACE_RUNTIME_CUDA_ROWS_KERNELS_H_
