#include "runtime/cuda_rows_kernels.h"

namespace terrace {
namespace {

constexpr unsigned kThreads = 256;
constexpr unsigned kPieceBytes = 16;
constexpr unsigned kPieces = 4;  // of a thread, all of which it loads before it stores the first

// Pieces of 16 bytes are numbered through the rows, so that neighbours copy neighbours whatever the
// size of a row.
template <bool kScatter>
__global__ void __launch_bounds__(kThreads) CopyRows(const CudaRowCopy copy, uint4* packed) {
  const unsigned row_pieces = copy.row_bytes / kPieceBytes;
  const unsigned pieces = copy.count * row_pieces;
  const unsigned begin = blockIdx.x * (kThreads * kPieces) + threadIdx.x;
  uint4* in_panel[kPieces];
#pragma unroll
  for (unsigned i = 0; i < kPieces; ++i) {
    const unsigned piece = begin + i * kThreads;
    in_panel[i] = nullptr;
    if (piece >= pieces) continue;
    const unsigned place = piece / row_pieces;
    const unsigned row = __ldg(copy.rows + place);
    const unsigned panel = row / copy.panel_rows;
    std::byte* const base = copy.panels[panel];
    in_panel[i] =
        reinterpret_cast<uint4*>(base + size_t{row - panel * copy.panel_rows} * copy.row_bytes) +
        (piece - place * row_pieces);
  }
  uint4 loaded[kPieces];
#pragma unroll
  for (unsigned i = 0; i < kPieces; ++i) {
    if (in_panel[i] != nullptr) {
      loaded[i] = kScatter ? packed[begin + i * kThreads] : *in_panel[i];
    }
  }
#pragma unroll
  for (unsigned i = 0; i < kPieces; ++i) {
    if (in_panel[i] == nullptr) continue;
    if (kScatter) {
      *in_panel[i] = loaded[i];
    } else {
      packed[begin + i * kThreads] = loaded[i];
    }
  }
}

template <bool kScatter>
cudaError_t Launch(const CudaRowCopy& copy, std::byte* packed, cudaStream_t stream) {
  if (copy.count == 0) return cudaSuccess;
  const unsigned pieces = copy.count * (copy.row_bytes / kPieceBytes);
  CopyRows<kScatter>
      <<<(pieces + kThreads * kPieces - 1) / (kThreads * kPieces), kThreads, 0, stream>>>(
          copy, reinterpret_cast<uint4*>(packed));
  return cudaGetLastError();
}

}  // namespace

cudaError_t LaunchGatherRows(const CudaRowCopy& copy, std::byte* packed, cudaStream_t stream) {
  return Launch<false>(copy, packed, stream);
}

cudaError_t LaunchScatterRows(const CudaRowCopy& copy, const std::byte* packed,
                              cudaStream_t stream) {
  return Launch<true>(copy, const_cast<std::byte*>(packed), stream);
}

}  // namespace terrace
