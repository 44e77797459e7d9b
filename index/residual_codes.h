#ifndef TERRACE_INDEX_RESIDUAL_CODES_H_
#define TERRACE_INDEX_RESIDUAL_CODES_H_

#include <cstddef>
#include <cstdint>
#include <vector>

#include "absl/types/span.h"

namespace terrace {

// What a key differs by from the mean of its cluster, in a few bits for each of the dimensions in
// which keys of the segment differ most: step (code - (levels - 1) / 2), where the step is that of
// the best uniform quantiser of a normal distribution (Max, Quantizing for minimum distortion,
// 1960) with the spread of the cluster in that dimension. So steps take no memory of their own.
//
// Codes of 16 places, the keys of a segment in cluster order, lie side by side: a word of 16 bits
// has the codes of one place in 16 / bits dimensions, lowest bits first. [groups, words, 16], the
// last group padded with zeros.
struct ResidualShape {
  size_t bits = 0;        // 4, 2 or, for no codes, 0
  size_t dimensions = 0;  // a multiple of 16 / bits

  // What the memory of a table allows: with means and an order, codes are 7 % of fp16 keys and
  // values at a head_dim of 64 and of 128, with 16 keys a cluster.
  static ResidualShape For(size_t head_dim);

  size_t levels() const { return size_t{1} << bits; }
  size_t words() const { return bits == 0 ? 0 : dimensions * bits / 16; }
  size_t size(size_t places) const { return (places + 15) / 16 * 16 * words(); }
  // In deviations.
  float step() const { return bits == 4 ? 0.335f : 0.996f; }
  // The share of the variance that codes leave unknown.
  float distortion() const { return bits == 4 ? 0.0116f : 0.119f; }
};

inline constexpr size_t kCodedPlaces = 16;  // side by side

// The dimensions of the largest shares of `spread_shape`, [space dimensions], ascending; at most
// shape.dimensions of them. Codes beyond them say nothing.
std::vector<uint16_t> CodedDimensions(const ResidualShape& shape,
                                      absl::Span<const float> spread_shape);

// Sets the code of one place. `residual` is [space dimensions]; `spread` is that of its cluster.
void EncodeResidual(const ResidualShape& shape, absl::Span<const uint16_t> dimensions,
                    absl::Span<const float> spread_shape, float spread, const float* residual,
                    size_t place, uint16_t* codes);

// The queries of a group for the codes of one segment, in bytes of which no sum over the codes of a
// place overflows 16 bits. Used again, it allocates only where it grows. Thread-compatible.
class ResidualQueries {
 public:
  // `represented` is [space dimensions, rows], as QuerySpace::Represent makes it.
  void Set(const ResidualShape& shape, absl::Span<const uint16_t> dimensions,
           absl::Span<const float> spread_shape, absl::Span<const float> represented, size_t rows);

  // logits[row * stride + i] = bases[row] + query . residual of place first + i, of a cluster of
  // this deviation, for `count` places. By SIMD chosen at run time.
  void Score(const uint16_t* codes, size_t first, size_t count, float deviation,
             absl::Span<const float> bases, size_t stride, float* logits);

 private:
  ResidualShape shape_;
  std::vector<int16_t> steps_;  // [rows, shape_.words(), 8 / bits], as CodeProducts has them
  std::vector<float> scales_;   // [rows], of a step, for a deviation of 1
  std::vector<float> biases_;   // [rows], what a code of 0 adds, for a deviation of 1
  std::vector<float> weights_;  // [dimensions, rows], scratch: steps_ before they are rounded
  std::vector<float> at_zero_;  // [rows], scratch: the logit where all codes are 0
  std::vector<float> factors_;  // [rows], scratch
  std::vector<float> padded_;   // [rows, places], scratch
};

}  // namespace terrace

#endif  // TERRACE_INDEX_RESIDUAL_CODES_H_
