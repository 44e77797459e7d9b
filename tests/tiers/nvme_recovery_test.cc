#include "tiers/nvme_recovery.h"

#include <cerrno>
#include <cstring>
#include <map>
#include <memory>
#include <optional>
#include <random>
#include <utility>
#include <vector>

#include "gtest/gtest.h"
#include "io/memory_device.h"
#include "tiers/tier_manager.h"

namespace terrace {
namespace {

constexpr uint64_t kEpoch = 99;
// Four segments of three groups: a header page and two blocks of two pages each.
constexpr NvmeGeometry kGeometry = {.pages_per_block = 2,
                                    .segment_pages = 15,
                                    .segment_count = 4,
                                    .group_blocks = 2,
                                    .header_pages = 1};

BlockId Id(uint64_t number) { return {.high = ~number, .low = number}; }

std::unique_ptr<MemoryDevice> MakeDevice(uint64_t bytes) {
  return *MemoryDevice::Create({.size_bytes = bytes, .depth = 64, .transfer_hook = {}});
}

// Recovers what `device` holds into a new Placement.
absl::StatusOr<std::unique_ptr<Placement>> Recover(MemoryDevice& device,
                                                   const NvmeGeometry& geometry,
                                                   uint64_t epoch = kEpoch) {
  PlacementOptions options;
  options.block_bytes = geometry.pages_per_block * kPageBytes;
  options.slots = {0, 0, 8};
  options.nvme = geometry;
  options.epoch = epoch;
  std::unique_ptr<Placement> placement = *Placement::Create(options);
  const absl::Status status = RecoverNvme(
      [&](absl::Span<IoRequest* const> batch) { return RunBatch(device, batch); }, *placement);
  if (!status.ok()) return status;
  return placement;
}

std::optional<uint32_t> PageOf(const Placement& placement, const BlockId& id) {
  const EntryIndex entry = placement.directory().Find(id);
  if (entry == kNoEntry) return std::nullopt;
  return static_cast<uint32_t>(placement.directory()[entry].page);
}

// --- Groups written by hand ---

struct HandBlock {
  uint64_t number = 0;
  Retention retention = Retention::kCached;
  bool valid = true;
};

class NvmeRecoveryTest : public testing::Test {
 protected:
  // First page of a group, when all before it in its segment have two blocks.
  static uint32_t Base(uint32_t segment, uint32_t group) {
    return kSuperblockPages + segment * kGeometry.segment_pages + group * 5;
  }
  std::byte* Page(uint32_t page) { return device_->bytes().data() + size_t{page} * kPageBytes; }

  void Write(uint32_t base, uint64_t generation, const std::vector<HandBlock>& blocks,
             uint64_t epoch = kEpoch) {
    std::vector<PageChecksum> checksums(blocks.size() * 2);
    std::vector<GroupRecord> records;
    for (size_t i = 0; i < blocks.size(); ++i) {
      checksums[2 * i] = static_cast<PageChecksum>(generation * 100 + i);
      records.push_back({.id = Id(blocks[i].number),
                         .valid = blocks[i].valid,
                         .retention = blocks[i].retention,
                         .checksums = absl::MakeConstSpan(checksums).subspan(2 * i, 2)});
    }
    EncodeGroupHeader(kGeometry,
                      {.epoch = epoch,
                       .generation = generation,
                       .base_page = base,
                       .block_count = static_cast<uint32_t>(blocks.size())},
                      records, absl::MakeSpan(Page(base), kPageBytes));
  }
  std::unique_ptr<Placement> Recovered() { return *Recover(*device_, kGeometry); }

  std::unique_ptr<MemoryDevice> device_ = MakeDevice(kGeometry.total_bytes());
};

TEST_F(NvmeRecoveryTest, AnEmptyDeviceHoldsNothing) {
  const std::unique_ptr<Placement> placement = Recovered();
  EXPECT_EQ(placement->directory().size(), 0u);
  EXPECT_EQ(placement->nvme()->free_segments(), kGeometry.segment_count);
}

TEST_F(NvmeRecoveryTest, BlocksComeBackWithPlaceRetentionAndChecksums) {
  Write(Base(2, 0), 5, {{1, Retention::kOwned}, {2}});
  Write(Base(2, 1), 6, {{3}});
  const std::unique_ptr<Placement> placement = Recovered();
  EXPECT_EQ(placement->directory().size(), 3u);
  EXPECT_EQ(PageOf(*placement, Id(1)), Base(2, 0) + 1);
  EXPECT_EQ(PageOf(*placement, Id(2)), Base(2, 0) + 3);
  EXPECT_EQ(PageOf(*placement, Id(3)), Base(2, 1) + 1);
  const BlockDirectory& directory = placement->directory();
  EXPECT_EQ(directory[directory.Find(Id(1))].retention, Retention::kOwned);
  EXPECT_EQ(directory[directory.Find(Id(2))].retention, Retention::kCached);
  EXPECT_EQ(placement->nvme()->checksums(PageIndex{Base(2, 0) + 3}, 2)[0], 501u);
  EXPECT_EQ(placement->nvme()->used_bytes(), (kSuperblockPages + 5 + 3) * kPageBytes);
  EXPECT_TRUE(placement->OnNvme(Id(3)));
}

TEST_F(NvmeRecoveryTest, TheNewestCopyWinsInsideAndAcrossSegments) {
  // Block 1: first in a later segment by number. Block 2: twice in one segment.
  Write(Base(3, 0), 1, {{1}, {2}});
  Write(Base(3, 1), 2, {{2}});
  Write(Base(0, 0), 7, {{1}});
  Write(Base(1, 0), 4, {{1}});
  const std::unique_ptr<Placement> placement = Recovered();
  EXPECT_EQ(placement->directory().size(), 2u);
  EXPECT_EQ(PageOf(*placement, Id(1)), Base(0, 0) + 1);
  EXPECT_EQ(PageOf(*placement, Id(2)), Base(3, 1) + 1);
  EXPECT_EQ(placement->nvme()->checksums(PageIndex{Base(0, 0) + 1}, 2)[0], 700u);
}

TEST_F(NvmeRecoveryTest, VoidPlacesHoldNothing) {
  Write(Base(0, 0), 1, {{.number = 1, .valid = false}, {2}});
  const std::unique_ptr<Placement> placement = Recovered();
  EXPECT_FALSE(placement->Find(Id(1)));
  EXPECT_EQ(PageOf(*placement, Id(2)), Base(0, 0) + 3);
}

TEST_F(NvmeRecoveryTest, ATornGroupEndsItsSegmentAndNoOther) {
  for (const bool never_written : {true, false}) {
    SCOPED_TRACE(testing::Message() << "never written: " << never_written);
    for (uint32_t group = 0; group < 3; ++group) {
      Write(Base(0, group), 1 + group, {{10 + group}, {20 + group}});
      Write(Base(1, group), 4 + group, {{30 + group}, {40 + group}});
    }
    if (never_written) {
      std::memset(Page(Base(1, 1)), 0, kPageBytes);
    } else {
      Page(Base(1, 1))[777] ^= std::byte{4};
    }
    const std::unique_ptr<Placement> placement = Recovered();
    for (uint32_t group = 0; group < 3; ++group) {
      EXPECT_TRUE(placement->Find(Id(10 + group)) && placement->Find(Id(20 + group)));
      EXPECT_EQ(placement->Find(Id(30 + group)).has_value(), group == 0);
      EXPECT_EQ(placement->Find(Id(40 + group)).has_value(), group == 0);
    }
  }
}

TEST_F(NvmeRecoveryTest, StaleGroupsOfAnEarlierUseAreIgnored) {
  for (uint32_t group = 0; group < 3; ++group) {
    Write(Base(0, group), 1 + group, {{10 + group}, {20 + group}});
  }
  Write(Base(1, 0), 4, {{11}});
  Write(Base(0, 0), 5, {{30}, {31}});
  const std::unique_ptr<Placement> placement = Recovered();
  EXPECT_EQ(placement->directory().size(), 3u);
  EXPECT_TRUE(placement->Find(Id(30)) && placement->Find(Id(31)));
  EXPECT_EQ(PageOf(*placement, Id(11)), Base(1, 0) + 1);
}

TEST_F(NvmeRecoveryTest, GroupsOfAnotherEpochAreIgnored) {
  Write(Base(0, 0), 1, {{1}});
  Write(Base(1, 0), 2, {{2}}, kEpoch + 1);
  Write(Base(0, 1) - 2, 3, {{3}}, kEpoch - 1);
  const std::unique_ptr<Placement> placement = Recovered();
  EXPECT_EQ(placement->directory().size(), 1u);
  EXPECT_TRUE(placement->Find(Id(1)));
}

TEST_F(NvmeRecoveryTest, AGroupThatReachesBeyondItsSegmentIsIgnored) {
  Write(Base(0, 0), 1, {{1}});                                              // 3 pages
  for (uint32_t at : {3u, 6u, 9u}) Write(Base(0, 0) + at, 1 + at, {{at}});  // up to 12
  Write(Base(0, 0) + 12, 20, {{50}, {51}});  // two blocks where one fits
  const std::unique_ptr<Placement> placement = Recovered();
  EXPECT_EQ(placement->directory().size(), 4u);
  EXPECT_FALSE(placement->Find(Id(50)) || placement->Find(Id(51)));
}

// A group that was in flight when the process died may lie behind a torn one. Were generations to
// go on from the last that recovery saw, it would look like the next group of the segment's next
// use.
TEST_F(NvmeRecoveryTest, WhatLayHiddenBehindATornGroupNeverComesBack) {
  Write(Base(1, 0), 7, {{1}, {4}});
  Write(Base(1, 2), 9, {{2}, {3}});  // the group before it, 8, never reached the device
  const std::unique_ptr<Placement> placement = Recovered();
  EXPECT_FALSE(placement->Find(Id(2)));
  for (uint64_t number : {100, 101}) {
    const Placement::PutReservation put = placement->ReservePut(Id(number), Retention::kCached);
    ASSERT_EQ(put.outcome, Placement::PutOutcome::kReserved);
    placement->FillLanded(put.place);
  }
  placement->CloseOpenGroup();
  const std::optional<size_t> index = placement->NextGroup();
  ASSERT_TRUE(index.has_value());
  const WriteGroup& group = placement->group(*index);
  ASSERT_EQ(static_cast<uint32_t>(group.base), Base(1, 1));  // the newest segment goes on
  Write(Base(1, 1), group.generation, {{100}, {101}});
  placement->GroupWritten(*index, true);
  const std::unique_ptr<Placement> again = Recovered();
  EXPECT_TRUE(again->Find(Id(1)) && again->Find(Id(100)) && again->Find(Id(101)));
  EXPECT_FALSE(again->Find(Id(2)));
}

TEST_F(NvmeRecoveryTest, RestoredSegmentsAreEvictedOldestFirst) {
  const uint64_t generations[] = {5, 2, 9, 3};
  for (uint32_t segment = 0; segment < 4; ++segment) {
    Write(Base(segment, 0), generations[segment], {{segment}});
  }
  const std::unique_ptr<Placement> placement = Recovered();
  EXPECT_EQ(placement->nvme()->free_segments(), 0u);
  EXPECT_EQ(placement->nvme()->Victim(), SegmentIndex{1});
}

TEST_F(NvmeRecoveryTest, ADeviceThatCannotBeReadHoldsNothing) {
  device_ = *MemoryDevice::Create(
      {.size_bytes = kGeometry.total_bytes(),
       .depth = 64,
       .transfer_hook = [](const IoRequest&, uint64_t) -> int64_t { return -EIO; }});
  const absl::StatusOr<std::unique_ptr<Placement>> placement = Recover(*device_, kGeometry);
  ASSERT_TRUE(placement.ok()) << placement.status();
  EXPECT_EQ((*placement)->directory().size(), 0u);
}

// --- Tiers written by a TierManager ---

// Lets a manager own a device that the test goes on to read.
class BorrowedDevice final : public BlockDevice {
 public:
  explicit BorrowedDevice(BlockDevice& device) : device_(device) {}
  void Submit(absl::Span<IoRequest* const> batch) override { device_.Submit(batch); }
  size_t Poll(absl::Span<IoRequest*> done) override { return device_.Poll(done); }
  size_t Wait(absl::Span<IoRequest*> done) override { return device_.Wait(done); }
  void Wake() override { device_.Wake(); }
  const DeviceInfo& info() const override { return device_.info(); }

 private:
  BlockDevice& device_;
};

constexpr size_t kBlockBytes = size_t{16} << 10;

std::vector<std::byte> Bytes(uint64_t number, uint64_t version) {
  std::mt19937_64 random(number * 1000 + version);
  std::vector<std::byte> bytes(kBlockBytes);
  for (std::byte& byte : bytes) byte = static_cast<std::byte>(random());
  return bytes;
}

// What a block's place on the device holds, and whether it agrees with its checksums.
void ExpectOnDevice(Placement& placement, MemoryDevice& device, const BlockId& id,
                    const std::vector<std::byte>& bytes) {
  const std::optional<uint32_t> page = PageOf(placement, id);
  ASSERT_TRUE(page.has_value()) << id.low;
  const absl::Span<const std::byte> found =
      device.bytes().subspan(size_t{*page} * kPageBytes, kBlockBytes);
  EXPECT_TRUE(std::equal(found.begin(), found.end(), bytes.begin())) << id.low;
  const auto checksums = placement.nvme()->checksums(PageIndex{*page}, kBlockBytes / kPageBytes);
  EXPECT_EQ(FirstCorruptPage(found, checksums), checksums.size()) << id.low;
}

TEST(NvmeRecoveryOfAManager, EveryFlushedBlockIsFoundAgainWithItsBytes) {
  for (uint64_t seed = 1; seed <= 4; ++seed) {
    SCOPED_TRACE(testing::Message() << "seed " << seed);
    std::mt19937_64 random(seed);
    TierManagerOptions options;
    options.block_bytes = kBlockBytes;
    options.hbm_bytes = (seed % 2) * 4 * kBlockBytes;
    options.dram_bytes = (seed / 2 % 2) * 6 * kBlockBytes;
    options.nvme_bytes = 64 * kBlockBytes;
    options.nvme_dir = "unused";
    const NvmeGeometry geometry = *PlanNvmeGeometry(options.nvme_bytes, kBlockBytes);
    const std::unique_ptr<MemoryDevice> device = MakeDevice(geometry.total_bytes());
    std::map<uint64_t, uint64_t> versions;  // of the blocks on the device when the manager ended
    {
      TierManager::Parts parts;
      parts.device = std::make_unique<BorrowedDevice>(*device);
      const std::unique_ptr<TierManager> manager = *TierManager::Open(options, std::move(parts));
      std::map<uint64_t, uint64_t> put;
      // Enough to go round the device several times, with blocks dropped and put anew.
      for (uint64_t step = 0; step < 400; ++step) {
        const uint64_t number = random() % 80;
        if (manager->Find(Id(number)) && random() % 3 == 0) {
          const BlockId id = Id(number);
          manager->Drop(absl::MakeConstSpan(&id, 1));
        }
        if (manager->Find(Id(number))) continue;
        const std::vector<std::byte> bytes = Bytes(number, step);
        const BlockWrite write = {.id = Id(number), .bytes = bytes};
        ASSERT_TRUE(manager->Put(absl::MakeConstSpan(&write, 1)).ok());
        put[number] = step;
      }
      ASSERT_TRUE(manager->Flush().ok());
      for (const auto& [number, version] : put) {
        if (manager->OnNvme(Id(number))) versions[number] = version;
      }
    }
    ASSERT_GT(versions.size(), 20u);
    const auto superblock = DecodeSuperblock(device->bytes().first(kPageBytes));
    ASSERT_TRUE(superblock.ok()) << superblock.status();
    auto placement = Recover(*device, geometry, superblock->epoch);
    ASSERT_TRUE(placement.ok()) << placement.status();
    for (const auto& [number, version] : versions) {
      ExpectOnDevice(**placement, *device, Id(number), Bytes(number, version));
    }
  }
}

}  // namespace
}  // namespace terrace
