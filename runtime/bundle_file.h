#ifndef TERRACE_RUNTIME_BUNDLE_FILE_H_
#define TERRACE_RUNTIME_BUNDLE_FILE_H_

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "io/block_device.h"
#include "io/checksum.h"
#include "runtime/bundle_shape.h"

namespace terrace {

struct BundleHeader;

// Low-rank factors of the matrix that decides which neurons of one expert fire: neuron at place p
// is expected to when  b[p] . (a x) > thresholds[p]. fp16 bits, row-major.
struct PredictorFactors {
  uint32_t rank = 0;
  std::vector<uint16_t> a;        // [rank, width]
  std::vector<uint16_t> b;        // [neurons, rank], by place
  std::vector<float> thresholds;  // [neurons], by place

  size_t bytes() const {
    return sizeof(uint16_t) * (a.size() + b.size()) + sizeof(float) * thresholds.size();
  }
};

// What a bundle file says beside the bundles themselves.
struct BundleTables {
  // Tells models apart: a file is used only with the model that it was made of.
  uint64_t model_fingerprint = 0;
  // [units, neurons] neuron of each place; empty: places are neurons.
  std::vector<uint32_t> order;
  // [units, neurons] share of calibration tokens for which the neuron at the place fired, from 0 to
  // 1; empty: unknown.
  std::vector<float> frequency;
  // [units], or empty: no predictor.
  std::vector<PredictorFactors> predictors;
  // The largest share of firing neurons that the thresholds were to miss in calibration.
  double false_negative_bound = 0;

  // Bytes in memory.
  size_t bytes() const;
  // kInvalidArgument naming table, unit and value: a size that is not the shape's, an order that is
  // no permutation, a share that is none, a threshold that is NaN, factors that are not finite.
  absl::Status Validate(const BundleShape& shape) const;
};

// The directory of a bundle file, in memory: everything but the bundles, which are read through a
// BlockDevice by whoever needs them and are checked here. Constant, so thread-safe.
//
// The file is a page of header (magic, version, shape, model fingerprint, extent and checksum of
// each table, and its own checksum), the groups as BundleShape describes them, and the tables: a
// checksum of each page of groups, order, frequencies, predictors. Little-endian.
class BundleFile {
 public:
  // Tables of models that there are take a fraction of it.
  static constexpr uint64_t kMaxBytes = uint64_t{8} << 30;

  // Reads header and tables of the file. Bundles are to be read through another device on `path`,
  // opened read_only; what was replaced in between does not pass Verify. Errors name the path:
  // those of OpenFileDevice, and of Read.
  static absl::StatusOr<std::unique_ptr<const BundleFile>> Open(const std::string& path,
                                                                uint64_t max_bytes = kMaxBytes);
  // Reads header and tables through an idle device, which is not kept. kInvalidArgument for what is
  // no bundle file, has another version, a shape or tables that are out of bounds, or a size other
  // than the header says, and for tables of more than `max_bytes` in memory; kDataLoss for a wrong
  // checksum and what cannot be read.
  static absl::StatusOr<std::unique_ptr<const BundleFile>> Read(BlockDevice& device,
                                                                uint64_t max_bytes = kMaxBytes);

  const std::string& path() const { return path_; }
  const BundleShape& shape() const { return shape_; }
  const BundleTables& tables() const { return tables_; }
  uint64_t file_bytes() const { return file_bytes_; }
  // Of the directory itself.
  size_t memory_bytes() const;

  // The neuron at a place, as the model numbers them. REQUIRES: in range.
  uint32_t NeuronAt(uint32_t unit, uint32_t place) const;
  // The place of each neuron of the unit, [neurons]: the inverse of NeuronAt.
  std::vector<uint32_t> PlacesOf(uint32_t unit) const;
  // [neurons] by place; empty when unknown.
  absl::Span<const float> Frequency(uint32_t unit) const;
  // Null when the file has no predictors.
  const PredictorFactors* Predictor(uint32_t unit) const;

  // Whether `bytes`, read from `offset` on, are what was packed: OK, or kDataLoss naming path, the
  // first wrong page's offset, layer, expert and group. REQUIRES: whole pages within the groups.
  absl::Status Verify(uint64_t offset, absl::Span<const std::byte> bytes) const;

  // kInvalidArgument, naming both, when the file was made of another model.
  absl::Status CheckModel(uint64_t model_fingerprint) const;

 private:
  BundleFile() = default;
  absl::Status ReadTables(BlockDevice& device, const BundleHeader& header);

  std::string path_;
  BundleShape shape_;
  BundleTables tables_;
  uint64_t file_bytes_ = 0;
  std::vector<PageChecksum> checksums_;  // [data pages]
};

}  // namespace terrace

#endif  // TERRACE_RUNTIME_BUNDLE_FILE_H_
