// TierManager: opening, the tier directory, flush and other requests that a thread waits for.

#include <sys/stat.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <new>
#include <random>
#include <system_error>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "io/check.h"
#include "tiers/nvme_recovery.h"
#include "tiers/tier_manager.h"

namespace terrace {
namespace {

constexpr absl::string_view kFileName = "terrace.kv";

// Memory of the staging pool, and its bounds in slots.
constexpr size_t kTransitBytes = size_t{8} << 20;
constexpr size_t kMinTransitSlots = 4;
constexpr size_t kMaxTransitSlots = 256;

constexpr size_t kFlights = 256;          // NVMe reads queued or in flight at once
constexpr size_t kLanes = 4;              // threads that drive their own reads at once
constexpr size_t kBlockingRequests = 64;  // of recovery, the largest user of RunBlocking

std::string TierFile(absl::string_view directory) {
  return absl::StrCat(directory, absl::EndsWith(directory, "/") ? "" : "/", kFileName);
}

PlacementOptions MakePlacementOptions(const TierManagerOptions& options) {
  PlacementOptions placement;
  placement.block_bytes = options.block_bytes;
  placement.policy = options.policy;
  placement.slots[static_cast<size_t>(Pool::kHbm)] = options.hbm_bytes / options.block_bytes;
  placement.slots[static_cast<size_t>(Pool::kDram)] = options.dram_bytes / options.block_bytes;
  if (options.nvme_bytes == 0) return placement;
  placement.nvme = *PlanNvmeGeometry(options.nvme_bytes, options.block_bytes);
  // Room for the sources of one group at least, and for reads beside it.
  placement.slots[static_cast<size_t>(Pool::kTransit)] =
      std::clamp(kTransitBytes / options.block_bytes, kMinTransitSlots, kMaxTransitSlots);
  return placement;
}

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
    const absl::Status read = RunBatch(**device, batch);
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

absl::Status CheckReusable(const std::string& path, const Superblock& found,
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

// A new epoch makes everything that an earlier use left in the file unrecognisable.
uint64_t DrawEpoch() {
  std::random_device random;
  return (uint64_t{random()} << 32) | random();
}

struct OpenedTier {
  std::unique_ptr<BlockDevice> device;
  std::optional<Superblock> found;  // what to recover from
};

absl::StatusOr<OpenedTier> OpenTierFile(const TierManagerOptions& options,
                                        const NvmeGeometry& geometry) {
  if (options.nvme_dir.empty()) {
    return absl::InvalidArgumentError("nvme_dir is empty: an NVMe tier needs a directory");
  }
  FileDeviceOptions file;
  file.path = TierFile(options.nvme_dir);
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

}  // namespace

absl::StatusOr<std::unique_ptr<TierManager>> TierManager::Open(const TierManagerOptions& options,
                                                               Parts parts) {
  // Containers sized by the options, and threads: nothing later allocates as much or starts one.
  try {
    return OpenTiers(options, std::move(parts));
  } catch (const std::bad_alloc&) {
    return absl::ResourceExhaustedError("not enough memory for the directory of these tiers");
  } catch (const std::system_error& error) {
    return absl::ResourceExhaustedError(absl::StrCat("cannot start a thread: ", error.what()));
  }
}

absl::StatusOr<std::unique_ptr<TierManager>> TierManager::OpenTiers(
    const TierManagerOptions& options, Parts parts) {
  absl::Status status = options.Validate();
  if (!status.ok()) return status;
  PlacementOptions placement_options = MakePlacementOptions(options);
  OpenedTier tier;
  if (placement_options.nvme) {
    if (parts.device != nullptr) {
      tier.device = std::move(parts.device);
    } else {
      absl::StatusOr<OpenedTier> opened = OpenTierFile(options, *placement_options.nvme);
      if (!opened.ok()) return opened.status();
      tier = *std::move(opened);
    }
    placement_options.epoch = tier.found ? tier.found->epoch : DrawEpoch();
  }
  if (parts.copy_engine == nullptr) parts.copy_engine = MakeHostCopyEngine();
  auto memory = SlotMemory::Create(options.block_bytes, placement_options.slots,
                                   std::move(parts.copy_engine));
  if (!memory.ok()) return memory.status();
  auto placement = Placement::Create(placement_options);
  if (!placement.ok()) return placement.status();

  std::unique_ptr<TierManager> manager(
      new TierManager(options, *std::move(placement), *std::move(memory)));
  if (tier.device != nullptr) {
    status = manager->AttachDevice(std::move(tier.device));
    if (!status.ok()) return status;
    status = tier.found ? manager->Recover()
                        : manager->WriteSuperblocks({.geometry = *placement_options.nvme,
                                                     .block_bytes = options.block_bytes,
                                                     .model_fingerprint = options.model_fingerprint,
                                                     .epoch = placement_options.epoch});
    if (!status.ok()) return status;
  }
  manager->mover_ = std::thread([raw = manager.get()] { raw->RunMover(); });
  return manager;
}

absl::Status TierManager::AttachDevice(std::unique_ptr<BlockDevice> device) {
  // Lanes first: they carry most reads, and the limit on locked memory may not do for all.
  OpenLanes(*device);
  RegisterMemory(*device);
  device_ = device.get();
  device_info_ = device->info();
  flight_contexts_.resize(kFlights);
  group_contexts_.resize(Placement::kWriteGroups);
  {
    absl::MutexLock lock(&mu_);
    const NvmeGeometry& geometry = placement_->nvme()->geometry();
    const size_t header_bytes = size_t{geometry.header_pages} * kPageBytes;
    absl::StatusOr<AlignedBuffer> headers =
        AlignedBuffer::Create(Placement::kWriteGroups * header_bytes);
    if (!headers.ok()) return headers.status();
    headers_ = *std::move(headers);
    absl::StatusOr<std::unique_ptr<ReadCoalescer>> coalescer =
        ReadCoalescer::Create(kFlights, options_.coalesce_gap_bytes, options_.coalesce_read_bytes);
    if (!coalescer.ok()) return coalescer.status();
    coalescer_ = *std::move(coalescer);
    flights_.resize(kFlights);
    split_flights_.reserve(kFlights);
    for (size_t i = 0; i < kFlights; ++i) {
      flight_contexts_[i] = {.kind = Context::Kind::kFlight, .index = i};
      flights_[i].index = i;
      flights_[i].request.context = &flight_contexts_[i];
      flights_[i].vectors.reserve(ReadCoalescer::kMaxVectors);
      idle_flights_.push_back(i);
    }
    arrived_flights_.reserve(kFlights);
    group_writes_.resize(Placement::kWriteGroups);
    for (size_t i = 0; i < group_writes_.size(); ++i) {
      group_contexts_[i] = {.kind = Context::Kind::kGroup, .index = i};
      group_writes_[i].request.context = &group_contexts_[i];
      group_writes_[i].header = headers_.span().subspan(i * header_bytes, header_bytes);
      group_writes_[i].vectors.reserve(geometry.group_blocks + 1);
    }
  }
  IoSchedulerOptions options;
  // Some depth is left to write-back however many reads there are: reads may wait for its room.
  const size_t depth = device_info_.depth;
  options.class_depth[static_cast<size_t>(IoClass::kDemand)] =
      depth - std::min<size_t>(8, depth / 4);
  options.queue_capacity = kFlights + Placement::kWriteGroups + kBlockingRequests;
  scheduler_ = std::make_unique<IoScheduler>(
      std::move(device), options,
      [this](absl::Span<IoRequest* const> done) { OnCompletions(done); });
  return absl::OkStatus();
}

std::vector<iovec> TierManager::RegisteredMemory() const {
  std::vector<iovec> ranges;
  uint64_t left = options_.registered_bytes;
  for (const Pool pool : {Pool::kTransit, Pool::kDram}) {
    const absl::Span<std::byte> memory = memory_->HostMemory(pool);
    const size_t bytes = std::min<uint64_t>(memory.size(), left);
    if (bytes > 0) ranges.push_back({memory.data(), bytes});
    left -= bytes;
  }
  return ranges;
}

void TierManager::RegisterMemory(BlockDevice& device) const {
  const std::vector<iovec> memory = RegisteredMemory();
  // Devices without such a notion, and limits that forbid it, leave reads as they are.
  if (!absl::IsResourceExhausted(device.RegisterBuffers(memory)) || memory.size() < 2) return;
  static_cast<void>(device.RegisterBuffers(absl::MakeConstSpan(memory).first(1)));
}

void TierManager::OpenLanes(const BlockDevice& device) {
  absl::MutexLock lock(&mu_);
  while (lanes_.size() < kLanes) {
    absl::StatusOr<std::unique_ptr<BlockDevice>> clone = device.Clone();
    if (!clone.ok()) return;  // the scheduler alone does as well, more slowly
    RegisterMemory(**clone);
    lanes_.push_back(std::make_unique<Lane>());
    lanes_.back()->device = *std::move(clone);
    lanes_.back()->batch.reserve(kFlights);
    idle_lanes_.push_back(lanes_.back().get());
  }
}

absl::Status TierManager::WriteSuperblocks(const Superblock& superblock) {
  absl::StatusOr<AlignedBuffer> page = AlignedBuffer::Create(kPageBytes);
  if (!page.ok()) return page.status();
  EncodeSuperblock(superblock, page->span());
  const iovec vector = {page->data(), kPageBytes};
  std::vector<IoRequest> requests(kSuperblockPages);
  std::vector<IoRequest*> batch;
  for (uint32_t copy = 0; copy < kSuperblockPages; ++copy) {
    requests[copy].op = IoOp::kWrite;
    requests[copy].offset = copy * kPageBytes;
    requests[copy].buffers = absl::MakeConstSpan(&vector, 1);
    batch.push_back(&requests[copy]);
  }
  const absl::Status written = RunBlocking(batch);
  return written.ok() ? Sync() : written;
}

absl::Status TierManager::Recover() {
  // Nobody else knows this manager yet, so the lock protects nothing while it is let go for I/O.
  Placement* const placement = [this] {
    absl::MutexLock lock(&mu_);
    return &*placement_;
  }();
  return RecoverNvme([this](absl::Span<IoRequest* const> batch) { return RunBlocking(batch); },
                     *placement);
}

absl::Status TierManager::RunBlocking(absl::Span<IoRequest* const> requests) {
  Blocking blocking = {.left = requests.size(), .status = absl::OkStatus()};
  Context context = {.kind = Context::Kind::kBlocking, .index = 0, .blocking = &blocking};
  for (IoRequest* request : requests) {
    request->context = &context;
    Reset(*request);
  }
  const absl::Status submitted = scheduler_->Submit(IoClass::kDemand, requests);
  if (!submitted.ok()) return submitted;
  absl::MutexLock lock(&mu_);
  while (blocking.left > 0) progress_.Wait(&mu_);
  return blocking.status;
}

absl::Status TierManager::Sync() {
  IoRequest request;
  request.op = IoOp::kSync;
  IoRequest* batch[] = {&request};
  return RunBlocking(batch);
}

absl::Status TierManager::Flush() {
  if (scheduler_ == nullptr) {
    return absl::FailedPreconditionError("flush: there is no NVMe tier to flush to");
  }
  absl::MutexLock one_flush(&flush_mu_);
  {
    absl::MutexLock lock(&mu_);
    copy_error_ = absl::OkStatus();
    Placement::FlushCursor cursor = placement_->BeginFlush();
    for (int idle_rounds = 0;;) {
      const uint64_t seen = landings_;
      const Room room = placement_->SelectDirty(cursor);
      if (room == Room::kOk) break;
      const bool wait = room == Room::kWait;
      idle_rounds = wait && AwaitProgress(seen) ? 0 : idle_rounds + 1;
      if (wait && idle_rounds <= kMaxIdleRounds) continue;
      StartTransfers();
      return nvme_error_.ok() ? absl::ResourceExhaustedError(
                                    "flush: owned blocks leave no room in the NVMe tier")
                              : nvme_error_;
    }
    const uint64_t generation = placement_->last_generation();
    StartTransfers();
    ++waiters_;
    while (!placement_->WrittenUpTo(generation)) {
      if (!DoSomeWork()) progress_.Wait(&mu_);
    }
    --waiters_;
    NudgeMover();
    if (!nvme_error_.ok()) return nvme_error_;
    if (!copy_error_.ok()) return copy_error_;
  }
  const absl::Status synced = Sync();
  if (synced.ok()) return synced;
  // The kernel and the disk may forget a write whose sync failed, and report success ever after.
  absl::MutexLock lock(&mu_);
  placement_->StopNvmeWrites();
  nvme_error_.Update(synced);
  return synced;
}

}  // namespace terrace
