#include <fcntl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <utility>

#include "absl/container/flat_hash_map.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "bench/peers/store_list.h"
#include "io/aligned_buffer.h"
#include "io/unique_fd.h"

namespace terrace::peers {
namespace {

constexpr uint64_t kFolders = 256;
constexpr rlim_t kOtherDescriptors = 1024;  // not kept: batches in flight, and the process's own

enum class ReadMode {
  kDirect,     // O_DIRECT, so one read after the other
  kReadAhead,  // page cache, which reads the whole batch at once
};

// Which blocks are stored, and where. Immutable while readers use it.
struct Files {
  std::string dir;
  int flags = 0;                                  // of open
  absl::flat_hash_map<uint64_t, UniqueFd> by_id;  // an invalid one is opened for each get

  std::string Folder(uint64_t index) const { return absl::StrFormat("%s/%02x", dir, index); }
  std::string Path(uint64_t id) const { return absl::StrCat(Folder(id % kFolders), "/", id); }
};

absl::Status Failed(const char* call, uint64_t id) {
  return absl::ErrnoToStatus(errno, absl::StrCat("files: ", call, " of block ", id));
}

class FileReader : public BlockReader {
 public:
  FileReader(const Files& files, ReadMode mode, size_t block_bytes, AlignedBuffer buffer)
      : files_(files), mode_(mode), block_bytes_(block_bytes), buffer_(std::move(buffer)) {}

  absl::Status Get(absl::Span<const uint64_t> ids,
                   std::vector<absl::Span<const std::byte>>& blocks) override {
    blocks.assign(ids.size(), {});
    descriptors_.assign(ids.size(), -1);
    opened_.clear();
    for (size_t i = 0; i < ids.size(); ++i) {
      const auto found = files_.by_id.find(ids[i]);
      if (found == files_.by_id.end()) continue;
      descriptors_[i] = found->second.get();
      if (found->second.valid()) continue;
      opened_.emplace_back(::open(files_.Path(ids[i]).c_str(), files_.flags));
      if (!opened_.back().valid()) return Failed("open", ids[i]);
      descriptors_[i] = opened_.back().get();
    }
    if (mode_ == ReadMode::kReadAhead) {
      const auto bytes = static_cast<off_t>(block_bytes_);
      for (int fd : descriptors_) ::posix_fadvise(fd, 0, bytes, POSIX_FADV_WILLNEED);
    }
    for (size_t i = 0; i < ids.size(); ++i) {
      if (descriptors_[i] < 0) continue;
      std::byte* const target = buffer_.data() + i * block_bytes_;
      const ssize_t bytes = ::pread(descriptors_[i], target, block_bytes_, 0);
      if (bytes < 0) return Failed("pread", ids[i]);
      blocks[i] = {target, static_cast<size_t>(bytes)};
    }
    return absl::OkStatus();
  }

 private:
  const Files& files_;
  const ReadMode mode_;
  const size_t block_bytes_;
  const AlignedBuffer buffer_;    // [max_batch, block_bytes]
  std::vector<int> descriptors_;  // of the batch, -1 for a missing block
  std::vector<UniqueFd> opened_;  // those of them that were not open
};

class FileStore : public BlockStore {
 public:
  FileStore(const StoreOptions& options, ReadMode mode) : options_(options), mode_(mode) {
    files_.dir = options.dir;
    files_.flags = O_RDWR | O_CLOEXEC | (mode == ReadMode::kDirect ? O_DIRECT : 0);
  }

  absl::Status Open() {
    // Files stay open, so that a get costs no path walk: as many as this process may have.
    rlimit limit = {};
    ::getrlimit(RLIMIT_NOFILE, &limit);
    limit.rlim_cur = limit.rlim_max;
    if (::setrlimit(RLIMIT_NOFILE, &limit) != 0) return absl::ErrnoToStatus(errno, "setrlimit");
    max_open_ = static_cast<size_t>(limit.rlim_cur - std::min(limit.rlim_cur, kOtherDescriptors));
    folder_ = UniqueFd(::open(options_.dir.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
    if (!folder_.valid()) return absl::ErrnoToStatus(errno, options_.dir);
    for (uint64_t folder = 0; folder < kFolders; ++folder) {
      const std::string path = files_.Folder(folder);
      if (::mkdir(path.c_str(), 0755) != 0) return absl::ErrnoToStatus(errno, path);
    }
    return absl::OkStatus();
  }

  absl::Status Put(absl::Span<const StoredBlock> blocks) override {
    for (const StoredBlock& block : blocks) {
      const std::string path = files_.Path(block.id);
      UniqueFd file(::open(path.c_str(), files_.flags | O_CREAT | O_TRUNC, 0644));
      if (!file.valid()) return Failed("open", block.id);
      const ssize_t written = ::pwrite(file.get(), block.bytes.data(), block.bytes.size(), 0);
      if (written < 0) return Failed("pwrite", block.id);
      if (static_cast<size_t>(written) != block.bytes.size()) {
        return absl::UnavailableError(absl::StrCat("files: wrote ", written, " bytes of a block"));
      }
      const bool keep = files_.by_id.size() < max_open_;
      files_.by_id[block.id] = keep ? std::move(file) : UniqueFd();
    }
    return absl::OkStatus();
  }

  // One call for the file system instead of one for each of the files.
  absl::Status Flush() override {
    if (::syncfs(folder_.get()) == 0) return absl::OkStatus();
    return absl::ErrnoToStatus(errno, "files: syncfs");
  }

  absl::StatusOr<std::unique_ptr<BlockReader>> NewReader() override {
    auto buffer = AlignedBuffer::Create(options_.max_batch * options_.block_bytes);
    if (!buffer.ok()) return buffer.status();
    return std::make_unique<FileReader>(files_, mode_, options_.block_bytes, *std::move(buffer));
  }

 private:
  const StoreOptions options_;
  const ReadMode mode_;
  size_t max_open_ = 0;
  UniqueFd folder_;  // of the files, for syncfs
  Files files_;
};

absl::StatusOr<std::unique_ptr<BlockStore>> OpenFileStore(const StoreOptions& options,
                                                          ReadMode mode) {
  auto store = std::make_unique<FileStore>(options, mode);
  absl::Status opened = store->Open();
  if (!opened.ok()) return opened;
  return store;
}

}  // namespace

absl::StatusOr<std::unique_ptr<BlockStore>> OpenDirectFileStore(const StoreOptions& options) {
  return OpenFileStore(options, ReadMode::kDirect);
}

absl::StatusOr<std::unique_ptr<BlockStore>> OpenReadAheadFileStore(const StoreOptions& options) {
  return OpenFileStore(options, ReadMode::kReadAhead);
}

}  // namespace terrace::peers
