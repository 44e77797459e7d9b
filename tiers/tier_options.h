#ifndef TERRACE_TIERS_TIER_OPTIONS_H_
#define TERRACE_TIERS_TIER_OPTIONS_H_

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>

#include "absl/status/status.h"
#include "io/block_device.h"
#include "io/device_profile.h"
#include "io/device_share.h"
#include "io/timeline.h"
#include "tiers/nvme_recovery.h"
#include "tiers/placement.h"
#include "tiers/tier.h"

namespace terrace {

// What the HBM tier lies in.
enum class HbmDevice : uint8_t {
  kEmulated,  // host memory
  kCuda,      // the memory of a CUDA device; Open fails with kUnavailable where none answers
};

// What a TierManager is opened with. A tier of 0 bytes does not exist; one of them must.
struct TierManagerOptions {
  // Every block has this size; a multiple of 4 KiB.
  size_t block_bytes = size_t{64} << 10;

  // Hard capacities. HBM and DRAM hold exactly capacity / block_bytes blocks, rounded down. The
  // NVMe file, headers and reserve segment included, never exceeds its capacity.
  uint64_t hbm_bytes = 0;
  uint64_t dram_bytes = 0;
  uint64_t nvme_bytes = 0;

  HbmDevice hbm_device = HbmDevice::kEmulated;
  int cuda_device = 0;  // of several, as CUDA numbers them

  // Directory of the NVMe tier's file; needed when nvme_bytes is not 0.
  std::string nvme_dir = {};
  // Serve what the directory holds from an earlier run instead of starting empty.
  bool reuse = false;
  // Tells blocks of different models apart: a tier of another fingerprint is refused.
  uint64_t model_fingerprint = 0;

  IoEngine engine = IoEngine::kAuto;
  bool direct_io = true;
  size_t io_depth = 64;  // requests in the kernel at once
  // The depth that the disk has for all who use it, where others than this tier do: weights that
  // are paged from the same disk come behind it. Null: the disk is the tier's.
  std::shared_ptr<DeviceShare> device_share = {};

  // So much of the host memory that blocks are read into is registered with io_uring, the staging
  // pool first, which saves about a tenth of the CPU time of a read. The kernel pins it, so Open
  // touches all of it. Where the limit on locked memory forbids that, the staging pool alone is, or
  // nothing.
  uint64_t registered_bytes = uint64_t{4} << 30;

  // NVMe reads at most `coalesce_gap_bytes` (up to 128 KiB) apart become one request of at most
  // `coalesce_read_bytes` (up to 64 MiB); 0 of these switches it off.
  uint64_t coalesce_gap_bytes = DeviceProfile::kDefaultGapBytes;
  uint64_t coalesce_read_bytes = DeviceProfile::kDefaultRequestBytes;

  // Bytes written to NVMe for a byte that is new there, from 1 to 8: what this allows above 1 keeps
  // blocks that were fetched since they were written when their segment is evicted, by writing them
  // anew. Owned blocks are always kept so, up to 8.
  double max_write_amplification = kDefaultWriteAmplification;
  static constexpr double kDefaultWriteAmplification = 1.5;

  // Endurance: bytes that may be written to NVMe a day; 0 means no limit. Beyond it, cached blocks
  // are evicted from memory without being written. Owned blocks and what a Flush writes go on, and
  // are paid back by writing less afterwards. An hour's share may come at once.
  uint64_t nvme_write_bytes_per_day = 0;

  std::string policy = "lru";

  // Where fetches, copies and requests to the disk are recorded; shared by all who record. Null:
  // nowhere.
  std::shared_ptr<Timeline> timeline = {};

  // Sets what suits the disk of the NVMe tier: io_depth, within 16 to 256 so that write-back keeps
  // its share, and both of coalesce_*; requests are joined up to the default size at least. Call it
  // after block_bytes is set.
  void FollowProfile(const DeviceProfile& profile);

  // kInvalidArgument naming the field, its value and its limit.
  absl::Status Validate() const;
};

enum class NvmeHealth : uint8_t {
  kAbsent,        // there is no such tier
  kHealthy,       // no fault so far
  kDegraded,      // faults were met, and dealt with
  kReadOnly,      // takes no writes any more; what it holds is served
  kOutOfService,  // neither
};
// "absent", "healthy", "degraded", "read-only", "out of service".
const char* NvmeHealthName(NvmeHealth health);

// What went wrong with the disk under the NVMe tier so far. A read that fails or brings wrong bytes
// is tried once more; a write that fails with EIO twice more. Then the block is lost, and counted,
// or the tier takes no more writes.
struct NvmeFaults {
  uint64_t failed_reads = 0;     // tries
  uint64_t corrupt_reads = 0;    // tries whose bytes had another checksum
  uint64_t mended_reads = 0;     // blocks that the second try brought
  uint64_t unopened_blocks = 0;  // encrypted blocks that are not what was sealed
  uint64_t failed_writes = 0;    // tries
  uint64_t failed_syncs = 0;
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
  NvmeHealth nvme_health = NvmeHealth::kAbsent;
  NvmeFaults nvme_faults;
  RecoveryReport recovery;       // what reopening found
  absl::Status nvme_error;       // why not; OK when there is no such tier
  absl::Status nvme_read_error;  // the first read that failed; its blocks are among lost_blocks

  uint64_t metadata_bytes = 0;  // directory, slot tables, checksums
  // The transit pool, what is written besides blocks, gaps between blocks read, and where blocks
  // are encrypted.
  uint64_t staging_bytes = 0;
  DeviceInfo device;  // engine kMemory and an empty path without an NVMe tier
  std::string copy_engine;
};

}  // namespace terrace

#endif  // TERRACE_TIERS_TIER_OPTIONS_H_
