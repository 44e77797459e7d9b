#include "runtime/weight_layout.h"

#include "io/check.h"

namespace terrace {

WeightLayout::WeightLayout(const BundleShape& shape, const WeightPagerOptions& options)
    : shape_(shape),
      staged_(options.gate_first && options.row == WeightRow::kGroup &&
              shape.layout == BundleLayout::kGateFirst && IsSparse(shape.activation)),
      row_groups_(options.row == WeightRow::kExpert ? shape.groups() : 1),
      group_bytes_(shape.group_bytes()) {
  TERRACE_CHECK(shape.groups_are_runs() || row_groups_ == 1);
  fragment_bytes_[0] = group_bytes_;
  if (staged_ || !shape.groups_are_runs()) fragments_ = shape.pieces();
  size_t start = 0;
  for (uint32_t piece = 0; piece < shape.pieces(); ++piece) {
    for (uint32_t i = 0; i < shape.parts_in(piece); ++i) {
      const uint32_t part = shape.first_part(piece) + i;
      part_offset_[part] = start + i * shape.part_bytes();
      part_stride_[part] = shape.row_bytes(piece);
    }
    if (fragments_ > 1) {
      fragment_bytes_[piece] = shape.piece_bytes(piece);
      fragment_start_[piece] = start;
    }
    start += shape.piece_bytes(piece);
  }
}

uint64_t WeightLayout::FileOffset(uint32_t layer, uint32_t group, uint32_t fragment) const {
  const uint32_t unit = shape_.unit(layer, ExpertOfGroup(group));
  return shape_.PieceOffset(unit, group % shape_.groups(), fragment);
}

}  // namespace terrace
