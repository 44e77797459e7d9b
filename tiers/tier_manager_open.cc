// TierManager: opening, the tier directory, flush and other requests that a thread waits for.

#include <algorithm>
#include <cstring>
#include <new>
#include <system_error>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "io/check.h"
#include "io/cuda_copy_engine.h"
#include "tiers/nvme_recovery.h"
#include "tiers/tier_file.h"
#include "tiers/tier_manager.h"

namespace terrace {
namespace {

// Memory of the staging pool, and its bounds in slots.
constexpr size_t kTransitBytes = size_t{8} << 20;
constexpr size_t kMinTransitSlots = 4;
constexpr size_t kMaxTransitSlots = 256;

constexpr size_t kFlights = 256;          // NVMe reads queued or in flight at once
constexpr size_t kLanes = 4;              // threads that drive their own reads at once
constexpr size_t kBlockingRequests = 64;  // of recovery, the largest user of RunBlocking

PlacementOptions MakePlacementOptions(const TierManagerOptions& options) {
  PlacementOptions placement;
  placement.block_bytes = options.block_bytes;
  placement.policy = options.policy;
  placement.slots[static_cast<size_t>(Pool::kHbm)] = options.hbm_bytes / options.block_bytes;
  placement.slots[static_cast<size_t>(Pool::kDram)] = options.dram_bytes / options.block_bytes;
  if (options.nvme_bytes == 0) return placement;
  placement.nvme = *PlanNvmeGeometry(options.nvme_bytes, options.block_bytes);
  placement.hot_share = 1 - 1 / options.max_write_amplification;
  // Room for the sources of one group at least, and for reads beside it.
  placement.slots[static_cast<size_t>(Pool::kTransit)] =
      std::clamp(kTransitBytes / options.block_bytes, kMinTransitSlots, kMaxTransitSlots);
  return placement;
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
  const TimelineSpan span(options.timeline.get(), "open tiers");
  absl::Status status = options.Validate();
  if (!status.ok()) return status;
  PlacementOptions placement_options = MakePlacementOptions(options);
  OpenedTier tier;
  const bool injected_device = parts.device != nullptr;
  if (placement_options.nvme) {
    if (injected_device) {
      tier.device = std::move(parts.device);
    } else {
      absl::StatusOr<OpenedTier> opened = OpenTierFile(options, *placement_options.nvme);
      if (!opened.ok()) return opened.status();
      tier = *std::move(opened);
    }
    placement_options.epoch = DrawRandom();
    placement_options.session = DrawRandom();
  }
  if (parts.copy_engine == nullptr && options.hbm_device == HbmDevice::kCuda) {
    absl::StatusOr<std::unique_ptr<CopyEngine>> engine = MakeCudaCopyEngine(
        {.device = options.cuda_device, .pool_bytes = static_cast<size_t>(options.hbm_bytes)});
    if (!engine.ok()) return engine.status();
    parts.copy_engine = *std::move(engine);
  }
  if (parts.copy_engine == nullptr) parts.copy_engine = MakeHostCopyEngine();
  auto memory = SlotMemory::Create(options.block_bytes, placement_options.slots,
                                   std::move(parts.copy_engine), options.timeline);
  if (!memory.ok()) return memory.status();
  auto placement = Placement::Create(placement_options);
  if (!placement.ok()) return placement.status();

  std::unique_ptr<TierManager> manager(
      new TierManager(options, *std::move(placement), *std::move(memory)));
  manager->checksums_ = parts.checksums;
  if (tier.device != nullptr) {
    status = manager->AttachDevice(std::move(tier.device));
    if (!status.ok()) return status;
    if (injected_device && options.reuse) {
      absl::StatusOr<std::optional<Superblock>> found = manager->FindSuperblock();
      if (!found.ok()) return found.status();
      tier.found = *found;
    }
    status = tier.found ? manager->Recover(tier)
                        : manager->StartEmpty({.geometry = *placement_options.nvme,
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
  if (absl::Status status = MakeQueues(); !status.ok()) return status;
  IoSchedulerOptions options;
  // Some depth is left to write-back however many reads there are: reads may wait for its room.
  const size_t depth = device_info_.depth;
  options.class_depth[static_cast<size_t>(IoClass::kDemand)] =
      depth - std::min<size_t>(8, depth / 4);
  options.queue_capacity = kFlights + Placement::kWriteGroups + kUpkeepWrites + kBlockingRequests;
  options.share = options_.device_share;
  options.timeline = options_.timeline;
  scheduler_ = std::make_unique<IoScheduler>(
      std::move(device), options,
      [this](absl::Span<IoRequest* const> done) { OnCompletions(done); });
  return absl::OkStatus();
}

absl::Status TierManager::MakeQueues() {
  flight_contexts_.resize(kFlights);
  group_contexts_.resize(Placement::kWriteGroups);
  upkeep_contexts_.resize(kUpkeepWrites);
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
    upkeep_writes_.resize(kUpkeepWrites);
    for (size_t i = 0; i < kUpkeepWrites; ++i) {
      absl::StatusOr<AlignedBuffer> bytes = AlignedBuffer::Create(
          size_t{std::max(geometry.manifest_pages, geometry.footer_pages)} * kPageBytes);
      if (!bytes.ok()) return bytes.status();
      upkeep_writes_[i].bytes = *std::move(bytes);
      upkeep_contexts_[i] = {.kind = Context::Kind::kUpkeep, .index = i};
      upkeep_writes_[i].request.context = &upkeep_contexts_[i];
      idle_upkeep_.push_back(i);
    }
  }
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

// The new epoch first, which is the end of everything older; then a blank manifest.
absl::Status TierManager::StartEmpty(const Superblock& superblock) {
  const NvmeGeometry& geometry = superblock.geometry;
  constexpr uint64_t kPieceBytes = uint64_t{1} << 20;
  absl::StatusOr<AlignedBuffer> bytes = AlignedBuffer::Create(kPieceBytes);
  if (!bytes.ok()) return bytes.status();
  const absl::Span<std::byte> page = bytes->span().first(kPageBytes);
  EncodeSuperblock(superblock, page);
  for (uint32_t copy = 0; copy < kSuperblockPages; ++copy) {
    const absl::Status status = WriteBlocking(copy * kPageBytes, page);
    if (!status.ok()) return status;
  }
  if (absl::Status synced = Sync(); !synced.ok()) return synced;
  std::fill(page.begin(), page.end(), std::byte{});
  for (uint64_t at = kSuperblockPages * kPageBytes; at < geometry.log_start() * kPageBytes;) {
    const uint64_t piece = std::min(kPieceBytes, geometry.log_start() * kPageBytes - at);
    const absl::Status status = WriteBlocking(at, bytes->span().first(piece));
    if (!status.ok()) return status;
    at += piece;
  }
  return Sync();
}

absl::Status TierManager::WriteBlocking(uint64_t offset, absl::Span<const std::byte> bytes) {
  const iovec vector = {const_cast<std::byte*>(bytes.data()), bytes.size()};
  IoRequest request;
  request.op = IoOp::kWrite;
  request.offset = offset;
  request.buffers = absl::MakeConstSpan(&vector, 1);
  IoRequest* batch[] = {&request};
  return RunBlocking(batch);
}

absl::StatusOr<std::optional<Superblock>> TierManager::FindSuperblock() {
  absl::StatusOr<std::optional<Superblock>> found = ReadSuperblock(
      [this](absl::Span<IoRequest* const> batch) { return RunBlocking(batch); }, "the device");
  if (!found.ok() || !*found) return found;
  const absl::Status usable = CheckReusable(
      "the device", **found,
      [this] {
        absl::MutexLock lock(&mu_);
        return placement_->nvme()->geometry();
      }(),
      options_);
  if (!usable.ok()) return usable;
  return found;
}

absl::Status TierManager::Recover(const OpenedTier& tier) {
  const TimelineSpan span(timeline(), "recover");
  const absl::Time start = absl::Now();
  // Nobody else knows this manager yet, so the lock protects nothing while it is let go for I/O.
  Placement* placement = nullptr;
  KeyRing* keys = nullptr;
  {
    absl::MutexLock lock(&mu_);
    recovering_ = true;
    placement = &*placement_;
    keys = &keys_;
    placement->nvme()->SetEpoch(tier.found->epoch);
  }
  NvmeReader reader([this](absl::Span<IoRequest* const> batch) { return RunBlocking(batch); });
  absl::StatusOr<RecoveryReport> report = RecoverNvme(
      reader,
      [&](const KeyName& name) {
        const KeyNumber key = keys->IndexOf(name);
        if (key != kNoKey) placement->SetKeyReady(key, false);
        return key;
      },
      *placement);
  if (!report.ok()) return report.status();
  // What was read may have been in the disk's cache alone; from here on it is relied upon.
  if (absl::Status synced = Sync(); !synced.ok()) return synced;
  absl::MutexLock lock(&mu_);
  recovering_ = false;
  recovery_ = *report;
  recovery_.missing_bytes = tier.missing_bytes;
  WriteMarks();
  recovery_.seconds = absl::ToDoubleSeconds(absl::Now() - start);
  StartTransfers();
  return absl::OkStatus();
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

}  // namespace terrace
