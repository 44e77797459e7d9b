#ifndef TERRACE_TIERS_TIER_FILE_H_
#define TERRACE_TIERS_TIER_FILE_H_

#include <memory>
#include <optional>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "io/block_device.h"
#include "tiers/nvme_format.h"
#include "tiers/tier_options.h"

namespace terrace {

// The file of an NVMe tier in its directory.
std::string TierFilePath(absl::string_view directory);

// The first whole superblock of a device of which `run` carries out reads; nullopt for one that is
// blank. kInvalidArgument, naming `path`, for anything else.
absl::StatusOr<std::optional<Superblock>> ReadSuperblock(
    absl::FunctionRef<absl::Status(absl::Span<IoRequest* const>)> run, absl::string_view path);

// kInvalidArgument, naming what differs, unless a tier that was made like this serves these
// options.
absl::Status CheckReusable(absl::string_view path, const Superblock& found,
                           const NvmeGeometry& wanted, const TierManagerOptions& options);

struct OpenedTier {
  std::unique_ptr<BlockDevice> device;
  std::optional<Superblock> found;  // what to recover from
  uint64_t missing_bytes = 0;       // that the file had lost, and has again as zeros
};
// Opens or makes the file of the options' tier. It is locked from before it is looked at on. What
// is no tier file, or one that these options cannot use, is left as it is: kInvalidArgument. Else
// errors are those of OpenFileDevice.
absl::StatusOr<OpenedTier> OpenTierFile(const TierManagerOptions& options,
                                        const NvmeGeometry& geometry);

// For epochs and sessions, which make what earlier uses left in a file recognisable as such.
uint64_t DrawRandom();

}  // namespace terrace

#endif  // TERRACE_TIERS_TIER_FILE_H_
