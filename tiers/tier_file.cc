#include "tiers/tier_file.h"

#include <sys/stat.h>

#include <algorithm>
#include <cerrno>
#include <random>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "io/aligned_buffer.h"

namespace terrace {
namespace {

constexpr absl::string_view kFileName = "terrace.kv";

bool AllZero(absl::Span<const std::byte> bytes) {
  return std::all_of(bytes.begin(), bytes.end(),
                     [](std::byte byte) { return byte == std::byte{}; });
}

// Superblock of an existing tier file, read without changing anything; nullopt when the file does
// not exist, is empty, or was being made when its process died.
absl::StatusOr<std::optional<Superblock>> InspectTierFile(const std::string& path) {
  struct stat info = {};
  if (stat(path.c_str(), &info) != 0) {
    if (errno == ENOENT) return std::nullopt;
    return absl::ErrnoToStatus(errno, absl::StrCat("cannot look at ", path));
  }
  if (S_ISREG(info.st_mode) && info.st_size == 0) return std::nullopt;
  FileDeviceOptions options;
  options.path = path;
  options.read_only = true;
  options.direct_io = false;
  options.engine = IoEngine::kThreads;
  absl::StatusOr<std::unique_ptr<BlockDevice>> device = OpenFileDevice(options);
  if (!device.ok()) return device.status();
  return ReadSuperblock(
      [&](absl::Span<IoRequest* const> batch) { return RunBatch(**device, batch); }, path);
}

}  // namespace

std::string TierFilePath(absl::string_view directory) {
  return absl::StrCat(directory, absl::EndsWith(directory, "/") ? "" : "/", kFileName);
}

absl::StatusOr<std::optional<Superblock>> ReadSuperblock(
    absl::FunctionRef<absl::Status(absl::Span<IoRequest* const>)> run, absl::string_view path) {
  absl::StatusOr<AlignedBuffer> page = AlignedBuffer::Create(kPageBytes);
  if (!page.ok()) return page.status();
  absl::Status problem;  // the first
  bool blank = true;
  for (uint32_t copy = 0; copy < kSuperblockPages; ++copy) {
    const iovec vector = {page->data(), kPageBytes};
    IoRequest request;
    request.offset = copy * kPageBytes;
    request.buffers = absl::MakeConstSpan(&vector, 1);
    IoRequest* batch[] = {&request};
    const absl::Status read = run(batch);
    blank = blank && read.ok() && AllZero(page->span());
    problem.Update(read);
    if (!read.ok()) continue;
    const absl::StatusOr<Superblock> superblock = DecodeSuperblock(page->span());
    if (superblock.ok()) return *superblock;
    problem.Update(superblock.status());
    if (absl::IsInvalidArgument(superblock.status())) break;  // another version: do not guess
  }
  if (blank) return std::nullopt;
  return absl::InvalidArgumentError(absl::StrCat(
      path,
      " is not a tier file that this build can use, and was left as it is: ", problem.message()));
}

absl::Status CheckReusable(absl::string_view path, const Superblock& found,
                           const NvmeGeometry& wanted, const TierManagerOptions& options) {
  const auto mismatch = [&](absl::string_view what, uint64_t has, uint64_t asked) {
    return absl::InvalidArgumentError(absl::StrCat(path, " was made with ", what, " ", has,
                                                   ", this run asks for ", asked,
                                                   "; it was left as it is"));
  };
  if (found.block_bytes != options.block_bytes) {
    return mismatch("a block size of", found.block_bytes, options.block_bytes);
  }
  if (found.model_fingerprint != options.model_fingerprint) {
    return mismatch("model fingerprint", found.model_fingerprint, options.model_fingerprint);
  }
  if (!(found.geometry == wanted)) {
    return mismatch("a capacity of", found.geometry.total_bytes(), wanted.total_bytes());
  }
  return absl::OkStatus();
}

uint64_t DrawRandom() {
  std::random_device random;
  return (uint64_t{random()} << 32) | random();
}

absl::StatusOr<OpenedTier> OpenTierFile(const TierManagerOptions& options,
                                        const NvmeGeometry& geometry) {
  if (options.nvme_dir.empty()) {
    return absl::InvalidArgumentError("nvme_dir is empty: an NVMe tier needs a directory");
  }
  FileDeviceOptions file;
  file.path = TierFilePath(options.nvme_dir);
  file.size_bytes = geometry.total_bytes();
  file.create = true;
  file.direct_io = options.direct_io;
  file.engine = options.engine;
  file.depth = options.io_depth;

  absl::StatusOr<std::optional<Superblock>> found = InspectTierFile(file.path);
  if (!found.ok()) return found.status();
  OpenedTier opened;
  if (options.reuse && *found) {
    const absl::Status status = CheckReusable(file.path, **found, geometry, options);
    if (!status.ok()) return status;
    opened.found = **found;
  }
  file.truncate = !opened.found;
  absl::StatusOr<std::unique_ptr<BlockDevice>> device = OpenFileDevice(file);
  if (!device.ok()) return device.status();
  opened.device = *std::move(device);
  return opened;
}

}  // namespace terrace
