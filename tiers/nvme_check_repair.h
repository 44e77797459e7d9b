#ifndef TERRACE_TIERS_NVME_CHECK_REPAIR_H_
#define TERRACE_TIERS_NVME_CHECK_REPAIR_H_

#include <array>
#include <cstdint>
#include <vector>

#include "tiers/nvme_check.h"
#include "tiers/nvme_check_segment.h"
#include "tiers/nvme_survey.h"

namespace terrace {

// What is wrong with one segment, as far as it can be mended.
struct SegmentFaults {
  std::array<bool, kManifestCopies> manifest_damaged = {};
  bool footer_damaged = false;
  std::vector<uint64_t> damaged_blocks;  // the page where each starts
};

// Adds the writes that mend a copy of the superblock.
void PlanSuperblock(const Superblock& superblock, uint32_t copy, std::vector<RepairWrite>& writes);
// Those that mend a segment. `groups` are empty for one that is free.
void PlanSegment(const NvmeGeometry& geometry, uint64_t epoch, const SegmentSurvey& survey,
                 const SegmentFaults& faults, const SegmentGroups& groups,
                 std::vector<RepairWrite>& writes);

}  // namespace terrace

#endif  // TERRACE_TIERS_NVME_CHECK_REPAIR_H_
