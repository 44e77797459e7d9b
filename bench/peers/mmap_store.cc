#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cerrno>
#include <utility>

#include "absl/container/flat_hash_map.h"
#include "absl/strings/str_cat.h"
#include "bench/peers/mapped_read.h"
#include "bench/peers/store_list.h"
#include "io/unique_fd.h"

namespace terrace::peers {
namespace {

using Slots = absl::flat_hash_map<uint64_t, size_t>;

class MmapReader : public BlockReader {
 public:
  MmapReader(const Slots& slots, const std::byte* map, size_t block_bytes)
      : slots_(slots), map_(map), block_bytes_(block_bytes) {}

  absl::Status Get(absl::Span<const uint64_t> ids,
                   std::vector<absl::Span<const std::byte>>& blocks) override {
    blocks.assign(ids.size(), {});
    for (size_t i = 0; i < ids.size(); ++i) {
      const auto found = slots_.find(ids[i]);
      if (found == slots_.end()) continue;
      blocks[i] = {map_ + found->second * block_bytes_, block_bytes_};
    }
    ReadMapped(blocks);
    return absl::OkStatus();
  }

 private:
  const Slots& slots_;
  const std::byte* const map_;
  const size_t block_bytes_;
};

class MmapStore : public BlockStore {
 public:
  MmapStore(UniqueFd file, void* map, const StoreOptions& options)
      : file_(std::move(file)), map_(map), options_(options) {}
  ~MmapStore() override { ::munmap(map_, options_.max_blocks * options_.block_bytes); }

  // By pwrite, which spares the page faults of storing through the map and is coherent with it.
  absl::Status Put(absl::Span<const StoredBlock> blocks) override {
    for (const StoredBlock& block : blocks) {
      const size_t slot = slots_.size();
      if (slot == options_.max_blocks) return absl::ResourceExhaustedError("mmap: file is full");
      const auto offset = static_cast<off_t>(slot * options_.block_bytes);
      const ssize_t written = ::pwrite(file_.get(), block.bytes.data(), block.bytes.size(), offset);
      if (written < 0) return absl::ErrnoToStatus(errno, "mmap: pwrite");
      if (static_cast<size_t>(written) != block.bytes.size()) {
        return absl::UnavailableError(absl::StrCat("mmap: wrote ", written, " bytes of a block"));
      }
      slots_[block.id] = slot;
    }
    return absl::OkStatus();
  }

  absl::Status Flush() override {
    if (::fdatasync(file_.get()) == 0) return absl::OkStatus();
    return absl::ErrnoToStatus(errno, "mmap: fdatasync");
  }

  absl::StatusOr<std::unique_ptr<BlockReader>> NewReader() override {
    return std::make_unique<MmapReader>(slots_, static_cast<const std::byte*>(map_),
                                        options_.block_bytes);
  }

 private:
  const UniqueFd file_;
  void* const map_;  // [max_blocks * block_bytes]
  const StoreOptions options_;
  Slots slots_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<BlockStore>> OpenMmapStore(const StoreOptions& options) {
  const std::string path = absl::StrCat(options.dir, "/blocks");
  UniqueFd file(::open(path.c_str(), O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0644));
  if (!file.valid()) return absl::ErrnoToStatus(errno, absl::StrCat(path, ": open"));
  const size_t bytes = options.max_blocks * options.block_bytes;
  if (const int error = ::posix_fallocate(file.get(), 0, static_cast<off_t>(bytes)); error != 0) {
    return absl::ErrnoToStatus(error, absl::StrCat(path, ": fallocate of ", bytes, " bytes"));
  }
  void* const map = ::mmap(nullptr, bytes, PROT_READ, MAP_SHARED, file.get(), 0);
  if (map == MAP_FAILED) return absl::ErrnoToStatus(errno, absl::StrCat(path, ": mmap"));
  // Only what a batch asks for is read, not what lies around it.
  ::madvise(map, bytes, MADV_RANDOM);
  return std::make_unique<MmapStore>(std::move(file), map, options);
}

}  // namespace terrace::peers
