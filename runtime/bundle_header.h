#ifndef TERRACE_RUNTIME_BUNDLE_HEADER_H_
#define TERRACE_RUNTIME_BUNDLE_HEADER_H_

#include <array>
#include <cstddef>
#include <cstdint>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "io/aligned_buffer.h"
#include "io/checksum.h"
#include "runtime/bundle_file.h"
#include "runtime/bundle_shape.h"

namespace terrace {

// The tables of a bundle file, in the order in which they lie behind the groups.
enum class BundleTable : uint8_t { kChecksums, kOrder, kFrequency, kPredictors };
inline constexpr size_t kBundleTables = 4;

// "page checksums", "order", "frequencies", "predictors".
const char* BundleTableName(BundleTable table);

// Where a table is: from a page on, padded to whole pages. 0 bytes: absent.
struct BundleExtent {
  uint64_t offset = 0;
  uint64_t bytes = 0;     // without the padding
  uint64_t checksum = 0;  // Checksum64 of them

  friend bool operator==(const BundleExtent&, const BundleExtent&) = default;
};

// The first page of a bundle file.
struct BundleHeader {
  BundleShape shape;
  uint64_t model_fingerprint = 0;
  double false_negative_bound = 0;
  std::array<BundleExtent, kBundleTables> tables;
  uint64_t file_bytes = 0;

  static constexpr uint32_t kVersion = 1;

  friend bool operator==(const BundleHeader&, const BundleHeader&) = default;
};

// Places the tables behind the groups by their `bytes`, and sets file_bytes.
void PlaceTables(BundleHeader& header);

// page: [kPageBytes].
void EncodeBundleHeader(const BundleHeader& header, absl::Span<std::byte> page);

// Whatever the bytes are: kInvalidArgument when they are no header, one of another version, or one
// that contradicts itself or bounds; kDataLoss when its checksum is wrong. What it returns has a
// valid shape, and tables that follow the groups without overlap and have the size that the shape
// gives them, or are absent where they may be. page: [kPageBytes].
absl::StatusOr<BundleHeader> DecodeBundleHeader(absl::Span<const std::byte> page);

// --- The table of predictors ---

// The most that a predictor's rank may be.
inline constexpr uint32_t kMaxPredictorRank = 4096;

size_t PredictorTableBytes(absl::Span<const PredictorFactors> predictors);
// bytes: [PredictorTableBytes].
void EncodePredictors(absl::Span<const PredictorFactors> predictors, absl::Span<std::byte> bytes);
// kInvalidArgument when the bytes are not as long as their ranks say, or a rank is out of bounds.
absl::StatusOr<std::vector<PredictorFactors>> DecodePredictors(const BundleShape& shape,
                                                               absl::Span<const std::byte> bytes);

}  // namespace terrace

#endif  // TERRACE_RUNTIME_BUNDLE_HEADER_H_
