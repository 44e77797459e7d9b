#include "io/cuda_gather_kernels.h"

namespace terrace {
namespace {

// The bus needs about 100 KB under way at once (55 GB/s at 1.5 us). Each of 256 warps has 4 KiB, so
// few SMs do, and attention keeps the others.
constexpr int kThreads = 512;
constexpr int kMaxBlocks = 16;
constexpr int kMaxSharingBlocks = 8;
constexpr int kWarpLanes = 32;
constexpr int kWords = 8;  // of 16 bytes, under way for each thread
constexpr uint32_t kUnitBytes = kWarpLanes * kWords * sizeof(uint4);

template <int kCapacity>
struct GatherTable {
  uint32_t count;
  uint32_t units_per_copy;  // of the longest
  GatherCopy copies[kCapacity];
};

// One warp copies at most kUnitBytes.
__device__ void CopyUnit(const char* source, char* destination, uint32_t bytes, uint32_t lane) {
  const auto addresses =
      reinterpret_cast<uintptr_t>(source) | reinterpret_cast<uintptr_t>(destination);
  uint32_t done = 0;
  if (addresses % sizeof(uint4) == 0) {
    const uint4* const from = reinterpret_cast<const uint4*>(source);
    uint4* const to = reinterpret_cast<uint4*>(destination);
    if (bytes == kUnitBytes) {
      uint4 words[kWords];
#pragma unroll
      for (int i = 0; i < kWords; ++i) words[i] = __ldcs(from + i * kWarpLanes + lane);
#pragma unroll
      for (int i = 0; i < kWords; ++i) __stcs(to + i * kWarpLanes + lane, words[i]);
      return;
    }
    const uint32_t words = bytes / sizeof(uint4);
    for (uint32_t i = lane; i < words; i += kWarpLanes) __stcs(to + i, __ldcs(from + i));
    done = words * sizeof(uint4);
  }
  for (uint32_t i = done + lane; i < bytes; i += kWarpLanes) destination[i] = source[i];
}

template <int kCapacity>
__global__ void __launch_bounds__(kThreads)
    GatherKernel(const __grid_constant__ GatherTable<kCapacity> table) {
  const uint32_t lane = threadIdx.x % kWarpLanes;
  const uint32_t warp = (blockIdx.x * kThreads + threadIdx.x) / kWarpLanes;
  const uint32_t warps = gridDim.x * kThreads / kWarpLanes;
  const uint32_t units = table.count * table.units_per_copy;
  for (uint32_t unit = warp; unit < units; unit += warps) {
    const GatherCopy& copy = table.copies[unit / table.units_per_copy];
    const uint64_t at = static_cast<uint64_t>(unit % table.units_per_copy) * kUnitBytes;
    if (at >= copy.bytes) continue;
    const uint64_t left = copy.bytes - at;
    CopyUnit(static_cast<const char*>(copy.source) + at, static_cast<char*>(copy.destination) + at,
             left < kUnitBytes ? static_cast<uint32_t>(left) : kUnitBytes, lane);
  }
}

template <int kCapacity>
cudaError_t Launch(const GatherCopy* copies, size_t count, bool shares_bus, cudaStream_t stream) {
  GatherTable<kCapacity> table;
  uint64_t longest = 1;
  for (size_t i = 0; i < count; ++i) {
    table.copies[i] = copies[i];
    longest = copies[i].bytes > longest ? copies[i].bytes : longest;
  }
  table.count = static_cast<uint32_t>(count);
  table.units_per_copy = static_cast<uint32_t>((longest + kUnitBytes - 1) / kUnitBytes);
  constexpr uint64_t kBlockUnits = kThreads / kWarpLanes;
  const uint64_t blocks =
      (static_cast<uint64_t>(table.count) * table.units_per_copy + kBlockUnits - 1) / kBlockUnits;
  const uint64_t most = shares_bus ? kMaxSharingBlocks : kMaxBlocks;
  const dim3 grid(static_cast<unsigned>(blocks < most ? blocks : most));
  void* arguments[] = {&table};
  // Not <<<>>>: its error would have to be told from one that was there before.
  return cudaLaunchKernel(reinterpret_cast<const void*>(&GatherKernel<kCapacity>), grid,
                          dim3(kThreads), arguments, 0, stream);
}

}  // namespace

cudaError_t LoadGather() {
  cudaFuncAttributes attributes;
  const cudaError_t error =
      cudaFuncGetAttributes(&attributes, reinterpret_cast<const void*>(&GatherKernel<128>));
  if (error != cudaSuccess) return error;
  return cudaFuncGetAttributes(&attributes,
                               reinterpret_cast<const void*>(&GatherKernel<kGatherMaxCopies>));
}

cudaError_t LaunchGather(const GatherCopy* copies, size_t count, bool shares_bus,
                         cudaStream_t stream) {
  if (count == 0 || count > kGatherMaxCopies) return cudaErrorInvalidValue;
  // A short table costs less to hand over than a long one.
  return count <= 128 ? Launch<128>(copies, count, shares_bus, stream)
                      : Launch<kGatherMaxCopies>(copies, count, shares_bus, stream);
}

}  // namespace terrace
