// What is hit and where blocks end up follows from the order of the calls alone: not from the speed
// of the disk, and not from the engine.

#include <array>
#include <atomic>
#include <memory>
#include <optional>
#include <random>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "gtest/gtest.h"
#include "tests/support/temp_dir.h"
#include "tests/support/tier_fixture.h"
#include "tiers/tier_manager.h"

namespace terrace {
namespace {

constexpr uint64_t kIds = 64;
constexpr int kSteps = 500;

// Everything that a caller can see of a run.
struct Record {
  std::vector<std::string> steps;
  std::vector<std::optional<Tier>> found;  // by id
  std::array<uint64_t, kTierCount> hits = {};
  uint64_t misses = 0;
  uint64_t evicted_blocks = 0;
  uint64_t evicted_segments = 0;
  uint64_t write_groups = 0;

  friend bool operator==(const Record&, const Record&) = default;
};

class Caller {
 public:
  Caller(TierManager& manager, uint64_t seed) : manager_(manager), random_(seed) {}

  Record Run() {
    Record record;
    for (int step = 0; step < kSteps; ++step) record.steps.push_back(Step());
    for (uint64_t number = 0; number < kIds; ++number) {
      record.found.push_back(manager_.Find(TestId(number)));
    }
    const PlacementStats stats = manager_.Stats().placement;
    record.hits = stats.hits;
    record.misses = stats.misses;
    record.evicted_blocks = stats.evicted_blocks;
    record.evicted_segments = stats.evicted_segments;
    record.write_groups = stats.write_groups;
    return record;
  }

 private:
  uint64_t Draw(uint64_t below) { return random_() % below; }

  std::string Step() {
    const BlockId id = TestId(Draw(kIds));
    switch (Draw(20)) {
      case 0:
        manager_.Drop({&id, 1});
        return "drop";
      case 1:
        manager_.SetRetention({&id, 1}, Draw(4) == 0 ? Retention::kOwned : Retention::kCached);
        return "retention";
      case 2:
        return Draw(4) == 0 ? absl::StrCat("flush ", manager_.Flush().code()) : "";
      case 3:
      case 4:
      case 5:
      case 6:
      case 7:
      case 8:
        return Put(id);
      case 9: {
        const BlockRead part = {.id = id, .offset = kPageBytes, .bytes = kPageBytes};
        return Fetch({part});
      }
      default: {
        std::vector<BlockRead> reads = {{.id = id}};
        while (reads.size() < manager_.max_fetch_blocks() && Draw(2) == 0) {
          reads.push_back({.id = TestId(Draw(kIds))});
        }
        return Fetch(reads);
      }
    }
  }

  std::string Put(const BlockId& id) {
    const std::vector<std::byte> bytes(manager_.block_bytes(), static_cast<std::byte>(id.low));
    const Retention retention = Draw(16) == 0 ? Retention::kOwned : Retention::kCached;
    const BlockWrite write = {.id = id, .bytes = bytes, .retention = retention};
    return absl::StrCat("put ", id.low, " ", manager_.Put({&write, 1}).code());
  }

  std::string Fetch(const std::vector<BlockRead>& reads) {
    const absl::StatusOr<Lease> lease = manager_.Fetch(reads);
    std::string text = absl::StrCat("fetch ", lease.status().code());
    for (size_t i = 0; lease.ok() && i < lease->size(); ++i) {
      const LeasedBlock& block = (*lease)[i];
      const bool served = block.outcome == BlockOutcome::kServed;
      absl::StrAppend(&text, " ", reads[i].id.low, served ? TierName(block.hit_tier) : "-");
      EXPECT_EQ(served, block.outcome != BlockOutcome::kMiss);
      if (served) {
        EXPECT_EQ(block.data[block.bytes - 1], static_cast<std::byte>(reads[i].id.low));
      }
    }
    return text;
  }

  TierManager& manager_;
  std::mt19937_64 random_;
};

// A disk of which every write, and every read with `slow_reads`, waits until another thread lets it
// go on, at no particular time.
Record RunOnSlowDisk(size_t block_bytes, const TierSizes& sizes, uint64_t seed, bool slow_reads) {
  TestTier tier(block_bytes, sizes);
  tier.device().HoldWhen([slow_reads](const IoRequest& request) {
    return request.op == IoOp::kWrite || (slow_reads && request.op == IoOp::kRead);
  });
  std::atomic<bool> done = false;
  std::thread releaser([&] {
    std::mt19937_64 random(seed);
    while (!done) {
      for (uint64_t yields = random() % 64; yields > 0; --yields) std::this_thread::yield();
      tier.device().Release(1 + random() % 3);
    }
    tier.device().ReleaseAll();
  });
  const Record record = Caller(tier.manager(), seed).Run();
  done = true;
  releaser.join();
  return record;
}

Record RunOnMemory(size_t block_bytes, const TierSizes& sizes, uint64_t seed) {
  TestTier tier(block_bytes, sizes);
  return Caller(tier.manager(), seed).Run();
}

// nullopt where the kernel has no such engine.
std::optional<Record> RunOnFile(size_t block_bytes, const TierSizes& sizes, uint64_t seed,
                                IoEngine engine) {
  const TempDir dir;
  TierManagerOptions options = TestTierOptions(block_bytes, sizes);
  options.nvme_dir = dir.path();
  options.engine = engine;
  absl::StatusOr<std::unique_ptr<TierManager>> manager = TierManager::Open(options);
  if (absl::IsUnavailable(manager.status())) return std::nullopt;
  EXPECT_TRUE(manager.ok()) << manager.status();
  return Caller(**manager, seed).Run();
}

void ExpectSame(const Record& wanted, const Record& got, absl::string_view what) {
  for (size_t step = 0; step < wanted.steps.size(); ++step) {
    ASSERT_EQ(wanted.steps[step], got.steps[step]) << what << ", step " << step;
  }
  EXPECT_EQ(wanted.hits, got.hits) << what;
  EXPECT_EQ(wanted.misses, got.misses) << what;
  EXPECT_EQ(wanted.found, got.found) << what;
  EXPECT_EQ(wanted.evicted_blocks, got.evicted_blocks) << what;
  EXPECT_EQ(wanted.evicted_segments, got.evicted_segments) << what;
  EXPECT_EQ(wanted.write_groups, got.write_groups) << what;
}

struct Setting {
  const char* name;
  size_t block_bytes;
  TierSizes sizes;
};

class TierManagerDeterminism : public testing::TestWithParam<Setting> {};

TEST_P(TierManagerDeterminism, ASlowDiskHitsTheSameBlocks) {
  const auto& [name, block_bytes, sizes] = GetParam();
  for (uint64_t seed = 1; seed <= 6; ++seed) {
    SCOPED_TRACE(absl::StrCat(name, ", seed ", seed));
    const Record wanted = RunOnMemory(block_bytes, sizes, seed);
    ExpectSame(wanted, RunOnSlowDisk(block_bytes, sizes, seed, false), "slow writes");
    ExpectSame(wanted, RunOnSlowDisk(block_bytes, sizes, seed, true), "slow reads and writes");
    if (HasFailure()) return;
  }
}

TEST_P(TierManagerDeterminism, EveryEngineHitsTheSameBlocks) {
  const auto& [name, block_bytes, sizes] = GetParam();
  const uint64_t seed = 7;
  SCOPED_TRACE(absl::StrCat(name, ", seed ", seed));
  const Record wanted = RunOnMemory(block_bytes, sizes, seed);
  const std::optional<Record> threads = RunOnFile(block_bytes, sizes, seed, IoEngine::kThreads);
  ASSERT_TRUE(threads.has_value());
  ExpectSame(wanted, *threads, "threads");
  const std::optional<Record> uring = RunOnFile(block_bytes, sizes, seed, IoEngine::kIoUring);
  if (!uring) GTEST_SKIP() << "this kernel has no io_uring";
  ExpectSame(wanted, *uring, "io_uring");
}

constexpr size_t kSmall = 8 << 10;
constexpr size_t kLarge = 256 << 10;  // four blocks to a write group

INSTANTIATE_TEST_SUITE_P(
    Tiers, TierManagerDeterminism,
    testing::Values(
        Setting{"DramTinyNvme", kSmall, {.dram_slots = 6, .nvme_bytes = TinyNvmeBytes(kSmall, 12)}},
        Setting{
            "DramSmallestNvme", kSmall, {.dram_slots = 3, .nvme_bytes = TinyNvmeBytes(kSmall, 2)}},
        Setting{"AllTinyNvme",
                kSmall,
                {.hbm_slots = 4, .dram_slots = 6, .nvme_bytes = TinyNvmeBytes(kSmall, 20)}},
        Setting{"HbmNvme", kSmall, {.hbm_slots = 6, .nvme_bytes = TinyNvmeBytes(kSmall, 20)}},
        Setting{"Nvme", kSmall, {.nvme_bytes = TinyNvmeBytes(kSmall, 20)}},
        Setting{"AheadOfEviction",
                kLarge,
                {.hbm_slots = 4, .dram_slots = 20, .nvme_bytes = 40 * kLarge}}),
    [](const testing::TestParamInfo<Setting>& info) { return std::string(info.param.name); });

}  // namespace
}  // namespace terrace
