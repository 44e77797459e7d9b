#ifndef TERRACE_RUNTIME_CUDA_TOP_K_KERNELS_H_
#define TERRACE_RUNTIME_CUDA_TOP_K_KERNELS_H_

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>

namespace terrace {

// Where the k largest of each of many arrays are, as LargestScores of runtime/top_k.h has it. By
// counting numbers whose bits begin alike, three times, each time for more of the bits: so the
// numbers are read four times, whatever k is, and only the k chosen are sorted. Private to files
// built with CUDA.

// `scores` is [arrays, count], `best` is [arrays, k], `best_scores` is [arrays, k], their scores,
// and `scratch` has CudaTopKScratch bytes and is aligned to 8; all are in device memory. Returns at
// once. Results do not depend on the order in which threads run. REQUIRES: k is from 1 to count and
// at most kMaxTopK; arrays is at most 65535.
size_t CudaTopKScratch(unsigned arrays, unsigned k);
cudaError_t LaunchTopK(const float* scores, unsigned arrays, unsigned count, unsigned k,
                       uint32_t* best, float* best_scores, void* scratch, cudaStream_t stream);

}  // namespace terrace

#endif  // TERRACE_RUNTIME_CUDA_TOP_K_KERNELS_H_
