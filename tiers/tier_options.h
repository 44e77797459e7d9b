#ifndef TERRACE_TIERS_TIER_OPTIONS_H_
#define TERRACE_TIERS_TIER_OPTIONS_H_

#include <array>
#include <cstddef>
#include <cstdint>
#include <string>

#include "absl/status/status.h"
#include "io/block_device.h"
#include "io/device_profile.h"
#include "tiers/placement.h"
#include "tiers/tier.h"

namespace terrace {

// What a TierManager is opened with. A tier of 0 bytes does not exist; one of them must.
struct TierManagerOptions {
  // Every block has this size; a multiple of 4 KiB.
  size_t block_bytes = size_t{64} << 10;

  // Hard capacities. HBM and DRAM hold exactly capacity / block_bytes blocks, rounded down. The
  // NVMe file, headers and reserve segment included, never exceeds its capacity.
  uint64_t hbm_bytes = 0;
  uint64_t dram_bytes = 0;
  uint64_t nvme_bytes = 0;

  // Directory of the NVMe tier's file; needed when nvme_bytes is not 0.
  std::string nvme_dir = {};
  // Serve what the directory holds from an earlier run instead of starting empty.
  bool reuse = false;
  // Tells blocks of different models apart: a tier of another fingerprint is refused.
  uint64_t model_fingerprint = 0;

  IoEngine engine = IoEngine::kAuto;
  bool direct_io = true;
  size_t io_depth = 64;  // requests in the kernel at once

  // So much of the host memory that blocks are read into is registered with io_uring, the staging
  // pool first, which saves about a tenth of the CPU time of a read. The kernel pins it, so Open
  // touches all of it. Where the limit on locked memory forbids that, the staging pool alone is, or
  // nothing.
  uint64_t registered_bytes = uint64_t{4} << 30;

  // NVMe reads at most `coalesce_gap_bytes` (up to 128 KiB) apart become one request of at most
  // `coalesce_read_bytes` (up to 64 MiB); 0 of these switches it off.
  uint64_t coalesce_gap_bytes = DeviceProfile::kDefaultGapBytes;
  uint64_t coalesce_read_bytes = DeviceProfile::kDefaultRequestBytes;

  std::string policy = "lru";

  // Sets what suits the disk of the NVMe tier: io_depth, within 16 to 256 so that write-back keeps
  // its share, and both of coalesce_*; requests are joined up to the default size at least. Call it
  // after block_bytes is set.
  void FollowProfile(const DeviceProfile& profile);

  // kInvalidArgument naming the field, its value and its limit.
  absl::Status Validate() const;
};

struct TierStats {
  struct PerTier {
    uint64_t capacity_bytes = 0;
    uint64_t slots = 0;   // for NVMe: blocks that fit while one segment is in reserve
    uint64_t blocks = 0;  // each block counts in the fastest tier that holds it
  };
  std::array<PerTier, kTierCount> tiers;
  PlacementStats placement;

  uint64_t nvme_read_bytes = 0;  // as the device transferred them, headers included
  uint64_t nvme_written_bytes = 0;
  uint64_t hbm_copied_bytes = 0;  // both directions
  uint64_t nvme_peak_bytes = 0;   // most of the file that ever held data
  bool nvme_accepts_writes = false;
  absl::Status nvme_error;       // why not; OK when there is no such tier
  absl::Status nvme_read_error;  // the first read that failed; its blocks are among lost_blocks

  uint64_t metadata_bytes = 0;  // directory, slot tables, checksums
  uint64_t staging_bytes = 0;   // the transit pool, group headers, and gaps between blocks read
  DeviceInfo device;            // engine kMemory and an empty path without an NVMe tier
  std::string copy_engine;
};

}  // namespace terrace

#endif  // TERRACE_TIERS_TIER_OPTIONS_H_
