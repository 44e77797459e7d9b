#ifndef TERRACE_RUNTIME_ATTENTION_PIECES_H_
#define TERRACE_RUNTIME_ATTENTION_PIECES_H_

#include <cstddef>
#include <cstdint>

namespace terrace {

// What kernels read of a plan (see AttentionPlan): plain data, in device memory as it is here.

// The kernels that there are, each with pieces of its own.
enum class AttentionKernel : uint8_t {
  // On tensor cores: elements of two bytes, whose rows begin at multiples of 16 bytes.
  kTensorFloat16,
  kTensorBfloat16,
  // Any run.
  kPlainFloat32,
  kPlainFloat16,
  kPlainBfloat16,
};
inline constexpr size_t kAttentionKernels = 5;

// The rows that a piece has at most: those of one tile of the tensor cores.
inline constexpr uint32_t kPieceRows = 16;

// `limits` of a part that every row sees all of.
inline constexpr uint32_t kNoLimits = UINT32_MAX;

// A run of a job: a line of its block table.
struct alignas(16) DevicePart {
  const void* keys;  // device addresses; [tokens, head_dim], rows key_stride bytes apart
  const void* values;
  uint64_t key_stride;
  uint64_t value_stride;
  uint32_t tokens;
  // Where the limits of the job's rows for this part begin, or kNoLimits: row r sees the part's
  // tokens below limits[this + r].
  uint32_t limits;
};

// Tokens of consecutive parts of one job, at least one, for some of the job's rows: from token
// `first_token` of part `first_part` to before token `end_token` of part `last_part`.
struct alignas(16) DevicePiece {
  uint32_t first_part;
  uint32_t first_token;
  uint32_t last_part;
  uint32_t end_token;
  uint32_t first_row;    // of its rows, among the rows of all jobs
  uint32_t row_of_job;   // the same row, among those of its job
  uint32_t rows;         // from 1 to kPieceRows
  uint32_t partial_row;  // where its result goes: `rows` rows of the partial results from here on
};

// Rows of a job and the pieces, maybe none, that make up their tokens. Their partial results are
// [pieces, rows] rows from `partial_row` on.
struct alignas(16) DeviceRange {
  uint32_t first_row;  // among the rows of all jobs
  uint32_t rows;       // from 1 to kPieceRows
  uint32_t partial_row;
  uint32_t pieces;
};

}  // namespace terrace

#endif  // TERRACE_RUNTIME_ATTENTION_PIECES_H_
