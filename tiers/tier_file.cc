#include "tiers/tier_file.h"

#include <algorithm>
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

  OpenedTier opened;
  // Under the lock, because another process may have made the tier a moment ago, or be about to.
  file.decide_truncate = [&](BlockDevice& device, uint64_t has_bytes) -> absl::StatusOr<bool> {
    const absl::StatusOr<std::optional<Superblock>> found = ReadSuperblock(
        [&device](absl::Span<IoRequest* const> batch) { return RunBatch(device, batch); },
        file.path);
    if (!found.ok()) return found.status();
    if (!options.reuse || !*found) return true;
    const absl::Status usable = CheckReusable(file.path, **found, geometry, options);
    if (!usable.ok()) return usable;
    if (has_bytes > file.size_bytes) {
      return absl::InvalidArgumentError(
          absl::StrCat(file.path, " has ", has_bytes, " bytes and its tier ", file.size_bytes,
                       ": terrace fsck --repair cuts it; it was left as it was"));
    }
    opened.found = **found;
    opened.missing_bytes = file.size_bytes - has_bytes;
    return false;
  };
  absl::StatusOr<std::unique_ptr<BlockDevice>> device = OpenFileDevice(file);
  if (!device.ok()) return device.status();
  opened.device = *std::move(device);
  return opened;
}

}  // namespace terrace
