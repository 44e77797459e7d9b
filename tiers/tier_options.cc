#include "tiers/tier_options.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "io/aligned_buffer.h"

namespace terrace {
namespace {

absl::Status CheckTier(absl::string_view field, uint64_t bytes, size_t block_bytes) {
  if (bytes == 0) return absl::OkStatus();
  if (bytes < block_bytes) {
    return absl::InvalidArgumentError(absl::StrCat(
        field, " is ", bytes, ": less than one block of ", block_bytes, " bytes (0 means none)"));
  }
  if (bytes / block_bytes >= UINT32_MAX) {
    return absl::InvalidArgumentError(
        absl::StrCat(field, " is ", bytes, ": more than 2^32 blocks of ", block_bytes, " bytes"));
  }
  return absl::OkStatus();
}

constexpr uint64_t kMaxCoalescedBytes = uint64_t{64} << 20;

}  // namespace

const char* NvmeHealthName(NvmeHealth health) {
  switch (health) {
    case NvmeHealth::kAbsent:
      return "absent";
    case NvmeHealth::kHealthy:
      return "healthy";
    case NvmeHealth::kDegraded:
      return "degraded";
    case NvmeHealth::kReadOnly:
      return "read-only";
    case NvmeHealth::kOutOfService:
      return "out of service";
  }
  return "?";
}

void TierManagerOptions::FollowProfile(const DeviceProfile& profile) {
  constexpr size_t kMinDepth = 16;
  constexpr size_t kMaxDepth = 256;
  io_depth = std::clamp(profile.AdvisedDepth(block_bytes), kMinDepth, kMaxDepth);
  coalesce_gap_bytes = profile.CoalescingGapBytes();
  coalesce_read_bytes = std::clamp(profile.AdvisedRequestBytes(),
                                   DeviceProfile::kDefaultRequestBytes, kMaxCoalescedBytes);
}

absl::Status TierManagerOptions::Validate() const {
  constexpr size_t kMaxBlockBytes = size_t{1} << 30;
  if (block_bytes == 0 || !IsPageAligned(block_bytes) || block_bytes > kMaxBlockBytes) {
    return absl::InvalidArgumentError(absl::StrCat("block_bytes is ", block_bytes,
                                                   ": must be a multiple of ", kPageBytes, " from ",
                                                   kPageBytes, " to ", kMaxBlockBytes));
  }
  if (hbm_bytes == 0 && dram_bytes == 0 && nvme_bytes == 0) {
    return absl::InvalidArgumentError(
        "hbm_bytes, dram_bytes and nvme_bytes are all 0: at least one tier must hold a block");
  }
  const absl::Status known_policy = MakeEvictionPolicy(policy, 1).status();
  if (!known_policy.ok()) {
    return absl::InvalidArgumentError(absl::StrCat("policy: ", known_policy.message()));
  }
  absl::Status status = CheckTier("hbm_bytes", hbm_bytes, block_bytes);
  if (status.ok()) status = CheckTier("dram_bytes", dram_bytes, block_bytes);
  if (!status.ok() || nvme_bytes == 0) return status;
  const absl::StatusOr<NvmeGeometry> geometry = PlanNvmeGeometry(nvme_bytes, block_bytes);
  if (!geometry.ok()) {
    return absl::InvalidArgumentError(
        absl::StrCat("nvme_bytes is ", nvme_bytes, ": ", geometry.status().message()));
  }
  if (!(max_write_amplification >= 1 && max_write_amplification <= 8)) {
    return absl::InvalidArgumentError(absl::StrCat(
        "max_write_amplification is ", max_write_amplification, ": must be from 1 to 8"));
  }
  if (coalesce_gap_bytes > DeviceProfile::kMaxGapBytes) {
    return absl::InvalidArgumentError(absl::StrCat("coalesce_gap_bytes is ", coalesce_gap_bytes,
                                                   ": must be at most ",
                                                   DeviceProfile::kMaxGapBytes));
  }
  if (coalesce_read_bytes > kMaxCoalescedBytes) {
    return absl::InvalidArgumentError(absl::StrCat("coalesce_read_bytes is ", coalesce_read_bytes,
                                                   ": must be at most ", kMaxCoalescedBytes));
  }
  if (io_depth < 1 || io_depth > 4096) {
    return absl::InvalidArgumentError(
        absl::StrCat("io_depth is ", io_depth, ": must be from 1 to 4096"));
  }
  return absl::OkStatus();
}

}  // namespace terrace
