#ifndef TERRACE_TIERS_NVME_CHECK_H_
#define TERRACE_TIERS_NVME_CHECK_H_

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "io/block_device.h"
#include "tiers/block_id.h"
#include "tiers/nvme_format.h"
#include "tiers/tier.h"

namespace terrace {

enum class DamageKind : uint8_t {
  kFile,        // another size than the tier has
  kSuperblock,  // a copy
  kManifest,    // a copy of a segment's record
  kFooter,      // of a segment in use
  kHeader,      // of a group that the footer still names
  kGroups,      // pages that were durable and belong to no group that can be read
  kBlock,       // bytes of a block
};
// "file", "superblock", "manifest", "footer", "header", "groups", "block".
const char* DamageKindName(DamageKind kind);

// A copy of a block whose bytes are not those that were written.
struct DamagedBlock {
  BlockId id;
  uint32_t first_damaged_page = 0;  // of the block
  Retention retention = Retention::kCached;
  bool encrypted = false;
  // Whole copies of the same id elsewhere. A newer one is served in place of this one. An older one
  // would not be served with this one here, nor is it once this one is marked dead.
  bool newer_copy = false;
  bool older_copy = false;
};

struct Damage {
  DamageKind kind = DamageKind::kBlock;
  std::optional<SegmentIndex> segment;  // nullopt: of the tier as a whole
  uint64_t offset = 0;                  // bytes from the start of the device
  std::string detail;                   // for people
  std::optional<DamagedBlock> block;    // of a kBlock
};

// What mends a part of the damage: bytes to write from a page on, a whole number of pages.
struct RepairWrite {
  uint64_t page = 0;
  std::vector<std::byte> bytes;
  bool late = false;  // only once all others are durable
};

struct CheckReport {
  Superblock superblock;
  struct Segments {
    uint64_t free = 0;
    uint64_t sealed = 0;
    uint64_t unsealed = 0;
  } segments;
  // Blocks that a reopened tier would hold, the damaged ones included. Each id counts once.
  struct Blocks {
    uint64_t owned = 0;
    uint64_t cached = 0;
    uint64_t encrypted = 0;     // of both
    uint64_t stale_copies = 0;  // of ids that have a newer copy, or were dropped there
    uint64_t dead = 0;          // copies that the manifest says are dropped
    uint64_t live() const { return owned + cached; }
  } blocks;
  uint64_t bytes_checked = 0;      // of blocks, against their checksums
  uint64_t damaged_blocks = 0;     // entries of kBlock
  uint64_t unfinished_groups = 0;  // what a crash leaves: not whole, and promised by no Flush
  bool unfinished_start = false;   // likewise: an empty tier, with one of its superblocks
  std::vector<Damage> damage;
  std::vector<RepairWrite> repairs;

  bool clean() const { return damage.empty(); }
};

struct CheckProgress {
  uint64_t bytes_read = 0;
  uint64_t bytes_to_read = 0;  // of the segments in use
};

// Checks an NVMe tier: both superblocks, both manifest copies of every segment, and of the segments
// in use the footer, the headers, and the bytes of every block that is not dead, by the checksums
// of its pages. No key is needed for encrypted ones. Padding and free space are not looked at.
// Holds one segment in memory, and what it knows of each block id. Writes nothing.
//
// `go_on` is called between reads; kCancelled once it returns false. kInvalidArgument for what is
// no tier that this build can read, kResourceExhausted for memory. The device must be idle; what
// cannot be read from it is damage.
absl::StatusOr<CheckReport> CheckNvmeTier(BlockDevice& device,
                                          absl::FunctionRef<bool(const CheckProgress&)> go_on);

// Mends what a check has found, on the device that it was made of: records are rewritten from what
// says the same elsewhere, blocks that are damaged are marked dead, and a segment that lost groups
// is sealed without them. A device of another size than the tier's is not resized. A crash in
// between leaves what can be checked and mended again. Errors are those of writes and syncs.
absl::Status RepairNvmeTier(BlockDevice& device, const CheckReport& report);

}  // namespace terrace

#endif  // TERRACE_TIERS_NVME_CHECK_H_
