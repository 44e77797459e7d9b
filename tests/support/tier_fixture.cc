#include "tests/support/tier_fixture.h"

#include <cstring>
#include <thread>
#include <utility>

#include "io/aligned_buffer.h"
#include "io/check.h"
#include "io/memory_device.h"
#include "tiers/nvme_format.h"

namespace terrace {
namespace {

constexpr uint64_t kFaultSeed = 20240917;

uint64_t NextRandom(uint64_t& state) {
  // SplitMix64.
  state += 0x9e3779b97f4a7c15;
  uint64_t word = state;
  word = (word ^ (word >> 30)) * 0xbf58476d1ce4e5b9;
  word = (word ^ (word >> 27)) * 0x94d049bb133111eb;
  return word ^ (word >> 31);
}

bool Contains(absl::Span<const Copy> batch, std::optional<CopyDirection> direction) {
  if (!direction) return false;
  for (const Copy& copy : batch) {
    if (copy.direction == *direction) return true;
  }
  return false;
}

}  // namespace

std::vector<BlockId> TestIds(uint64_t first, uint64_t count) {
  std::vector<BlockId> ids;
  for (uint64_t i = 0; i < count; ++i) ids.push_back(TestId(first + i));
  return ids;
}

std::vector<std::byte> BlockBytes(const BlockId& id, size_t bytes, uint64_t version) {
  uint64_t state = id.low * 1000003 + version;
  std::vector<std::byte> block(bytes);
  for (size_t i = 0; i + sizeof(uint64_t) <= bytes; i += sizeof(uint64_t)) {
    const uint64_t word = NextRandom(state);
    std::memcpy(&block[i], &word, sizeof(word));
  }
  return block;
}

uint64_t TinyNvmeBytes(size_t block_bytes, uint64_t segments) {
  TERRACE_CHECK(segments >= 2 && segments <= 32);
  // The superblocks' pages, then segments of a header page, one block and a footer page, with two
  // pages of the manifest.
  const uint64_t bytes = kPageBytes * kSuperblockPages + segments * (4 * kPageBytes + block_bytes);
  const absl::StatusOr<NvmeGeometry> geometry = PlanNvmeGeometry(bytes, block_bytes);
  TERRACE_CHECK(geometry.ok() && geometry->segment_count == segments &&
                geometry->blocks_per_segment() == 1);
  return bytes;
}

TierManagerOptions TestTierOptions(size_t block_bytes, const TierSizes& sizes) {
  TierManagerOptions options;
  options.block_bytes = block_bytes;
  options.hbm_bytes = sizes.hbm_slots * block_bytes;
  options.dram_bytes = sizes.dram_slots * block_bytes;
  options.nvme_bytes = sizes.nvme_bytes;
  options.coalesce_read_bytes = 0;  // tests tell the device which blocks to fail, hold and count
  return options;
}

void YieldUntil(const std::function<bool()>& done) {
  while (!done()) std::this_thread::yield();
}

void FaultyCopyEngine::FailWhen(std::optional<CopyDirection> direction) {
  absl::MutexLock lock(&mu_);
  fail_ = direction;
}

void FaultyCopyEngine::HoldWhen(CopyDirection direction) {
  absl::MutexLock lock(&mu_);
  hold_ = direction;
}

void FaultyCopyEngine::Release() {
  absl::MutexLock lock(&mu_);
  hold_.reset();
}

void FaultyCopyEngine::AwaitHeld() const {
  const auto some = [this]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) { return held_ > 0; };
  absl::MutexLock lock(&mu_);
  mu_.Await(absl::Condition(&some));
}

void FaultyCopyEngine::FailPin() {
  absl::MutexLock lock(&mu_);
  fail_pin_ = true;
}

absl::StatusOr<std::unique_ptr<PinnedMemory>> FaultyCopyEngine::Pin(absl::Span<std::byte> memory) {
  absl::MutexLock lock(&mu_);
  if (std::exchange(fail_pin_, false)) {
    return absl::ResourceExhaustedError("the copy engine was told not to pin");
  }
  return host_->Pin(memory);
}

absl::StatusOr<std::unique_ptr<DeviceMemory>> FaultyCopyEngine::Allocate(size_t bytes) {
  absl::StatusOr<std::unique_ptr<DeviceMemory>> memory = host_->Allocate(bytes);
  absl::MutexLock lock(&mu_);
  if (memory.ok()) device_.push_back(absl::MakeConstSpan((*memory)->data(), (*memory)->size()));
  return memory;
}

bool FaultyCopyEngine::OnDevice(const std::byte* begin, size_t bytes) const {
  for (const absl::Span<const std::byte> memory : device_) {
    if (begin >= memory.data() && begin + bytes <= memory.data() + memory.size()) return true;
  }
  return false;
}

absl::StatusOr<CopyTicket> FaultyCopyEngine::Submit(absl::Span<const Copy> batch,
                                                    CopyPriority priority) {
  {
    absl::MutexLock lock(&mu_);
    for (const Copy& copy : batch) {
      const bool up = copy.direction == CopyDirection::kHostToDevice;
      TERRACE_CHECK(OnDevice(copy.destination, copy.bytes) == up);
      TERRACE_CHECK(OnDevice(copy.source, copy.bytes) != up);
    }
    if (Contains(batch, fail_)) return absl::UnavailableError("the copy engine was told to fail");
    if (Contains(batch, hold_)) {
      const auto released = [this]()
                                ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) { return !hold_.has_value(); };
      ++held_;
      mu_.Await(absl::Condition(&released));
      --held_;
    }
  }
  return host_->Submit(batch, priority);
}

void FaultyCopyEngine::FailWaits(int count) {
  absl::MutexLock lock(&mu_);
  failing_waits_ = count;
}

absl::Status FaultyCopyEngine::Wait(CopyTicket ticket) {
  if (absl::Status status = host_->Wait(ticket); !status.ok()) return status;
  absl::MutexLock lock(&mu_);
  if (failing_waits_ == 0) return absl::OkStatus();
  --failing_waits_;
  return absl::UnavailableError("the copy engine was told to fail late");
}

// Lets go of what a FaultyDevice holds when it is woken, once told to.
class TestTier::ReleaseOnWake final : public BlockDevice {
 public:
  ReleaseOnWake(std::unique_ptr<FaultyDevice> device, const std::atomic<bool>& armed)
      : device_(std::move(device)), armed_(armed) {}

  void Submit(absl::Span<IoRequest* const> batch) override { device_->Submit(batch); }
  size_t Poll(absl::Span<IoRequest*> done) override { return device_->Poll(done); }
  size_t Wait(absl::Span<IoRequest*> done) override { return device_->Wait(done); }
  void Wake() override {
    if (armed_) device_->ReleaseAll();
    device_->Wake();
  }
  const DeviceInfo& info() const override { return device_->info(); }

 private:
  const std::unique_ptr<FaultyDevice> device_;
  const std::atomic<bool>& armed_;
};

TestTier::TestTier(const TierManagerOptions& options) {
  TierManager::Parts parts;
  auto copies = std::make_unique<FaultyCopyEngine>();
  copies_ = copies.get();
  parts.copy_engine = std::move(copies);
  if (options.nvme_bytes > 0) {
    MemoryDeviceOptions memory;
    memory.size_bytes = PlanNvmeGeometry(options.nvme_bytes, options.block_bytes)->total_bytes();
    memory.transfer_hook = [this](const IoRequest& request, uint64_t bytes) {
      if (request.op == IoOp::kRead) ++reads_;
      if (request.op == IoOp::kWrite) ++writes_;
      if (request.op == IoOp::kSync) ++syncs_;
      return static_cast<int64_t>(bytes);
    };
    auto device = std::make_unique<FaultyDevice>(*MemoryDevice::Create(memory), kFaultSeed);
    device_ = device.get();
    parts.device = std::make_unique<ReleaseOnWake>(std::move(device), destroying_);
  }
  absl::StatusOr<std::unique_ptr<TierManager>> opened =
      TierManager::Open(options, std::move(parts));
  TERRACE_CHECK(opened.ok());
  manager_ = *std::move(opened);
}

TestTier::~TestTier() { Destroy(); }

void TestTier::Destroy() {
  destroying_ = true;
  manager_.reset();
}

absl::Status TestTier::Put(uint64_t number, Retention retention, uint64_t version) {
  const BlockId id = TestId(number);
  const std::vector<std::byte> bytes = BlockBytes(id, manager_->block_bytes(), version);
  const BlockWrite write = {.id = id, .bytes = bytes, .retention = retention};
  return manager_->Put({&write, 1});
}

void TestTier::PutMany(uint64_t first, uint64_t count, Retention retention) {
  for (uint64_t i = 0; i < count; ++i) TERRACE_CHECK(Put(first + i, retention).ok());
}

absl::StatusOr<Lease> TestTier::Fetch(uint64_t number, std::optional<Tier> target) {
  return FetchMany({number}, target);
}

absl::StatusOr<Lease> TestTier::FetchMany(const std::vector<uint64_t>& numbers,
                                          std::optional<Tier> target) {
  std::vector<BlockRead> reads;
  for (uint64_t number : numbers) reads.push_back({.id = TestId(number)});
  return manager_->Fetch(reads, {.target = target});
}

absl::StatusOr<Ticket> TestTier::FetchAsync(uint64_t number, std::optional<Tier> target,
                                            absl::Time deadline) {
  const BlockRead read = {.id = TestId(number)};
  return manager_->FetchAsync({&read, 1}, {.target = target, .deadline = deadline});
}

void TestTier::Drop(uint64_t number) {
  const BlockId id = TestId(number);
  manager_->Drop({&id, 1});
}

bool TestTier::Right(const LeasedBlock& block, uint64_t number, uint64_t version, size_t offset) {
  if (block.outcome != BlockOutcome::kServed) return false;
  const std::vector<std::byte> wanted =
      BlockBytes(TestId(number), manager_->block_bytes(), version);
  std::vector<std::byte> served(block.bytes);
  if (!manager_->CopyToHost(block, absl::MakeSpan(served)).ok()) return false;
  return offset + served.size() <= wanted.size() &&
         std::memcmp(served.data(), wanted.data() + offset, served.size()) == 0;
}

bool TestTier::Serves(uint64_t number, std::optional<Tier> target) {
  const absl::StatusOr<Lease> lease = Fetch(number, target);
  return lease.ok() && Right((*lease)[0], number);
}

}  // namespace terrace
