#ifndef TERRACE_RUNTIME_ROPE_H_
#define TERRACE_RUNTIME_ROPE_H_

#include <cstddef>
#include <cstdint>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"

namespace terrace {

// Rotary position embedding as a model declares it.
struct RopeOptions {
  enum class Scaling : uint8_t {
    kNone,
    kLinear,  // every frequency divided by `factor`
    kLlama3,  // low frequencies divided by `factor`, high ones kept, those between interpolated
  };

  double theta = 10000;
  Scaling scaling = Scaling::kNone;
  double factor = 1;
  // kLlama3 only.
  double low_frequency_factor = 1;
  double high_frequency_factor = 4;
  double original_context = 8192;  // tokens

  // kInvalidArgument naming the field and its value.
  absl::Status Validate() const;
  friend bool operator==(const RopeOptions& a, const RopeOptions& b) = default;
};

// Rotates the halves of a head against each other: element i and element i + head_dim / 2 by the
// angle position * frequency(i), as Hugging Face's Llama does (RoFormer, section 3.2.2, with the
// pairs split by halves). Rotations add up: Rotate by p, then by q, is Rotate by p + q.
//
// Constant after construction, so thread-safe.
class Rope {
 public:
  // kInvalidArgument for an odd or zero head_dim or options that do not validate.
  static absl::StatusOr<Rope> Create(size_t head_dim, const RopeOptions& options);

  size_t head_dim() const { return 2 * frequencies_.size(); }
  // Radians a token, falling: [head_dim / 2].
  absl::Span<const double> frequencies() const { return frequencies_; }

  // The cosines and sines of one position, to rotate many rows by: [head_dim / 2] each. Angles are
  // reduced in double, so that they stay exact at a position of millions.
  void Angles(int64_t position, absl::Span<float> cosines, absl::Span<float> sines) const;

  // Rotates `rows` rows of head_dim in place, each by the same angles: [rows, head_dim].
  static void Rotate(absl::Span<const float> cosines, absl::Span<const float> sines,
                     absl::Span<float> rows);

  // Rotates the heads of consecutive tokens in place, token t by first_position + t:
  // [tokens, heads, head_dim].
  void RotateTokens(int64_t first_position, size_t heads, absl::Span<float> rows) const;

 private:
  explicit Rope(std::vector<double> frequencies) : frequencies_(std::move(frequencies)) {}

  std::vector<double> frequencies_;
};

}  // namespace terrace

#endif  // TERRACE_RUNTIME_ROPE_H_
