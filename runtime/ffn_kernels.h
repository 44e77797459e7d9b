#ifndef TERRACE_RUNTIME_FFN_KERNELS_H_
#define TERRACE_RUNTIME_FFN_KERNELS_H_

#include <cstddef>

#include "absl/types/span.h"
#include "index/kv_dtype.h"

namespace terrace {

// The vectorised loops below SparseFfn, dispatched to the best instruction set of the processor.
// They do not allocate and are thread-safe on disjoint outputs. Weights are fp32, fp16 or bf16,
// everything else and all sums are fp32.

// sums[t] = row . x[t] for one row of weights, [width], and tokens of x that lie `x_stride` floats
// apart. The sum for a token is made in the same order whatever the other tokens are.
void DotTokens(KvDtype dtype, const void* row, const float* x, size_t x_stride, size_t width,
               absl::Span<float> sums);

// out[i] += scales[0] * rows[0][i] + scales[1] * rows[1][i] + ... for i < width, rounded after each
// term, so that the same rows in the same order give the same bits however they are cut into calls
// and columns.
void AddScaledRows(KvDtype dtype, absl::Span<const void* const> rows,
                   absl::Span<const float> scales, size_t width, float* out);

}  // namespace terrace

#endif  // TERRACE_RUNTIME_FFN_KERNELS_H_
