// Encrypted blocks that somebody changed, and keys that go while blocks are on their way.

#include <algorithm>
#include <array>
#include <memory>
#include <thread>
#include <utility>
#include <vector>

#include "gtest/gtest.h"
#include "io/memory_device.h"
#include "tests/support/borrowed_device.h"
#include "tests/support/tier_fixture.h"
#include "tiers/tier_manager.h"

namespace terrace {
namespace {

constexpr size_t kBlock = size_t{16} << 10;
constexpr uint64_t kSpace = 7;

CipherKey Key(uint8_t fill) {
  std::array<std::byte, CipherKey::kBytes> bytes;
  bytes.fill(std::byte{fill});
  return *CipherKey::Create(bytes);
}

absl::Status PutSealed(TierManager& manager, uint64_t number) {
  const std::vector<std::byte> bytes = BlockBytes(TestId(number), manager.block_bytes());
  const BlockWrite write = {.id = TestId(number), .bytes = bytes, .space = kSpace};
  return manager.Put({&write, 1});
}

// A tier of one group of encrypted blocks, whose writer knows all about checksums and has no key.
class TierManagerTamper : public testing::Test {
 protected:
  void SetUp() override {
    options_ =
        TestTierOptions(kBlock, {.hbm_slots = 0, .dram_slots = 4, .nvme_bytes = 512 * kBlock});
    geometry_ = *PlanNvmeGeometry(options_.nvme_bytes, kBlock);
    device_ = *MemoryDevice::Create(
        {.size_bytes = geometry_.total_bytes(), .depth = 64, .transfer_hook = {}});
    Open();
    ASSERT_TRUE(manager_->AddKey(kSpace, Key(1)).ok());
    for (uint64_t number = 0; number < 3; ++number) {
      ASSERT_TRUE(PutSealed(*manager_, number).ok());
    }
    ASSERT_TRUE(manager_->Flush().ok());
    manager_.reset();
    epoch_ = DecodeSuperblock(device_->bytes().first(kPageBytes))->epoch;
    header_ = device_->bytes().subspan(geometry_.log_start() * kPageBytes,
                                       geometry_.header_pages * kPageBytes);
    const std::optional<GroupView> view = GroupView::Decode(geometry_, epoch_, header_);
    ASSERT_TRUE(view.has_value());
    ASSERT_EQ(view->group().block_count, 3u);
    group_ = view->group();
    for (uint32_t i = 0; i < 3; ++i) {
      records_.push_back(view->record(i));
      ASSERT_TRUE(records_[i].key.has_value());
      ASSERT_EQ(records_[i].id, TestId(i));
    }
  }
  void Open() {
    TierManager::Parts parts;
    parts.device = std::make_unique<BorrowedDevice>(*device_);
    auto opened = TierManager::Open(options_, std::move(parts));
    ASSERT_TRUE(opened.ok()) << opened.status();
    manager_ = *std::move(opened);
    options_.reuse = true;
  }
  absl::Span<std::byte> Block(uint32_t index) {
    return device_->bytes().subspan((group_.base_page + geometry_.group_pages(index)) * kPageBytes,
                                    kBlock);
  }
  // Writes the group header anew, with the checksums of what lies behind it now, and reopens.
  void Reopen() {
    std::vector<PageChecksum> checksums(3 * geometry_.pages_per_block);
    for (uint32_t i = 0; i < 3; ++i) {
      const absl::Span<PageChecksum> made = absl::MakeSpan(checksums).subspan(
          i * geometry_.pages_per_block, geometry_.pages_per_block);
      ChecksumPages(Block(i), made);
      records_[i].checksums = made;
    }
    EncodeGroupHeader(geometry_, group_, records_, header_);
    Open();
    ASSERT_TRUE(manager_->AddKey(kSpace, Key(1)).ok());
  }
  bool Serves(uint64_t number) {
    const BlockRead read = {.id = TestId(number)};
    const absl::StatusOr<Lease> lease = manager_->Fetch({&read, 1});
    if (!lease.ok() || (*lease)[0].outcome != BlockOutcome::kServed) return false;
    const std::vector<std::byte> wanted = BlockBytes(TestId(number), kBlock);
    return std::equal(wanted.begin(), wanted.end(), (*lease)[0].data);
  }
  void ExpectOnlyServed(uint64_t served) {
    for (uint64_t number = 0; number < 3; ++number) {
      EXPECT_EQ(Serves(number), number == served) << number;
      EXPECT_EQ(Serves(number), number == served) << number;
    }
    const TierStats stats = manager_->Stats();
    EXPECT_EQ(stats.nvme_faults.unopened_blocks, 4u);  // each was tried twice
    EXPECT_EQ(stats.nvme_faults.corrupt_reads, 0u);
    EXPECT_EQ(stats.placement.lost_blocks, 2u);
    EXPECT_EQ(stats.nvme_health, NvmeHealth::kDegraded);
  }

  TierManagerOptions options_;
  NvmeGeometry geometry_;
  std::unique_ptr<MemoryDevice> device_;
  std::unique_ptr<TierManager> manager_;
  uint64_t epoch_ = 0;
  absl::Span<std::byte> header_;
  GroupHeader group_;
  std::vector<GroupRecord> records_;
};

TEST_F(TierManagerTamper, UnchangedTheyAreServed) {
  Reopen();
  for (uint64_t number = 0; number < 3; ++number) EXPECT_TRUE(Serves(number)) << number;
  EXPECT_EQ(manager_->Stats().nvme_faults.unopened_blocks, 0u);
}

TEST_F(TierManagerTamper, AFlippedBitIsNoticedThoughItsChecksumIsRight) {
  Block(0)[0] ^= std::byte{1};
  Block(2)[kBlock - 1] ^= std::byte{0x80};
  Reopen();
  ExpectOnlyServed(1);
}

TEST_F(TierManagerTamper, BlocksInEachOthersPlaceAreNoticed) {
  std::swap_ranges(Block(0).begin(), Block(0).end(), Block(2).begin());
  std::swap(records_[0].seal, records_[2].seal);
  Reopen();
  ExpectOnlyServed(1);
}

TEST_F(TierManagerTamper, AnOwnSealForEachBlockIsNeeded) {
  std::swap(records_[0].seal, records_[1].seal);
  Reopen();
  ExpectOnlyServed(2);
}

// --- Keys that go ---

// Blocks so large that staging memory has room for four, and each is written alone.
constexpr size_t kLargeBlock = size_t{2} << 20;

TEST(TierManagerKeyRace, ABlockWhoseKeyGoesBeforeItIsReadIsServedRightOrNotAtAll) {
  TestTier tier(kLargeBlock, {.hbm_slots = 8, .nvme_bytes = 64 * kLargeBlock});
  ASSERT_TRUE(tier->AddKey(kSpace, Key(1)).ok());
  for (uint64_t number = 0; number < 8; ++number) {
    ASSERT_TRUE(PutSealed(tier.manager(), number).ok());
  }
  ASSERT_TRUE(tier->Flush().ok());
  tier.PutMany(100, 8);  // takes their place in HBM
  ASSERT_TRUE(tier->Flush().ok());
  tier.device().HoldWhen([](const IoRequest& request) { return request.op == IoOp::kRead; });
  std::vector<BlockRead> reads;
  for (uint64_t number = 0; number < 8; ++number) reads.push_back({.id = TestId(number)});
  absl::StatusOr<Ticket> ticket = tier->FetchAsync(reads);
  ASSERT_TRUE(ticket.ok()) << ticket.status();
  tier.device().AwaitHeld(4);  // the others wait for staging memory
  tier->DropKey(kSpace);
  tier.device().ReleaseAll();
  const Lease lease = ticket->Wait();
  for (uint64_t number = 0; number < 8; ++number) {
    if (lease[number].outcome != BlockOutcome::kServed) continue;
    EXPECT_TRUE(tier.Right(lease[number], number)) << number;
  }
  EXPECT_EQ(tier.Find(0), std::nullopt);
}

TEST(TierManagerKeyRace, APutThatWaitsWhileItsKeyGoesIsRefused) {
  TestTier tier(kLargeBlock, {.nvme_bytes = 64 * kLargeBlock});
  ASSERT_TRUE(tier->AddKey(kSpace, Key(1)).ok());
  tier.device().HoldWhen([](const IoRequest& request) { return request.op == IoOp::kWrite; });
  for (uint64_t number = 0; number < 4; ++number) {
    ASSERT_TRUE(PutSealed(tier.manager(), number).ok());
  }
  tier.device().AwaitHeld(1);
  absl::Status status;
  std::thread putter([&] { status = PutSealed(tier.manager(), 4); });
  // It waits for staging memory by now, or has not come far; either way it finds no key.
  for (int i = 0; i < 1000; ++i) std::this_thread::yield();
  tier->DropKey(kSpace);
  tier.device().ReleaseAll();
  putter.join();
  EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition) << status;
  EXPECT_EQ(tier.Find(4), std::nullopt);
  EXPECT_TRUE(tier->Flush().ok());
}

}  // namespace
}  // namespace terrace
