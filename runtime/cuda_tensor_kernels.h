#ifndef TERRACE_RUNTIME_CUDA_TENSOR_KERNELS_H_
#define TERRACE_RUNTIME_CUDA_TENSOR_KERNELS_H_

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>

namespace terrace {

// Instructions from sm_80 on that CUDA C++ has no functions for: asynchronous copies and matrix
// products. Private, for .cu files. Addresses in shared memory are those of
// __cvta_generic_to_shared.
//
// The matrices of a product lie in the registers of a warp as the PTX manual has them ("Matrix
// fragments for mma.m16n8k16"): lane 4 g + t holds rows g and g + 8, columns 2 t and 2 t + 1 of
// each block of eight columns.

inline constexpr uint32_t kChunkBytes = 16;  // of one asynchronous copy

// Two elements in a register, and products of them.
struct Float16 {
  // The largest element of a query row is scaled to 2^kQueryExponent and more, so that what its
  // upper half leaves is not too small for a lower half.
  static constexpr int kQueryExponent = 10;

  static __device__ __forceinline__ uint32_t Pack(float low, float high) {
    const __half2 pair = __floats2half2_rn(low, high);
    return *reinterpret_cast<const uint32_t*>(&pair);
  }
  static __device__ __forceinline__ float2 Unpack(uint32_t bits) {
    return __half22float2(*reinterpret_cast<const __half2*>(&bits));
  }
  // sums += a b, [16, 8] += [16, 16] [16, 8].
  static __device__ __forceinline__ void Multiply(const uint32_t (&a)[4], uint32_t b0, uint32_t b1,
                                                  float (&sums)[4]) {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 "
        "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
  }
};

struct Bfloat16 {
  static constexpr int kQueryExponent = 0;

  static __device__ __forceinline__ uint32_t Pack(float low, float high) {
    const __nv_bfloat162 pair = __floats2bfloat162_rn(low, high);
    return *reinterpret_cast<const uint32_t*>(&pair);
  }
  static __device__ __forceinline__ float2 Unpack(uint32_t bits) {
    return __bfloat1622float2(*reinterpret_cast<const __nv_bfloat162*>(&bits));
  }
  static __device__ __forceinline__ void Multiply(const uint32_t (&a)[4], uint32_t b0, uint32_t b1,
                                                  float (&sums)[4]) {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
        "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
  }
};

// Copies 16 bytes to shared memory, or writes as many zeros and does not follow `from`.
__device__ __forceinline__ void CopyChunk(uint32_t to, const unsigned char* from, bool zeros) {
  asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16, %2;" ::"r"(to),
               "l"(__cvta_generic_to_global(from)), "r"(zeros ? 0 : 16)
               : "memory");
}
__device__ __forceinline__ void CommitCopies() {
  asm volatile("cp.async.commit_group;" ::: "memory");
}
// Until at most kGroups of the lane's last groups of copies are under way.
template <uint32_t kGroups>
__device__ __forceinline__ void WaitForCopies() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kGroups) : "memory");
}

// Four blocks of 8 x 8 elements, whose rows the lanes point at, eight each.
__device__ __forceinline__ void LoadBlocks(uint32_t from, uint32_t (&blocks)[4]) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(blocks[0]), "=r"(blocks[1]), "=r"(blocks[2]), "=r"(blocks[3])
               : "r"(from)
               : "memory");
}
__device__ __forceinline__ void LoadTransposedBlocks(uint32_t from, uint32_t (&blocks)[4]) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(blocks[0]), "=r"(blocks[1]), "=r"(blocks[2]), "=r"(blocks[3])
               : "r"(from)
               : "memory");
}

}  // namespace terrace

#endif  // TERRACE_RUNTIME_CUDA_TENSOR_KERNELS_H_
