#ifndef TERRACE_TOOLS_ENGINE_CHECKPOINT_BUNDLES_H_
#define TERRACE_TOOLS_ENGINE_CHECKPOINT_BUNDLES_H_

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/types/span.h"
#include "runtime/bundle_writer.h"
#include "tools/engine/checkpoint.h"
#include "tools/engine/ffn_tensors.h"

namespace terrace {

// Makes bundles of the matrices of a checkpoint: a BundleSource. Down columns lie across their
// matrix, so those of many neurons are picked in one pass over it and kept; gate and up rows are
// read one by one. Memory: 64 MiB of down columns and a few rows, whatever the size of the model.
// Thread-compatible.
class CheckpointBundles {
 public:
  // Everything is borrowed. order: as in BundleTables, or empty.
  CheckpointBundles(const Checkpoint& checkpoint, const FfnTensors& tensors,
                    const BundleShape& shape, absl::Span<const uint32_t> order);

  // kInvalidArgument, naming tensor and neuron, for a weight that is not finite in the shape's
  // dtype; otherwise the errors of reading.
  absl::Status Fill(const BundleRun& run, absl::Span<std::byte> bundles);

 private:
  uint32_t NeuronAt(uint32_t unit, uint32_t place) const;
  FfnNames NamesOf(uint32_t unit) const;
  absl::Status ReadRow(const std::string& tensor, uint32_t neuron, std::byte* to);
  absl::Status Encode(const std::string& tensor, uint32_t neuron, absl::Span<const float> values,
                      std::byte* to) const;
  // Makes columns_ those of the places from `first_place` on.
  absl::Status ReadColumns(uint32_t unit, uint32_t first_place);

  const Checkpoint& checkpoint_;
  const FfnTensors& tensors_;
  const BundleShape& shape_;
  const absl::Span<const uint32_t> order_;
  std::vector<float> row_;

  // Of `column_places_` places of a unit, from `column_first_` on: [places, width] in the shape's
  // dtype.
  std::vector<std::byte> columns_;
  uint32_t column_unit_ = 0;
  uint32_t column_first_ = 0;
  uint32_t column_places_ = 0;
};

}  // namespace terrace

#endif  // TERRACE_TOOLS_ENGINE_CHECKPOINT_BUNDLES_H_
