// Recovery of tiers that a TierManager wrote.

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <map>
#include <memory>
#include <random>
#include <set>
#include <utility>
#include <vector>

#include "gtest/gtest.h"
#include "io/memory_device.h"
#include "tests/support/borrowed_device.h"
#include "tests/support/hand_written_tier.h"
#include "tests/support/tier_fixture.h"
#include "tiers/tier_manager.h"

namespace terrace {
namespace {

constexpr size_t kBlockBytes = size_t{16} << 10;

TierManagerOptions Options(uint64_t seed) {
  TierManagerOptions options;
  options.block_bytes = kBlockBytes;
  options.hbm_bytes = (seed % 2) * 4 * kBlockBytes;
  options.dram_bytes = (seed / 2 % 2) * 6 * kBlockBytes;
  options.nvme_bytes = 128 * kBlockBytes;
  options.nvme_dir = "unused";
  return options;
}

std::unique_ptr<MemoryDevice> MakeDevice(const TierManagerOptions& options) {
  return *MemoryDevice::Create(
      {.size_bytes = PlanNvmeGeometry(options.nvme_bytes, kBlockBytes)->total_bytes(),
       .depth = 64,
       .transfer_hook = {}});
}

absl::StatusOr<std::unique_ptr<TierManager>> Open(const TierManagerOptions& options,
                                                  BlockDevice& device) {
  TierManager::Parts parts;
  parts.device = std::make_unique<BorrowedDevice>(device);
  return TierManager::Open(options, std::move(parts));
}

bool Put(TierManager& manager, uint64_t number, uint64_t version) {
  const std::vector<std::byte> bytes = BlockBytes(TestId(number), kBlockBytes, version);
  const BlockWrite write = {.id = TestId(number), .bytes = bytes};
  return manager.Put({&write, 1}).ok();
}

bool Serves(TierManager& manager, uint64_t number, uint64_t version) {
  const BlockRead read = {.id = TestId(number)};
  const absl::StatusOr<Lease> lease = manager.Fetch({&read, 1});
  if (!lease.ok() || (*lease)[0].outcome != BlockOutcome::kServed) return false;
  const std::vector<std::byte> wanted = BlockBytes(TestId(number), kBlockBytes, version);
  std::vector<std::byte> served(kBlockBytes);
  return manager.CopyToHost((*lease)[0], absl::MakeSpan(served)).ok() && served == wanted;
}

void Drop(TierManager& manager, uint64_t number) {
  const BlockId id = TestId(number);
  manager.Drop({&id, 1});
}

TEST(NvmeRecoveryOfAManager, EveryFlushedBlockIsFoundAgainWithItsBytes) {
  for (uint64_t seed = 1; seed <= 8; ++seed) {
    SCOPED_TRACE(testing::Message() << "seed " << seed);
    std::mt19937_64 random(seed);
    TierManagerOptions options = Options(seed);
    const std::unique_ptr<MemoryDevice> device = MakeDevice(options);
    std::map<uint64_t, uint64_t> put;      // the newest version of each block
    std::map<uint64_t, uint64_t> on_nvme;  // of those that the last run left there
    std::set<uint64_t> dropped;
    for (int run = 0; run < 3; ++run) {
      const std::unique_ptr<TierManager> manager = *Open(options, *device);
      for (const auto& [number, version] : on_nvme) {
        EXPECT_TRUE(Serves(*manager, number, version)) << number << " run " << run;
      }
      for (const uint64_t number : dropped) {
        EXPECT_EQ(manager->Find(TestId(number)), std::nullopt) << number << " run " << run;
      }
      EXPECT_EQ(manager->Stats().placement.lost_blocks, 0u);
      EXPECT_EQ(manager->Stats().recovery.damaged_pages, 0u);
      dropped.clear();
      // Enough to go round the device several times, with blocks dropped and put anew.
      for (uint64_t step = 1; step <= 800; ++step) {
        const uint64_t number = random() % 160;
        if (manager->Find(TestId(number)) && random() % 2 == 0) {
          Drop(*manager, number);
          dropped.insert(number);
        }
        if (manager->Find(TestId(number)) || random() % 3 == 0) continue;
        const uint64_t version = run * 1000 + step;
        ASSERT_TRUE(Put(*manager, number, version));
        put[number] = version;
        dropped.erase(number);
      }
      ASSERT_TRUE(manager->Flush().ok());
      on_nvme.clear();
      for (const auto& [number, version] : put) {
        if (manager->OnNvme(TestId(number))) on_nvme[number] = version;
      }
      EXPECT_GT(on_nvme.size(), 40u);
      EXPECT_GT(dropped.size(), 0u);
      options.reuse = true;
    }
    if (testing::Test::HasFailure()) return;
  }
}

TEST(NvmeRecoveryOfAManager, AfterAFlushOfAnOpenSegmentNothingIsVerifiedTwice) {
  TierManagerOptions options = Options(0);
  const std::unique_ptr<MemoryDevice> device = MakeDevice(options);
  {
    const std::unique_ptr<TierManager> manager = *Open(options, *device);
    ASSERT_TRUE(Put(*manager, 1, 0));
    ASSERT_TRUE(manager->Flush().ok());
  }
  options.reuse = true;
  const std::unique_ptr<TierManager> manager = *Open(options, *device);
  const RecoveryReport report = manager->Stats().recovery;
  EXPECT_EQ(report.blocks, 1u);
  EXPECT_EQ(report.unsealed_segments, 1u);
  EXPECT_EQ(report.verified_bytes, 0u);
  EXPECT_TRUE(Serves(*manager, 1, 0));
}

TEST(NvmeRecoveryOfAManager, ATierWhoseHeadersAreGoneIsServedFromItsFooters) {
  TierManagerOptions options = Options(2);
  const NvmeGeometry geometry = *PlanNvmeGeometry(options.nvme_bytes, kBlockBytes);
  const std::unique_ptr<MemoryDevice> device = MakeDevice(options);
  std::vector<uint64_t> sealed;
  {
    const std::unique_ptr<TierManager> manager = *Open(options, *device);
    for (uint64_t number = 0; number < 60; ++number) ASSERT_TRUE(Put(*manager, number, 0));
    ASSERT_TRUE(manager->Flush().ok());
    for (uint64_t number = 0; number < 60; ++number) sealed.push_back(number);
  }
  // Whatever is not a block: a block's bytes never start with the magic number of a header.
  uint32_t destroyed = 0;
  for (uint64_t page = geometry.log_start(); page < geometry.total_pages(); ++page) {
    std::byte* const bytes = device->bytes().data() + page * kPageBytes;
    const bool footer = page >= geometry.FooterPage(geometry.SegmentOf(page));
    if (footer || std::memcmp(bytes + 8, "TRRGROUP", 8) != 0) continue;
    std::memset(bytes, 0, kPageBytes);
    ++destroyed;
  }
  ASSERT_GT(destroyed, 10u);
  options.reuse = true;
  const std::unique_ptr<TierManager> manager = *Open(options, *device);
  const RecoveryReport report = manager->Stats().recovery;
  EXPECT_GT(report.sealed_segments, 5u);
  EXPECT_LE(report.unsealed_segments, 1u);
  uint64_t served = 0;
  for (const uint64_t number : sealed) served += Serves(*manager, number, 0) ? 1 : 0;
  // The open segment alone had nothing but its headers.
  EXPECT_GE(served, sealed.size() - geometry.blocks_per_segment());
}

// Where a crash left them, the copy that hides an older one may be evicted before it.
TEST(NvmeRecoveryOfAManager, OnceATierIsOpenItsStaleCopiesAreMarkedOnTheDisk) {
  TierManagerOptions options = Options(2);
  options.reuse = true;
  const NvmeGeometry geometry = *PlanNvmeGeometry(options.nvme_bytes, kBlockBytes);
  HandWrittenTier tier(geometry, /*epoch=*/99);
  EncodeSuperblock({.geometry = geometry, .block_bytes = kBlockBytes, .epoch = 99},
                   tier.Pages(0, 1));
  tier.Seal({{.segment = 3, .generation = 1, .use = 1, .blocks = {{1, Retention::kOwned}, {2}}}});
  tier.Seal({{.segment = 0, .generation = 7, .use = 7, .blocks = {{1}, {3}}}});
  ManifestRecord record = tier.Record(0, /*use=*/7, /*version=*/1);
  record.dead[0] = true;  // block 1
  tier.WriteManifest(record, 1);
  const std::unique_ptr<TierManager> manager = *Open(options, tier.device());
  EXPECT_FALSE(manager->Find(HandWrittenTier::Id(1)).has_value());
  const SegmentSurvey survey = tier.SurveyOf(3);
  const uint64_t first = tier.Start(3) + geometry.group_pages(0);
  const uint64_t second = tier.Start(3) + geometry.group_pages(1);
  EXPECT_TRUE(survey.Dead(geometry, {.generation = 1}, first));
  EXPECT_FALSE(survey.Dead(geometry, {.generation = 1}, second));
}

TEST(NvmeRecoveryOfAManager, ADamagedCopyOfTheManifestUndoesNoDropAndIsReported) {
  TierManagerOptions options = Options(2);
  const NvmeGeometry geometry = *PlanNvmeGeometry(options.nvme_bytes, kBlockBytes);
  for (uint32_t copy = 0; copy < kManifestCopies; ++copy) {
    const std::unique_ptr<MemoryDevice> device = MakeDevice(options);
    options.reuse = false;
    std::unique_ptr<TierManager> manager = *Open(options, *device);
    for (uint64_t number = 0; number < 4; ++number) ASSERT_TRUE(Put(*manager, number, 0));
    ASSERT_TRUE(manager->Flush().ok());
    for (uint64_t number = 0; number < 3; ++number) Drop(*manager, number);
    ASSERT_TRUE(manager->Flush().ok());
    manager.reset();
    options.reuse = true;
    for (uint32_t segment = 0; segment < geometry.segment_count; ++segment) {
      std::byte* const bytes =
          device->bytes().data() + geometry.ManifestPage(SegmentIndex{segment}, copy) * kPageBytes;
      if (std::memcmp(bytes + 8, "TRRGMANF", 8) == 0) bytes[40] ^= std::byte{1};
    }
    manager = *Open(options, *device);
    EXPECT_GT(manager->Stats().recovery.damaged_manifests, 0u);
    for (uint64_t number = 0; number < 3; ++number) {
      EXPECT_EQ(manager->Find(TestId(number)), std::nullopt) << number;
    }
    EXPECT_TRUE(Serves(*manager, 3, 0));
  }
}

TEST(NvmeRecoveryOfAManager, ADeviceThatCannotBeReadHoldsNothing) {
  constexpr NvmeGeometry kGeometry = {.pages_per_block = 2,
                                      .segment_pages = 16,
                                      .segment_count = 4,
                                      .group_blocks = 2,
                                      .header_pages = 1,
                                      .footer_pages = 1,
                                      .manifest_pages = 1};
  const std::unique_ptr<MemoryDevice> device = *MemoryDevice::Create(
      {.size_bytes = kGeometry.total_bytes(),
       .depth = 64,
       .transfer_hook = [](const IoRequest&, uint64_t) -> int64_t { return -EIO; }});
  PlacementOptions options;
  options.block_bytes = kGeometry.pages_per_block * kPageBytes;
  options.slots = {0, 0, 8};
  options.nvme = kGeometry;
  const std::unique_ptr<Placement> placement = *Placement::Create(options);
  NvmeReader reader([&](absl::Span<IoRequest* const> batch) { return RunBatch(*device, batch); });
  const absl::StatusOr<RecoveryReport> report = RecoverNvme(
      reader, [](const KeyName&) { return kNoKey; }, *placement);
  ASSERT_TRUE(report.ok()) << report.status();
  EXPECT_EQ(placement->directory().size(), 0u);
  EXPECT_EQ(placement->nvme()->free_segments(), kGeometry.segment_count);
}

TEST(NvmeRecoveryOfAManager, ATierOfAnotherModelOnTheDeviceIsRefused) {
  TierManagerOptions options = Options(0);
  const std::unique_ptr<MemoryDevice> device = MakeDevice(options);
  ASSERT_TRUE(Open(options, *device).ok());
  options.reuse = true;
  ASSERT_TRUE(Open(options, *device).ok());
  options.model_fingerprint = 5;
  EXPECT_EQ(Open(options, *device).status().code(), absl::StatusCode::kInvalidArgument);
}

}  // namespace
}  // namespace terrace
