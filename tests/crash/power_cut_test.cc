// A tier whose disk loses power at a random request, over and over, against what it promised.
// TERRACE_CRASH_ROUNDS sets how many rounds there are, TERRACE_CRASH_SEED which one is the first.

#include <algorithm>
#include <cstdio>
#include <map>
#include <memory>
#include <optional>
#include <random>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "gtest/gtest.h"
#include "tests/support/environment.h"
#include "tests/support/power_cut_device.h"
#include "tests/support/promise_model.h"
#include "tests/support/tier_fixture.h"
#include "tests/support/tier_worker.h"
#include "tiers/nvme_recovery.h"
#include "tiers/tier_file.h"
#include "tiers/tier_manager.h"

namespace terrace {
namespace {

constexpr uint64_t kDefaultRounds = 100;
constexpr uint64_t kSpace = 7;
// A tier on which no cut falls ends its calls all the same.
constexpr int kMostSteps = 600;

// Sums over all rounds.
struct Totals {
  uint64_t cuts = 0;
  uint64_t evicted_segments = 0;
  uint64_t rewritten_blocks = 0;
  uint64_t torn_groups = 0;
  PromiseModel::Counts checked;
};

class Round {
 public:
  Round(uint64_t seed, Totals& totals) : random_(seed), totals_(totals) {}

  void Run() {
    DrawTier();
    // Often several processes in a row die before they have come far.
    const bool hasty = Draw(3) == 0;
    for (uint64_t cut = 2 + Draw(hasty ? 12 : 3); cut > 0; --cut) {
      Open(/*afresh=*/Draw(12) == 0);
      Verify();
      if (testing::Test::HasFailure()) break;
      disk_->CutAfter(hasty && Draw(4) != 0 ? 1 + Draw(12) : DrawRequests(), random_(), Loss());
      Work();
      End();
    }
    if (!testing::Test::HasFailure()) {
      Open(/*afresh=*/false);
      Verify();
    }
    manager_.reset();
    const PromiseModel::Counts counts = model_->counts();
    totals_.checked.kept += counts.kept;
    totals_.checked.retention += counts.retention;
    totals_.checked.gone += counts.gone;
  }

 private:
  uint64_t Draw(uint64_t below) { return random_() % below; }
  PowerCutDisk::Loss Loss() {
    return Draw(4) == 0 ? PowerCutDisk::Loss::kNothing : PowerCutDisk::Loss::kWhatIsNotDurable;
  }

  // As often one of ten as one of hundreds.
  uint64_t DrawRequests() { return 1 + Draw(uint64_t{1} << (2 + Draw(8))); }

  void DrawTier() {
    const size_t block_bytes = kPageBytes << Draw(3);
    const bool tiny = Draw(3) != 0;
    // 32 segments of a few blocks each, or a few segments of one.
    const uint64_t nvme_bytes =
        tiny ? TinyNvmeBytes(block_bytes, 5 + Draw(8))
             : kPageBytes * kSuperblockPages +
                   32 * ((2 + Draw(6)) * block_bytes + (4 + Draw(3)) * kPageBytes);
    const uint64_t hbm_slots = Draw(2) * (2 + Draw(5));
    const uint64_t dram_slots = Draw(3) == 0 ? 0 : 2 + Draw(7);
    options_ = TestTierOptions(block_bytes, {hbm_slots, dram_slots, nvme_bytes});
    options_.max_write_amplification = 1 + static_cast<double>(Draw(5)) / 2;
    if (Draw(2) == 0) options_.coalesce_read_bytes = TierManagerOptions().coalesce_read_bytes;
    if (Draw(8) == 0) options_.nvme_write_bytes_per_day = block_bytes * (1 + Draw(100)) * 24;
    const NvmeGeometry geometry = *PlanNvmeGeometry(nvme_bytes, block_bytes);
    const uint64_t fit =
        uint64_t{geometry.segment_count} * geometry.blocks_per_segment() + hbm_slots + dram_slots;
    model_ = std::make_unique<PromiseModel>(std::max<uint64_t>(6, fit * (3 + Draw(10)) / 8));
    disk_ = std::make_shared<PowerCutDisk>(
        PowerCutDiskOptions{.size_bytes = geometry.total_bytes(), .seed = random_()});
    if (hbm_slots > 0) targets_.push_back(Tier::kHbm);
    if (dram_slots > 0) targets_.push_back(Tier::kDram);
    encrypted_ = Draw(4) == 0;
    threads_ = 1 + Draw(2);
    owned_share_ = static_cast<double>(Draw(4)) / 8;
    flush_share_ = Draw(2) == 0 ? 0.02 : 0.15;
    drop_share_ = Draw(3) == 0 ? 0.2 : 0;
  }

  // Opens the tier, sometimes not at the first try because the power fails while it opens.
  void Open(bool afresh) {
    for (uint64_t cuts = Draw(3) == 0 ? 1 + Draw(2) : 0;; --cuts) {
      // No request of Verify is to be the last one.
      disk_->CutAfter(cuts > 0 ? 1 + Draw(8) : UINT64_MAX, random_());
      retention_ = ReadRetention();
      options_.reuse = !afresh;
      if (afresh) model_->BreakPromises();
      TierManager::Parts parts;
      parts.device = std::make_unique<PowerCutDevice>(disk_);
      absl::StatusOr<std::unique_ptr<TierManager>> opened =
          TierManager::Open(options_, std::move(parts));
      if (cuts == 0) {
        ASSERT_TRUE(opened.ok()) << opened.status();
        manager_ = *std::move(opened);
        break;
      }
      if (opened.ok()) opened->reset();
      disk_->Cut(random_());
      disk_->Restore();
      ++totals_.cuts;
      afresh = false;
    }
    if (afresh) {
      model_->StartEmpty();
      retention_.clear();
    }
    totals_.torn_groups += manager_->Stats().recovery.torn_groups;
  }

  // What recovery makes of the disk as it is: the retention of every block that it finds.
  std::map<uint64_t, Retention> ReadRetention() const {
    const std::vector<std::byte> image = disk_->current();
    const auto read = [&image](absl::Span<IoRequest* const> batch) {
      for (IoRequest* request : batch) {
        const std::byte* from = image.data() + request->offset;
        for (const iovec& buffer : request->buffers) {
          std::copy_n(from, buffer.iov_len, static_cast<std::byte*>(buffer.iov_base));
          from += buffer.iov_len;
        }
        Advance(*request, static_cast<int64_t>(request->length()));
      }
      return absl::OkStatus();
    };
    std::map<uint64_t, Retention> retention;
    const auto superblock = ReadSuperblock(read, "the disk");
    if (!superblock.ok() || !*superblock) return retention;
    PlacementOptions options;
    options.block_bytes = options_.block_bytes;
    options.slots.fill(1);
    options.nvme = (*superblock)->geometry;
    options.epoch = (*superblock)->epoch;
    const std::unique_ptr<Placement> placement = *Placement::Create(options);
    NvmeReader reader(read);
    const auto any_key = [](const KeyName&) { return KeyNumber{1}; };
    EXPECT_TRUE(RecoverNvme(reader, any_key, *placement).ok());
    placement->directory().Visit([&](EntryIndex entry) {
      const BlockEntry& block = placement->directory()[entry];
      retention[block.id.low] = block.retention;
    });
    return retention;
  }

  CipherKey Key() const {
    std::vector<std::byte> bytes(CipherKey::kBytes, std::byte{42});
    return *CipherKey::Create(bytes);
  }

  // Compares every block with what was promised of it, and goes on from what is there.
  void Verify() {
    if (manager_ == nullptr) return;
    if (encrypted_) {
      for (uint64_t number = 0; number < model_->block_count(); number += 3) {
        EXPECT_FALSE(manager_->Find(TestId(number)).has_value()) << "without its key";
      }
      ASSERT_TRUE(manager_->AddKey(kSpace, Key()).ok());
    }
    for (uint64_t number = 0; number < model_->block_count(); ++number) {
      const std::optional<uint64_t> version = Served(number);
      const auto found = retention_.find(number);
      EXPECT_EQ(version.has_value(), found != retention_.end()) << "block " << number;
      const Retention retention = found == retention_.end() ? Retention::kCached : found->second;
      EXPECT_EQ(model_->Check(number, version, retention, evicted_segments_), "");
      model_->Recovered(number, version, retention);
    }
    EXPECT_EQ(manager_->Stats().placement.lost_blocks, 0);
  }

  std::optional<uint64_t> Served(uint64_t number) {
    const BlockRead read = {.id = TestId(number)};
    const absl::StatusOr<Lease> lease = manager_->Fetch({&read, 1});
    EXPECT_TRUE(lease.ok()) << lease.status();
    if (!lease.ok() || (*lease)[0].outcome != BlockOutcome::kServed) return std::nullopt;
    std::vector<std::byte> bytes((*lease)[0].bytes);
    EXPECT_TRUE(manager_->CopyToHost((*lease)[0], absl::MakeSpan(bytes)).ok());
    const std::optional<uint64_t> version =
        VersionOf(number, bytes, 0, model_->newest_version(number));
    EXPECT_TRUE(version.has_value()) << "block " << number << " has bytes of no version";
    return version;
  }

  // Calls until the power fails, and a few more.
  void Work() {
    std::vector<std::unique_ptr<TierWorker>> workers;
    std::vector<std::thread> threads;
    for (uint64_t i = 0; i < threads_; ++i) {
      TierWorkerOptions options;
      options.manager = manager_.get();
      options.model = model_.get();
      options.seed = random_();
      options.first = i;
      options.stride = threads_;
      options.targets = targets_;
      if (encrypted_) options.space = kSpace;
      options.drop_share = drop_share_;
      options.owned_share = owned_share_;
      options.flush_share = flush_share_;
      options.disk_is_well = [this] { return !disk_->off(); };
      workers.push_back(std::make_unique<TierWorker>(options));
    }
    const int steps = kMostSteps / static_cast<int>(threads_);
    const int more = static_cast<int>(Draw(2) * Draw(30));
    const auto work = [&](TierWorker& worker) {
      for (int step = 0; step < steps && !disk_->off(); ++step) worker.Step();
      for (int step = 0; step < more; ++step) worker.Step();
      worker.Release();
    };
    for (size_t i = 1; i < workers.size(); ++i) threads.emplace_back(work, std::ref(*workers[i]));
    work(*workers[0]);
    for (std::thread& thread : threads) thread.join();
  }

  void End() {
    disk_->Cut(random_());
    const PlacementStats stats = manager_->Stats().placement;
    evicted_segments_ = stats.evicted_segments;
    totals_.evicted_segments += stats.evicted_segments;
    totals_.rewritten_blocks += stats.rewritten_blocks;
    ++totals_.cuts;
    manager_.reset();
    disk_->Restore();
  }

  std::mt19937_64 random_;
  Totals& totals_;
  TierManagerOptions options_;
  std::vector<Tier> targets_;
  bool encrypted_ = false;
  uint64_t threads_ = 1;
  double owned_share_ = 0;
  double flush_share_ = 0;
  double drop_share_ = 0;
  std::unique_ptr<PromiseModel> model_;
  std::shared_ptr<PowerCutDisk> disk_;
  std::map<uint64_t, Retention> retention_;  // of what is on the disk when the tier is opened
  uint64_t evicted_segments_ = 0;            // by the last manager
  std::unique_ptr<TierManager> manager_;
};

// The segment that an evicted block was in stays on the disk until what is kept of it has moved.
TEST(PowerCut, ABlockThatWasEvictedAndThenDroppedStaysGoneAfterAFlush) {
  constexpr size_t kBlock = 4 << 10;
  constexpr uint64_t kEvicted = 1;
  TierManagerOptions options = TestTierOptions(kBlock, {.dram_slots = 2, .nvme_bytes = 1 << 20});
  options.reuse = true;
  const NvmeGeometry geometry = *PlanNvmeGeometry(options.nvme_bytes, kBlock);
  // Else a segment with an owned block is never evicted.
  ASSERT_GE(geometry.data_pages(), 2 * geometry.group_pages(1));
  for (uint64_t seed = 1; seed <= 60; ++seed) {
    SCOPED_TRACE(absl::StrCat("seed ", seed));
    const auto disk = std::make_shared<PowerCutDisk>(
        PowerCutDiskOptions{.size_bytes = geometry.total_bytes(), .seed = seed});
    const auto open = [&] {
      TierManager::Parts parts;
      parts.device = std::make_unique<PowerCutDevice>(disk);
      return *TierManager::Open(options, std::move(parts));
    };
    std::unique_ptr<TierManager> manager = open();
    const auto put = [&](uint64_t number, Retention retention) {
      const std::vector<std::byte> bytes = BlockBytes(TestId(number), kBlock);
      const BlockWrite write = {.id = TestId(number), .bytes = bytes, .retention = retention};
      ASSERT_TRUE(manager->Put({&write, 1}).ok());
    };
    put(0, Retention::kOwned);
    put(kEvicted, Retention::kCached);
    ASSERT_TRUE(manager->Flush().ok());
    const BlockId evicted = TestId(kEvicted);
    for (uint64_t number = 2; manager->Find(evicted); ++number) {
      put(number, Retention::kCached);
      ASSERT_LT(number, 1000) << "it is never evicted";
    }
    manager->Drop({&evicted, 1});
    ASSERT_TRUE(manager->Flush().ok());
    disk->Cut(seed);
    manager.reset();
    disk->Restore();
    manager = open();
    EXPECT_FALSE(manager->Find(evicted).has_value());
    EXPECT_TRUE(manager->Find(TestId(0)).has_value());
  }
}

// The process before may have written the groups that would have come next, and they may be there
// without the first of them. Whoever gives out their places and generations again must not see them
// come back.
TEST(PowerCut, WhatALostGroupLeftBehindItNeverFollowsAnotherGroup) {
  constexpr size_t kBlock = 4 << 10;
  constexpr uint64_t kBlocks = 8;
  TierManagerOptions options = TestTierOptions(kBlock, {.dram_slots = 2, .nvme_bytes = 2 << 20});
  options.reuse = true;
  const NvmeGeometry geometry = *PlanNvmeGeometry(options.nvme_bytes, kBlock);
  for (uint64_t seed = 1; seed <= 200; ++seed) {
    SCOPED_TRACE(absl::StrCat("seed ", seed));
    const auto disk = std::make_shared<PowerCutDisk>(
        PowerCutDiskOptions{.size_bytes = geometry.total_bytes(), .seed = seed});
    std::unique_ptr<TierManager> manager;
    const auto crash_and_open = [&] {
      disk->Cut(seed);
      manager.reset();
      disk->Restore();
      TierManager::Parts parts;
      parts.device = std::make_unique<PowerCutDevice>(disk);
      manager = *TierManager::Open(options, std::move(parts));
    };
    const auto put = [&](uint64_t number, uint64_t version) {
      const std::vector<std::byte> bytes = BlockBytes(TestId(number), kBlock, version);
      const BlockWrite write = {
          .id = TestId(number), .bytes = bytes, .retention = Retention::kOwned};
      ASSERT_TRUE(manager->Put({&write, 1}).ok());
    };
    crash_and_open();
    if (seed % 2 == 0) {  // else they come first in their segment
      put(0, 1);
      ASSERT_TRUE(manager->Flush().ok());
      crash_and_open();
    }
    // More than memory holds, so most of them are written, a group each.
    for (uint64_t number = 1; number <= kBlocks; ++number) put(number, 1);
    crash_and_open();
    for (uint64_t number = 1; number <= kBlocks; ++number) {
      const BlockId id = TestId(number);
      manager->Drop({&id, 1});
    }
    put(1, 2);
    ASSERT_TRUE(manager->Flush().ok());
    crash_and_open();
    const BlockRead read = {.id = TestId(1)};
    const absl::StatusOr<Lease> lease = manager->Fetch({&read, 1});
    ASSERT_TRUE(lease.ok()) << lease.status();
    ASSERT_EQ((*lease)[0].outcome, BlockOutcome::kServed);
    std::vector<std::byte> bytes(kBlock);
    ASSERT_TRUE(manager->CopyToHost((*lease)[0], absl::MakeSpan(bytes)).ok());
    EXPECT_EQ(bytes, BlockBytes(TestId(1), kBlock, 2));
    for (uint64_t number = 2; number <= kBlocks; ++number) {
      EXPECT_FALSE(manager->Find(TestId(number)).has_value()) << number;
    }
  }
}

TEST(PowerCut, LosesNothingThatWasFlushedAndServesNoWrongByte) {
  const uint64_t rounds = EnvironmentNumber("TERRACE_CRASH_ROUNDS", kDefaultRounds);
  const uint64_t first = EnvironmentNumber("TERRACE_CRASH_SEED", 1);
  Totals totals;
  for (uint64_t seed = first; seed < first + rounds; ++seed) {
    SCOPED_TRACE(absl::StrCat("TERRACE_CRASH_SEED=", seed));
    Round(seed, totals).Run();
    if (HasFailure()) {
      ADD_FAILURE() << "in this round";  // perhaps in another thread, which has no trace
      break;
    }
  }
  const std::string text = absl::StrCat(
      totals.cuts, " cuts; ", totals.evicted_segments, " segments evicted, ",
      totals.rewritten_blocks, " blocks rewritten, ", totals.torn_groups, " torn groups; checked ",
      totals.checked.kept, " blocks kept, ", totals.checked.retention, " retentions, ",
      totals.checked.gone, " blocks dropped");
  std::printf("%s\n", text.c_str());
  EXPECT_GT(totals.checked.kept, 0);
  EXPECT_GT(totals.checked.gone, 0);
}

}  // namespace
}  // namespace terrace
