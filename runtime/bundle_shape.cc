#include "runtime/bundle_shape.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "io/check.h"

namespace terrace {
namespace {

absl::Status CheckField(const char* field, uint64_t value, uint64_t min, uint64_t max) {
  if (value >= min && value <= max) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat("bundles: ", field, ": ", value, " is not from ", min, " to ", max));
}

}  // namespace

const char* BundleLayoutName(BundleLayout layout) {
  switch (layout) {
    case BundleLayout::kBundled:
      return "bundled";
    case BundleLayout::kGateFirst:
      return "gate-first";
    case BundleLayout::kUnbundled:
      return "unbundled";
  }
  return "unknown";
}

absl::Status BundleShape::Validate() const {
  absl::Status status = CheckField("layers", layers, 1, kMaxLayers);
  if (status.ok()) status = CheckField("experts", experts, 1, kMaxExperts);
  if (status.ok()) status = CheckField("neurons", neurons, 1, kMaxNeurons);
  if (status.ok()) status = CheckField("width", width, 1, kMaxWidth);
  if (status.ok()) {
    status = CheckField("group_neurons", group_neurons, 1, std::min(kMaxGroupNeurons, neurons));
  }
  if (status.ok()) status = CheckField("neurons of all layers", all_neurons(), 1, kMaxAllNeurons);
  if (status.ok()) status = CheckField("bytes of a group", group_bytes(), 1, kMaxGroupBytes);
  // All neurons are at most 2^28 and a bundle is below 2^24 bytes, so this is far below 2^64.
  if (status.ok()) status = CheckField("bytes", data_bytes(), 1, kMaxDataBytes);
  return status;
}

uint32_t BundleShape::neurons_in(uint32_t group) const {
  return std::min(group_neurons, neurons - group * group_neurons);
}

uint32_t BundleShape::pieces() const {
  switch (layout) {
    case BundleLayout::kBundled:
      return 1;
    case BundleLayout::kGateFirst:
      return 2;
    case BundleLayout::kUnbundled:
      return parts();
  }
  return 1;
}

uint32_t BundleShape::first_part(uint32_t piece) const { return piece; }

uint32_t BundleShape::parts_in(uint32_t piece) const {
  return piece + 1 == pieces() ? parts() - piece : 1;
}

size_t BundleShape::piece_bytes(uint32_t piece) const {
  return PageAlignUp(group_neurons * row_bytes(piece));
}

size_t BundleShape::group_bytes() const {
  size_t bytes = 0;
  for (uint32_t piece = 0; piece < pieces(); ++piece) bytes += piece_bytes(piece);
  return bytes;
}

double BundleShape::padding_share() const {
  return 1 - static_cast<double>(weight_bytes()) / static_cast<double>(data_bytes());
}

uint64_t BundleShape::PieceOffset(uint32_t unit, uint32_t group, uint32_t piece) const {
  uint64_t before = 0;  // bytes of the pieces in front of it, in a group
  for (uint32_t i = 0; i < piece; ++i) before += piece_bytes(i);
  const uint64_t start = kDataOffset + unit * unit_bytes();
  if (layout != BundleLayout::kUnbundled) return start + group * uint64_t{group_bytes()} + before;
  return start + groups() * before + group * uint64_t{piece_bytes(piece)};
}

BundlePosition BundleShape::PositionOf(uint64_t offset) const {
  BundlePosition position;
  position.unit = static_cast<uint32_t>((offset - kDataOffset) / unit_bytes());
  uint64_t rest = (offset - kDataOffset) % unit_bytes();
  if (groups_are_runs()) {
    position.group = static_cast<uint32_t>(rest / group_bytes());
    rest %= group_bytes();
  }
  const uint64_t repeats = groups_are_runs() ? 1 : groups();
  while (rest >= repeats * piece_bytes(position.piece)) {
    rest -= repeats * piece_bytes(position.piece);
    ++position.piece;
  }
  if (!groups_are_runs())
    position.group = static_cast<uint32_t>(rest / piece_bytes(position.piece));
  return position;
}

std::string BundleShape::ToString() const {
  return absl::StrCat(
      layers, " layers x ", experts == 1 ? "" : absl::StrCat(experts, " experts x "), neurons,
      " neurons x ", width, ", ", ActivationName(activation), gated ? "" : ", ungated", ", ",
      KvDtypeName(dtype), ", ", BundleLayoutName(layout), ", groups of ", group_neurons);
}

uint32_t BundleShape::AutoGroupNeurons(size_t bundle_bytes) {
  TERRACE_CHECK(bundle_bytes > 0);
  for (uint32_t count = 1; count < kMaxGroupNeurons; ++count) {
    const size_t bytes = count * bundle_bytes;
    if (PageAlignUp(bytes) - bytes <= PageAlignUp(bytes) / 4) return count;
  }
  return kMaxGroupNeurons;
}

}  // namespace terrace
