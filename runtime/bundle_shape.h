#ifndef TERRACE_RUNTIME_BUNDLE_SHAPE_H_
#define TERRACE_RUNTIME_BUNDLE_SHAPE_H_

#include <cstddef>
#include <cstdint>
#include <string>

#include "absl/status/status.h"
#include "index/kv_dtype.h"
#include "io/aligned_buffer.h"
#include "runtime/activation.h"

namespace terrace {

// How the parts of bundles lie in a file.
enum class BundleLayout : uint8_t {
  // All parts of a neuron in a row: one read brings it (Alizadeh et al., "LLM in a flash", 2023).
  kBundled = 0,
  // The first parts of a group in pages of their own, before the others, so that they can be read
  // alone and the others only when they fire (Xue et al., "PowerInfer-2", 2024).
  kGateFirst = 1,
  // Each part in an area of its own, as matrices lie in a model file: a read for each part. What
  // bundles are compared with.
  kUnbundled = 2,
};

// "bundled", "gate-first", "unbundled".
const char* BundleLayoutName(BundleLayout layout);

// A piece of a group.
struct BundlePosition {
  uint32_t unit = 0;  // expert, counted through all layers
  uint32_t group = 0;
  uint32_t piece = 0;

  friend bool operator==(const BundlePosition&, const BundlePosition&) = default;
};

// What a bundle file holds, and where: pure arithmetic, so that no table of offsets is needed.
//
// The feed-forward network of a layer is one expert, or several. A neuron of an expert has the
// *parts* gate row, up row and down column, [width] each, or without a gate the last two; in this
// order they are its *bundle*. The neurons of an expert are stored in an order of the file's own: a
// neuron's *place*. `group_neurons` consecutive places make a *group*, which is what a read brings:
// its *pieces*, each a run of whole pages. A piece holds some parts of each neuron of the group,
// one neuron after the other, then zeros up to its last page; the last group of an expert may
// have fewer neurons. Groups lie expert after expert and layer after layer.
struct BundleShape {
  uint32_t layers = 0;
  uint32_t experts = 1;  // of a layer
  uint32_t neurons = 0;  // of an expert
  uint32_t width = 0;    // elements of a part: the hidden size of the model
  bool gated = true;     // three parts, else two
  Activation activation = Activation::kRelu;
  KvDtype dtype = KvDtype::kFloat16;
  BundleLayout layout = BundleLayout::kBundled;
  uint32_t group_neurons = 1;

  static constexpr uint64_t kDataOffset = kPageBytes;  // of the first group, behind the header
  static constexpr uint32_t kMaxLayers = 4096;
  static constexpr uint32_t kMaxExperts = 4096;
  static constexpr uint32_t kMaxNeurons = uint32_t{1} << 24;
  static constexpr uint32_t kMaxWidth = uint32_t{1} << 20;
  static constexpr uint32_t kMaxGroupNeurons = 4096;
  static constexpr uint64_t kMaxAllNeurons = uint64_t{1} << 28;  // of all layers
  static constexpr uint64_t kMaxGroupBytes = uint64_t{1} << 26;
  static constexpr uint64_t kMaxDataBytes = uint64_t{1} << 42;
  static constexpr size_t kMaxPieces = 3;

  // kInvalidArgument naming the field, its value and its limit. Everything below REQUIRES that it
  // passes, and then cannot overflow.
  absl::Status Validate() const;

  // --- Counts ---
  uint32_t parts() const { return gated ? 3 : 2; }
  uint32_t units() const { return layers * experts; }  // experts of all layers
  uint32_t unit(uint32_t layer, uint32_t expert) const { return layer * experts + expert; }
  uint32_t groups() const { return (neurons + group_neurons - 1) / group_neurons; }  // of an expert
  uint32_t group_of(uint32_t place) const { return place / group_neurons; }
  uint64_t all_neurons() const { return uint64_t{units()} * neurons; }
  uint64_t all_groups() const { return uint64_t{units()} * groups(); }
  // The neurons of a group, which are fewer in the last one.
  uint32_t neurons_in(uint32_t group) const;

  // --- Sizes in bytes ---
  size_t part_bytes() const { return size_t{width} * KvDtypeBytes(dtype); }
  size_t bundle_bytes() const { return parts() * part_bytes(); }  // of a neuron, without padding
  uint32_t pieces() const;                                        // of a group
  uint32_t first_part(uint32_t piece) const;                      // that is in this piece
  uint32_t parts_in(uint32_t piece) const;
  // What a neuron has in the piece: neuron i of the group starts i times as far into it.
  size_t row_bytes(uint32_t piece) const { return parts_in(piece) * part_bytes(); }
  size_t piece_bytes(uint32_t piece) const;  // whole pages
  size_t group_bytes() const;                // its pieces
  uint64_t unit_bytes() const { return uint64_t{groups()} * group_bytes(); }
  uint64_t data_bytes() const { return units() * unit_bytes(); }
  // The parts alone: what would have to be read without groups and pages.
  uint64_t weight_bytes() const { return all_neurons() * bundle_bytes(); }
  // The share of data_bytes() that is padding.
  double padding_share() const;

  // --- Offsets in the file, of whole pages ---
  // REQUIRES: unit < units(), group < groups(), piece < pieces().
  uint64_t PieceOffset(uint32_t unit, uint32_t group, uint32_t piece) const;
  // Of its first piece. But for kUnbundled, group_bytes() from there on are the group.
  uint64_t GroupOffset(uint32_t unit, uint32_t group) const { return PieceOffset(unit, group, 0); }
  // Whether a group is one run of bytes.
  bool groups_are_runs() const { return layout != BundleLayout::kUnbundled; }
  // Whose page it is. REQUIRES: kDataOffset <= offset < data_end().
  BundlePosition PositionOf(uint64_t offset) const;
  uint64_t data_end() const { return kDataOffset + data_bytes(); }

  // "32 layers x 16384 neurons x 4096, relu, ungated, fp16, bundled, groups of 1".
  std::string ToString() const;

  // The fewest neurons whose groups are padded by a quarter at most.
  static uint32_t AutoGroupNeurons(size_t bundle_bytes);

  friend bool operator==(const BundleShape&, const BundleShape&) = default;
};

}  // namespace terrace

#endif  // TERRACE_RUNTIME_BUNDLE_SHAPE_H_
