#ifndef TERRACE_RUNTIME_WEIGHT_LAYOUT_H_
#define TERRACE_RUNTIME_WEIGHT_LAYOUT_H_

#include <array>
#include <cstddef>
#include <cstdint>

#include "runtime/bundle_shape.h"
#include "runtime/weight_pager_options.h"

namespace terrace {

// How a pager cuts a bundle file into rows, and rows into what is read: pure arithmetic.
//
// A layer's groups, expert after expert, are numbered from 0; a row is `row_groups` of them. In
// memory the bytes of a group are its pieces one behind the other. A row has *fragments*, which are
// read and verified on their own: the gates and the rest of a gate-first group, the pieces of an
// unbundled one, else the whole row.
class WeightLayout {
 public:
  static constexpr uint32_t kMaxFragments = BundleShape::kMaxPieces;
  // A fragment, such as a whole expert, is read in pieces of so much: several keep a device busy
  // that one would not.
  static constexpr size_t kMaxReadBytes = size_t{1} << 20;

  // REQUIRES: valid shape and options; no unbundled layout with rows of whole experts.
  WeightLayout(const BundleShape& shape, const WeightPagerOptions& options);

  const BundleShape& shape() const { return shape_; }
  // Whether gates come first and the rest of a group only when it fires.
  bool staged() const { return staged_; }
  uint32_t fragments() const { return fragments_; }
  uint8_t all_fragments() const { return static_cast<uint8_t>((1u << fragments_) - 1); }

  uint32_t layer_groups() const { return shape_.experts * shape_.groups(); }
  uint32_t layer_rows() const { return layer_groups() / row_groups_; }
  uint32_t layer_neurons() const { return shape_.experts * shape_.neurons; }
  uint32_t row_groups() const { return row_groups_; }
  uint32_t GroupOfPlace(uint32_t place) const {
    return place / shape_.neurons * shape_.groups() + place % shape_.neurons / shape_.group_neurons;
  }
  uint32_t RowOfPlace(uint32_t place) const { return GroupOfPlace(place) / row_groups_; }
  uint32_t ExpertOfGroup(uint32_t group) const { return group / shape_.groups(); }
  uint32_t NeuronsIn(uint32_t group) const { return shape_.neurons_in(group % shape_.groups()); }

  size_t group_bytes() const { return group_bytes_; }
  size_t row_bytes() const { return row_groups_ * group_bytes_; }

  // Of a fragment of a row, or of one of its groups: where it is in the file, how long it is, and
  // where it goes in the memory of the row or group.
  uint64_t FileOffset(uint32_t layer, uint32_t group, uint32_t fragment) const;
  size_t GroupFragmentBytes(uint32_t fragment) const { return fragment_bytes_[fragment]; }
  size_t RowFragmentBytes(uint32_t fragment) const {
    return row_groups_ * fragment_bytes_[fragment];
  }
  // The reads that a row begins with.
  size_t FirstReads() const {
    size_t reads = 0;
    for (uint32_t fragment = 0; fragment < (staged_ ? 1 : fragments_); ++fragment) {
      reads += (RowFragmentBytes(fragment) + kMaxReadBytes - 1) / kMaxReadBytes;
    }
    return reads;
  }
  size_t MemoryOffset(uint32_t fragment) const { return fragment_start_[fragment]; }

  // Of a part (0: what decides whether a neuron fires; the last: the down column): where the first
  // neuron has it in a group, and how far apart neurons are.
  size_t PartOffset(uint32_t part) const { return part_offset_[part]; }
  size_t PartStride(uint32_t part) const { return part_stride_[part]; }

 private:
  const BundleShape shape_;
  const bool staged_;
  const uint32_t row_groups_;
  const size_t group_bytes_;
  uint32_t fragments_ = 1;
  std::array<size_t, kMaxFragments> fragment_bytes_ = {};  // of a group
  std::array<size_t, kMaxFragments> fragment_start_ = {};
  std::array<size_t, 3> part_offset_ = {};
  std::array<size_t, 3> part_stride_ = {};
};

}  // namespace terrace

#endif  // TERRACE_RUNTIME_WEIGHT_LAYOUT_H_
