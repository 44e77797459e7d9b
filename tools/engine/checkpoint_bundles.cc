#include "tools/engine/checkpoint_bundles.h"

#include <algorithm>
#include <cstring>
#include <optional>

#include "absl/strings/str_cat.h"
#include "index/kv_convert.h"

namespace terrace {
namespace {

constexpr size_t kColumnBytes = size_t{64} << 20;  // of down columns that are kept
constexpr size_t kChunkFloats = size_t{1} << 20;   // of the down matrix, read at a time

}  // namespace

CheckpointBundles::CheckpointBundles(const Checkpoint& checkpoint, const FfnTensors& tensors,
                                     const BundleShape& shape, absl::Span<const uint32_t> order)
    : checkpoint_(checkpoint), tensors_(tensors), shape_(shape), order_(order), row_(shape.width) {}

uint32_t CheckpointBundles::NeuronAt(uint32_t unit, uint32_t place) const {
  return order_.empty() ? place : order_[uint64_t{unit} * shape_.neurons + place];
}

FfnNames CheckpointBundles::NamesOf(uint32_t unit) const {
  return tensors_.Names(unit / shape_.experts, unit % shape_.experts);
}

absl::Status CheckpointBundles::Encode(const std::string& tensor, uint32_t neuron,
                                       absl::Span<const float> values, std::byte* to) const {
  const std::optional<size_t> bad =
      EncodeKv(values.data(), KvDtype::kFloat32, shape_.dtype, values.size(), to);
  if (!bad.has_value()) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat(checkpoint_.directory(), ": tensor \"", tensor, "\": neuron ", neuron,
                   ": the weight ", values[*bad], " is not finite in ", KvDtypeName(shape_.dtype)));
}

absl::Status CheckpointBundles::ReadRow(const std::string& tensor, uint32_t neuron, std::byte* to) {
  absl::Status status =
      checkpoint_.ReadPart(tensor, uint64_t{neuron} * shape_.width, absl::MakeSpan(row_));
  return status.ok() ? Encode(tensor, neuron, row_, to) : status;
}

absl::Status CheckpointBundles::ReadColumns(uint32_t unit, uint32_t first_place) {
  const size_t part_bytes = shape_.part_bytes();
  const size_t most = std::max<size_t>(kColumnBytes / part_bytes, 1);
  column_unit_ = unit;
  column_first_ = first_place;
  column_places_ = 0;  // until they are all there
  const auto places = static_cast<uint32_t>(std::min<size_t>(most, shape_.neurons - first_place));
  columns_.resize(places * part_bytes);

  const std::string tensor = NamesOf(unit).down;
  const size_t chunk_rows = std::clamp<size_t>(kChunkFloats / shape_.neurons, 1, shape_.width);
  std::vector<float> chunk(chunk_rows * shape_.neurons);
  std::vector<float> column(chunk_rows);
  for (size_t first = 0; first < shape_.width; first += chunk_rows) {
    const size_t rows = std::min<size_t>(chunk_rows, shape_.width - first);
    const absl::Span<float> values = absl::MakeSpan(chunk).first(rows * shape_.neurons);
    absl::Status status = checkpoint_.ReadPart(tensor, uint64_t{first} * shape_.neurons, values);
    for (uint32_t i = 0; status.ok() && i < places; ++i) {
      const uint32_t neuron = NeuronAt(unit, first_place + i);
      for (size_t row = 0; row < rows; ++row) column[row] = values[row * shape_.neurons + neuron];
      status = Encode(tensor, neuron, absl::MakeConstSpan(column).first(rows),
                      columns_.data() + i * part_bytes + first * KvDtypeBytes(shape_.dtype));
    }
    if (!status.ok()) return status;
  }
  column_places_ = places;
  return absl::OkStatus();
}

absl::Status CheckpointBundles::Fill(const BundleRun& run, absl::Span<std::byte> bundles) {
  const FfnNames names = NamesOf(run.unit);
  const size_t part_bytes = shape_.part_bytes();
  std::byte* to = bundles.data();
  for (uint32_t place = run.first_place; place < run.first_place + run.places; ++place) {
    const bool kept = run.unit == column_unit_ && place >= column_first_ &&
                      place - column_first_ < column_places_;
    absl::Status status = kept ? absl::OkStatus() : ReadColumns(run.unit, place);
    const uint32_t neuron = NeuronAt(run.unit, place);
    for (const std::string& name : {names.gate, names.up}) {
      if (name.empty()) continue;
      if (status.ok()) status = ReadRow(name, neuron, to);
      to += part_bytes;
    }
    if (!status.ok()) return status;
    std::memcpy(to, columns_.data() + (place - column_first_) * part_bytes, part_bytes);
    to += part_bytes;
  }
  return absl::OkStatus();
}

}  // namespace terrace
