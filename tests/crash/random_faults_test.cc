// Random calls from several threads while the disk fails in every way it can. No call crashes or
// hangs, no wrong byte is served, and the counts add up.
// TERRACE_CRASH_OPERATIONS sets how many calls there are, TERRACE_CRASH_SEED the first seed.

#include <algorithm>
#include <array>
#include <atomic>
#include <cerrno>
#include <cstdio>
#include <memory>
#include <optional>
#include <random>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/clock.h"
#include "gtest/gtest.h"
#include "io/memory_device.h"
#include "tests/support/environment.h"
#include "tests/support/faulty_device.h"
#include "tests/support/promise_model.h"
#include "tests/support/tier_fixture.h"
#include "tests/support/tier_worker.h"
#include "tiers/tier_manager.h"

namespace terrace {
namespace {

constexpr uint64_t kDefaultOperations = 40'000;
constexpr uint64_t kMostOperations = 4000;  // of one manager
constexpr uint64_t kOperationsAfter = 300;  // once the tier takes no writes
constexpr int kManagers = 6;                // that follow each other on one disk

// How often the requests of one manager go wrong.
struct Faults {
  explicit Faults(uint64_t seed) : random(seed) {
    constexpr std::array<double, 5> kShares = {0, 0, 0.001, 0.01, 0.1};
    const auto draw = [&] { return kShares[random() % kShares.size()]; };
    read_error = draw();
    flip = draw();
    // A write or sync that fails for good ends the writes of the tier.
    write_error = draw();
    no_space = draw() / 100;
    sync_error = draw() / 10;
    tear = draw();
    hold = 2 * draw();
    outcome = random() % 2 == 0 ? TornWrite::kReportsSuccess : TornWrite::kReportsError;
    dies_after = random() % 8 == 0 ? random() % 2000 : UINT64_MAX;
  }

  // Under the device's lock.
  bool Chance(double share) { return std::bernoulli_distribution(share)(random); }
  std::optional<int> Error(const IoRequest& request) {
    if (dies_after == 0) return EIO;
    --dies_after;
    switch (request.op) {
      case IoOp::kRead:
        return Chance(read_error) ? std::optional<int>(EIO) : std::nullopt;
      case IoOp::kWrite:
        if (Chance(no_space)) return ENOSPC;
        return Chance(write_error) ? std::optional<int>(EIO) : std::nullopt;
      case IoOp::kSync:
        return Chance(sync_error) ? std::optional<int>(EIO) : std::nullopt;
    }
    return std::nullopt;
  }

  std::mt19937_64 random;
  double read_error = 0;
  double flip = 0;
  double write_error = 0;
  double no_space = 0;
  double sync_error = 0;
  double tear = 0;
  double hold = 0;
  TornWrite outcome = TornWrite::kReportsSuccess;
  uint64_t dies_after = UINT64_MAX;  // requests; then every one fails
};

// Lets held requests go some time after they were held.
class Releaser {
 public:
  explicit Releaser(FaultyDevice& device) : device_(device), thread_([this] { Run(); }) {}
  ~Releaser() {
    {
      absl::MutexLock lock(&mu_);
      done_ = true;
    }
    thread_.join();
    device_.ReleaseAll();
  }

  // From within the predicate that holds.
  void Held() {
    absl::MutexLock lock(&mu_);
    ++held_;
  }

 private:
  void Run() {
    const auto due = [this]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) { return held_ > 0 || done_; };
    for (;;) {
      size_t count = 0;
      {
        absl::MutexLock lock(&mu_);
        mu_.Await(absl::Condition(&due));
        if (done_) return;
        count = std::exchange(held_, 0);
      }
      for (int i = 0; i < 20; ++i) std::this_thread::yield();
      device_.Release(count);
    }
  }

  FaultyDevice& device_;
  absl::Mutex mu_;
  size_t held_ ABSL_GUARDED_BY(mu_) = 0;
  bool done_ ABSL_GUARDED_BY(mu_) = false;
  std::thread thread_;
};

struct Totals {
  uint64_t operations = 0;
  uint64_t managers = 0;
  uint64_t refused_opens = 0;
  std::array<uint64_t, 5> health = {};
  uint64_t failed = 0;
  uint64_t flipped = 0;
  uint64_t torn = 0;
  uint64_t mended = 0;
  uint64_t lost = 0;
};

// Which counts must agree exactly; the others can only be bounded.
struct Exactness {
  bool errors = false;  // recovery counts none
  bool flips = false;   // some may be in a gap between blocks, and some reads find torn writes
  bool tries = false;   // one may have been for several blocks
  bool blocks = false;  // none was dropped
};

// Tiers that follow each other on one disk.
class FaultyDisk {
 public:
  FaultyDisk(uint64_t seed, Totals& totals) : random_(seed), totals_(totals) {
    const size_t block_bytes = kPageBytes << Draw(3);
    const uint64_t nvme_bytes = Draw(2) == 0 ? TinyNvmeBytes(block_bytes, 5 + Draw(8))
                                             : 32 * (4 * block_bytes + 6 * kPageBytes);
    const uint64_t hbm_slots = Draw(2) * (4 + Draw(5));
    const uint64_t dram_slots = Draw(3) == 0 ? 0 : 4 + Draw(7);
    options_ = TestTierOptions(block_bytes, {hbm_slots, dram_slots, nvme_bytes});
    options_.max_write_amplification = 1 + static_cast<double>(Draw(5)) / 2;
    if (Draw(2) == 0) options_.coalesce_read_bytes = TierManagerOptions().coalesce_read_bytes;
    if (hbm_slots > 0) targets_.push_back(Tier::kHbm);
    if (dram_slots > 0) targets_.push_back(Tier::kDram);
    const NvmeGeometry geometry = *PlanNvmeGeometry(nvme_bytes, block_bytes);
    const uint64_t fit =
        uint64_t{geometry.segment_count} * geometry.blocks_per_segment() + hbm_slots + dram_slots;
    model_ = std::make_unique<PromiseModel>(std::max<uint64_t>(6, fit * (3 + Draw(10)) / 8));
    MemoryDeviceOptions memory;
    memory.size_bytes = geometry.total_bytes();
    memory_ = *MemoryDevice::Create(std::move(memory));
  }

  // The life of one manager; the first starts empty, others may go on from what is there.
  void RunManager(bool first) {
    options_.reuse = !first && Draw(2) == 0;
    Faults faults(random_());
    auto device = std::make_unique<FaultyDevice>(*memory_->Clone(), random_());
    // Shares the faults, and outlives what the manager owns.
    const std::unique_ptr<BlockDevice> clone = *device->Clone();
    FaultyDevice& control = static_cast<FaultyDevice&>(*clone);
    Releaser releaser(control);
    const bool faults_at_open = options_.reuse && Draw(4) == 0;
    if (faults_at_open) Arm(control, releaser, faults);
    TierManager::Parts parts;
    parts.device = std::move(device);
    absl::StatusOr<std::unique_ptr<TierManager>> opened =
        TierManager::Open(options_, std::move(parts));
    ASSERT_TRUE(opened.ok() || faults_at_open) << opened.status();
    lied_ = options_.reuse && (lied_ || faults_at_open);
    if (!opened.ok()) {
      ++totals_.refused_opens;
      return;
    }
    TierManager& manager = **opened;
    TakeOver(manager);
    if (!faults_at_open) Arm(control, releaser, faults);
    const bool drops = Draw(2) == 0;
    Work(manager, drops);
    const bool joined = options_.coalesce_read_bytes > 0;
    lied_ |= control.torn_count() > 0 && faults.outcome == TornWrite::kReportsSuccess;
    CheckCounts(manager, control, faults,
                {.errors = !faults_at_open,
                 .flips = !faults_at_open && !joined && !lied_,
                 .tries = !joined,
                 .blocks = !drops});
    ++totals_.managers;
  }

 private:
  uint64_t Draw(uint64_t below) { return random_() % below; }

  // From now on requests go wrong. Each predicate runs under the lock of the device, which guards
  // `faults`.
  static void Arm(FaultyDevice& device, Releaser& releaser, Faults& faults) {
    device.FailWhen([&faults](const IoRequest& request) { return faults.Error(request); });
    device.FlipBitWhen([&faults](const IoRequest&) { return faults.Chance(faults.flip); });
    device.TearWriteWhen([&faults](const IoRequest&) { return faults.Chance(faults.tear); },
                         faults.outcome);
    device.HoldWhen([&faults, &releaser](const IoRequest&) {
      const bool held = faults.Chance(faults.hold);
      if (held) releaser.Held();
      return held;
    });
  }

  // What a new manager holds has right bytes; and nothing that was dropped for good, unless the
  // disk has lied about a write.
  void TakeOver(TierManager& manager) {
    if (!options_.reuse) return model_->StartEmpty();
    model_->BreakPromises();
    for (uint64_t number = 0; number < model_->block_count(); ++number) {
      const BlockRead read = {.id = TestId(number)};
      const absl::StatusOr<Lease> lease = manager.Fetch({&read, 1});
      std::optional<uint64_t> version;
      if (lease.ok() && (*lease)[0].outcome == BlockOutcome::kServed) {
        std::vector<std::byte> bytes((*lease)[0].bytes);
        EXPECT_TRUE(manager.CopyToHost((*lease)[0], absl::MakeSpan(bytes)).ok());
        version = VersionOf(number, bytes, 0, model_->newest_version(number));
        EXPECT_TRUE(version.has_value()) << "block " << number << " has bytes of no version";
      }
      // Which retention it has cannot be seen, and need not be known here.
      const std::string wrong = model_->Check(number, version, Retention::kCached, 0);
      if (!lied_) {
        EXPECT_EQ(wrong, "");
      }
      model_->Recovered(number, version, Retention::kCached);
    }
  }

  void Work(TierManager& manager, bool drops) {
    const uint64_t thread_count = 1 + Draw(3);
    const uint64_t operations = (100 + Draw(kMostOperations)) / thread_count;
    std::vector<std::unique_ptr<TierWorker>> workers;
    for (uint64_t i = 0; i < thread_count; ++i) {
      TierWorkerOptions options;
      options.manager = &manager;
      options.model = model_.get();
      options.seed = random_();
      options.first = i;
      options.stride = thread_count;
      options.targets = targets_;
      options.drops = drops;
      options.disk_is_well = [] { return false; };
      workers.push_back(std::make_unique<TierWorker>(options));
    }
    std::atomic<uint64_t> steps = 0;
    const auto work = [&](TierWorker& worker) {
      uint64_t left = operations;
      for (bool stopped = false; left > 0; --left) {
        worker.Step();
        ++steps;
        if (stopped || left % 16 != 0 || manager.Stats().nvme_accepts_writes) continue;
        stopped = true;
        left = std::min(left, kOperationsAfter / thread_count);
      }
      worker.Release();
    };
    std::vector<std::thread> threads;
    for (const auto& worker : workers) threads.emplace_back(work, std::ref(*worker));
    for (std::thread& thread : threads) thread.join();
    totals_.operations += steps;
  }

  // The counts of one manager, and of its device, side by side.
  struct Sums {
    uint64_t device_errors = 0;
    uint64_t failed = 0;
    uint64_t unmended_tries = 0;
    uint64_t entered = 0;  // blocks that came in
    uint64_t known = 0;    // those that are here, and that went other than by a drop
    TierStats stats;
  };
  static Sums Sum(TierManager& manager, const FaultyDevice& device, const Faults& faults) {
    Sums sums;
    sums.stats = manager.Stats();
    const NvmeFaults& met = sums.stats.nvme_faults;
    const PlacementStats& placement = sums.stats.placement;
    sums.device_errors = device.failed_count();
    if (faults.outcome == TornWrite::kReportsError) sums.device_errors += device.torn_count();
    sums.failed = met.failed_reads + met.failed_writes + met.failed_syncs;
    sums.unmended_tries = met.failed_reads + met.corrupt_reads - met.mended_reads;
    sums.entered = sums.stats.recovery.blocks + placement.puts;
    sums.known = placement.evicted_blocks + placement.lost_blocks;
    for (const TierStats::PerTier& tier : sums.stats.tiers) sums.known += tier.blocks;
    return sums;
  }

  // Once the transfers that nobody waited for have ended, the counts of a manager add up and agree
  // with those of its device.
  void CheckCounts(TierManager& manager, const FaultyDevice& device, const Faults& faults,
                   const Exactness& exact) {
    const absl::Time deadline = absl::Now() + absl::Seconds(10);
    Sums sums;
    const auto add_up = [&] {
      sums = Sum(manager, device, faults);
      return (!exact.errors || sums.failed == sums.device_errors) &&
             (!exact.flips || sums.stats.nvme_faults.corrupt_reads == device.flipped_count()) &&
             (!exact.tries || sums.unmended_tries % 2 == 0) &&
             (exact.blocks ? sums.known == sums.entered : sums.known <= sums.entered);
    };
    YieldUntil([&] { return add_up() || absl::Now() > deadline; });
    if (exact.errors) {
      EXPECT_EQ(sums.failed, sums.device_errors);
    }
    if (exact.flips) {
      EXPECT_EQ(sums.stats.nvme_faults.corrupt_reads, device.flipped_count());
    }
    // A try that did not bring a block is followed by one that did, or is one of two.
    if (exact.tries) {
      EXPECT_EQ(sums.unmended_tries % 2, 0);
    }
    if (exact.blocks) {
      EXPECT_EQ(sums.known, sums.entered);
    }
    EXPECT_LE(sums.known, sums.entered);
    CheckHealth(sums.stats);
    ++totals_.health[static_cast<size_t>(sums.stats.nvme_health)];
    totals_.failed += device.failed_count();
    totals_.flipped += device.flipped_count();
    totals_.torn += device.torn_count();
    totals_.mended += sums.stats.nvme_faults.mended_reads;
    totals_.lost += sums.stats.placement.lost_blocks;
  }

  static void CheckHealth(const TierStats& stats) {
    const NvmeFaults& met = stats.nvme_faults;
    const bool faults = met.failed_reads + met.corrupt_reads + met.unopened_blocks +
                            met.failed_writes + met.failed_syncs >
                        0;
    const RecoveryReport& found = stats.recovery;
    const bool damage = found.damaged_pages + found.damaged_manifests + found.missing_bytes > 0;
    EXPECT_EQ(stats.nvme_error.ok(), stats.nvme_accepts_writes) << stats.nvme_error;
    switch (stats.nvme_health) {
      case NvmeHealth::kAbsent:
        ADD_FAILURE() << "there is an NVMe tier";
        break;
      case NvmeHealth::kHealthy:
        EXPECT_TRUE(stats.nvme_accepts_writes && !faults && !damage);
        break;
      case NvmeHealth::kDegraded:
        EXPECT_TRUE(stats.nvme_accepts_writes && (faults || damage));
        break;
      case NvmeHealth::kReadOnly:
        EXPECT_FALSE(stats.nvme_accepts_writes);
        EXPECT_GT(met.failed_writes + met.failed_syncs, 0);
        break;
      case NvmeHealth::kOutOfService:
        EXPECT_FALSE(stats.nvme_accepts_writes);
        EXPECT_GT(met.failed_reads, 64);
        EXPECT_FALSE(stats.nvme_read_error.ok());
        break;
    }
  }

  std::mt19937_64 random_;
  Totals& totals_;
  TierManagerOptions options_;
  std::vector<Tier> targets_;
  std::unique_ptr<PromiseModel> model_;
  std::unique_ptr<BlockDevice> memory_;
  bool lied_ = false;  // about what is on the disk now
};

TEST(RandomFaults, NeverServeAWrongByteAndEveryOneIsCounted) {
  const uint64_t operations = EnvironmentNumber("TERRACE_CRASH_OPERATIONS", kDefaultOperations);
  Totals totals;
  for (uint64_t seed = EnvironmentNumber("TERRACE_CRASH_SEED", 1);
       totals.operations < operations && !HasFailure(); ++seed) {
    SCOPED_TRACE(absl::StrCat("TERRACE_CRASH_SEED=", seed));
    FaultyDisk disk(seed, totals);
    for (int i = 0; i < kManagers && !HasFailure(); ++i) disk.RunManager(/*first=*/i == 0);
    if (HasFailure()) ADD_FAILURE() << "on this disk";  // perhaps in a thread without a trace
  }
  std::string text = absl::StrCat(totals.operations, " calls, ", totals.managers, " managers, ",
                                  totals.refused_opens, " not opened;");
  for (size_t i = 0; i < totals.health.size(); ++i) {
    absl::StrAppend(&text, " ", totals.health[i], " ", NvmeHealthName(NvmeHealth(i)));
  }
  absl::StrAppend(&text, "; requests: ", totals.failed, " failed, ", totals.flipped, " flipped, ",
                  totals.torn, " torn; blocks: ", totals.mended, " mended, ", totals.lost, " lost");
  std::printf("%s\n", text.c_str());
}

}  // namespace
}  // namespace terrace
