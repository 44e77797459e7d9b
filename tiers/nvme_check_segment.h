#ifndef TERRACE_TIERS_NVME_CHECK_SEGMENT_H_
#define TERRACE_TIERS_NVME_CHECK_SEGMENT_H_

#include <cstddef>
#include <cstdint>
#include <optional>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "io/aligned_buffer.h"
#include "tiers/nvme_survey.h"

namespace terrace {

// One segment in memory, read in large pieces with several in flight. Thread-compatible.
class SegmentImage {
 public:
  static absl::StatusOr<SegmentImage> Create(const NvmeGeometry& geometry);

  // Forgets what was read, and turns to another segment.
  void Begin(SegmentIndex segment);
  // Reads pages of it, given by their place on the device. A page that cannot be read is an
  // outcome. `go_on` gets the bytes of each step; kCancelled once it returns false.
  absl::Status Read(NvmeReader& reader, uint64_t page, uint32_t count,
                    absl::FunctionRef<bool(uint64_t)> go_on);

  // Empty unless all of them were read. Valid until Begin.
  absl::Span<const std::byte> Pages(uint64_t page, uint32_t count) const;
  // The first page of a block, counted from its own, that was not read or is not what its record
  // says; nullopt when the block is whole.
  std::optional<uint32_t> FirstDamagedPage(uint64_t page, const GroupRecord& record) const;

 private:
  SegmentImage(const NvmeGeometry& geometry, AlignedBuffer bytes);

  absl::Status ReadOneByOne(NvmeReader& reader, const NvmeReader::Piece& piece);
  void MarkRead(const NvmeReader::Piece& piece);

  NvmeGeometry geometry_;
  AlignedBuffer bytes_;     // [segment_pages * kPageBytes]
  std::vector<bool> read_;  // [segment_pages]
  uint64_t start_ = 0;      // page of the segment
};

// The groups of a segment, and what is wrong with them.
struct SegmentGroups {
  struct Gap {
    uint64_t page = 0;
    uint32_t count = 0;
  };
  std::vector<GroupView> groups;        // in the order of their pages
  std::vector<size_t> damaged_headers;  // of these groups, on the disk
  std::vector<Gap> missing;             // must be there, and belong to no group
  uint32_t used_pages = 0;
  uint32_t unfinished = 0;  // groups
};

// From a whole footer: each header on the disk must be the one in it.
SegmentGroups GroupsOfFooter(const SegmentImage& image, const NvmeGeometry& geometry,
                             const FooterView& footer);

// From group to group, as recovery walks a segment: what is not known to be durable ends with the
// first group that is not whole. With `all_durable` nothing ends the walk.
SegmentGroups WalkGroups(const SegmentImage& image, const NvmeGeometry& geometry, uint64_t epoch,
                         const SegmentSurvey& survey, bool all_durable);

}  // namespace terrace

#endif  // TERRACE_TIERS_NVME_CHECK_SEGMENT_H_
