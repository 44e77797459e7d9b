// Several threads at once, over blocks that they share. Meant for ThreadSanitizer as well.

#include <atomic>
#include <optional>
#include <random>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "gtest/gtest.h"
#include "tests/support/tier_fixture.h"
#include "tiers/tier_manager.h"

namespace terrace {
namespace {

constexpr size_t kBlock = 8 << 10;
constexpr uint64_t kIds = 40;
constexpr int kThreads = 4;
constexpr int kSteps = 400;

struct Scenario {
  const char* name;
  TierSizes sizes;
  bool faulty_reads = false;
};

// What one thread does: random calls, with every byte that is served compared. A block always has
// the bytes of its id, so it does not matter who put it.
class Worker {
 public:
  Worker(TestTier& tier, const Scenario& scenario, uint64_t seed)
      : tier_(tier), scenario_(scenario), random_(seed) {}

  void Run() {
    for (int step = 0; step < kSteps; ++step) Step();
    leases_.clear();
  }

 private:
  uint64_t Draw(uint64_t below) { return random_() % below; }

  void Step() {
    switch (Draw(16)) {
      case 0:
      case 1:
      case 2:
      case 3:
        return Put();
      case 4:
        return tier_.Drop(Draw(kIds));
      case 5: {
        const BlockId id = TestId(Draw(kIds));
        return tier_->SetRetention({&id, 1}, Draw(3) == 0 ? Retention::kOwned : Retention::kCached);
      }
      case 6:
        return Flush();
      case 7:
        tier_->Prefetch(TestIds(Draw(kIds), 1 + Draw(4)), Target());
        return;
      case 8:
      case 9:
        return FetchAsync();
      case 10:
        return Look();
      default:
        return Fetch();
    }
  }

  std::optional<Tier> Target() {
    const uint64_t choice = Draw(4);
    if (choice == 0 && scenario_.sizes.hbm_slots > 0) return Tier::kHbm;
    if (choice == 1 && scenario_.sizes.dram_slots > 0) return Tier::kDram;
    return std::nullopt;
  }

  void Put() {
    const Retention retention = Draw(8) == 0 ? Retention::kOwned : Retention::kCached;
    const absl::Status status = tier_.Put(Draw(kIds), retention);
    EXPECT_TRUE(status.ok() || absl::IsResourceExhausted(status)) << status;
  }

  void Flush() {
    if (Draw(4) != 0) return;
    const absl::Status status = tier_->Flush();
    EXPECT_TRUE(status.ok() || absl::IsFailedPrecondition(status) ||
                absl::IsResourceExhausted(status))
        << status;
  }

  void Check(const LeasedBlock& block, uint64_t number, size_t offset = 0) {
    if (block.outcome == BlockOutcome::kServed) {
      EXPECT_TRUE(tier_.Right(block, number, 0, offset)) << number;
    } else if (!scenario_.faulty_reads) {
      EXPECT_EQ(block.outcome, BlockOutcome::kMiss);
    }
  }

  void Fetch() {
    std::vector<uint64_t> numbers(1 + Draw(3));
    for (uint64_t& number : numbers) number = Draw(kIds);
    absl::StatusOr<Lease> lease = tier_.FetchMany(numbers, Target());
    if (!lease.ok()) {
      EXPECT_TRUE(absl::IsResourceExhausted(lease.status())) << lease.status();
      leases_.clear();  // mine may be what is in the way
      return;
    }
    for (size_t i = 0; i < numbers.size(); ++i) Check((*lease)[i], numbers[i]);
    if (Draw(6) == 0) leases_.push_back(*std::move(lease));
    if (leases_.size() > 2) leases_.clear();
  }

  void FetchAsync() {
    const uint64_t number = Draw(kIds);
    const BlockRead part = {.id = TestId(number), .offset = kPageBytes};
    const absl::Time deadline = Draw(4) == 0 ? absl::InfinitePast() : absl::InfiniteFuture();
    const bool whole = Draw(2) == 0;
    absl::StatusOr<Ticket> ticket =
        whole ? tier_.FetchAsync(number, Target(), deadline)
              : tier_->FetchAsync({&part, 1}, {.target = Target(), .deadline = deadline});
    if (!ticket.ok()) {
      EXPECT_TRUE(absl::IsResourceExhausted(ticket.status()) ||
                  absl::IsUnavailable(ticket.status()))
          << ticket.status();
      return;
    }
    if (Draw(3) == 0) return;  // cancelled
    ticket->Done();
    const Lease lease = ticket->Wait();
    const bool late = lease[0].outcome == BlockOutcome::kLate && deadline == absl::InfinitePast();
    if (!late) Check(lease[0], number, whole ? 0 : kPageBytes);
  }

  void Look() {
    const uint64_t number = Draw(kIds);
    static_cast<void>(tier_.Find(number));
    static_cast<void>(tier_.OnNvme(number));
    static_cast<void>(tier_->CountLeading(TestIds(number, 4)));
    const TierStats stats = tier_.Stats();
    EXPECT_LE(stats.tiers[0].blocks, scenario_.sizes.hbm_slots);
    EXPECT_LE(stats.tiers[1].blocks, scenario_.sizes.dram_slots);
  }

  TestTier& tier_;
  const Scenario& scenario_;
  std::mt19937_64 random_;
  std::vector<Lease> leases_;
};

class TierManagerThreads : public testing::TestWithParam<Scenario> {};

TEST_P(TierManagerThreads, ShareBlocksWithoutAWrongByte) {
  for (uint64_t seed = 1; seed <= 2; ++seed) {
    SCOPED_TRACE(absl::StrCat(GetParam().name, ", seed ", seed));
    TestTier tier(kBlock, GetParam().sizes);
    std::atomic<uint64_t> reads = 0;
    if (GetParam().faulty_reads) {
      tier.device().FlipBitWhen([&](const IoRequest&) { return ++reads % 5 == 0; });
    }
    std::vector<std::thread> threads;
    for (int i = 0; i < kThreads; ++i) {
      threads.emplace_back([&, i] { Worker(tier, GetParam(), 100 * seed + i).Run(); });
    }
    for (std::thread& thread : threads) thread.join();
    // All pins are gone: the whole fast tier can be taken at once.
    std::vector<uint64_t> all;
    for (uint64_t number = 0; number < kIds; ++number) tier.Drop(number);
    const uint64_t most = tier->max_fetch_blocks();
    for (uint64_t i = 0; i < most; ++i) {
      ASSERT_TRUE(tier.Put(1000 + i).ok());
      all.push_back(1000 + i);
    }
    const absl::StatusOr<Lease> lease = tier.FetchMany(all);
    ASSERT_TRUE(lease.ok()) << lease.status();
    if (GetParam().faulty_reads) continue;
    EXPECT_EQ(tier.Stats().placement.lost_blocks, 0);
  }
}

INSTANTIATE_TEST_SUITE_P(
    Tiers, TierManagerThreads,
    testing::Values(
        Scenario{"Dram", {.dram_slots = 16}},
        Scenario{"HbmDram", {.hbm_slots = 12, .dram_slots = 12}},
        Scenario{"Nvme", {.nvme_bytes = 1 << 20}},
        Scenario{"HbmNvme", {.hbm_slots = 12, .nvme_bytes = 1 << 20}},
        Scenario{"DramNvme", {.dram_slots = 14, .nvme_bytes = 1 << 20}},
        Scenario{"DramTinyNvme", {.dram_slots = 14, .nvme_bytes = TinyNvmeBytes(kBlock, 6)}},
        Scenario{"All", {.hbm_slots = 12, .dram_slots = 12, .nvme_bytes = 1 << 20}},
        Scenario{"AllTinyNvme",
                 {.hbm_slots = 12, .dram_slots = 6, .nvme_bytes = TinyNvmeBytes(kBlock, 8)}},
        Scenario{"AllFaulty",
                 {.hbm_slots = 12, .dram_slots = 12, .nvme_bytes = 1 << 20},
                 /*faulty_reads=*/true}),
    [](const testing::TestParamInfo<Scenario>& info) { return std::string(info.param.name); });

TEST(TierManagerSharedRoom, ThreadsDoNotUndoEachOthersEvictionsForEver) {
  // NVMe holds one block besides the owned ones, so writing a block down makes another one dirty.
  TestTier tier(kBlock, {.dram_slots = 3, .nvme_bytes = TinyNvmeBytes(kBlock, 2)});
  std::vector<std::thread> threads;
  for (int i = 0; i < kThreads; ++i) {
    threads.emplace_back([&, i] {
      std::mt19937_64 random(i);
      for (int step = 0; step < 1000; ++step) {
        const std::vector<uint64_t> numbers = {random() % 6, random() % 6};
        const absl::StatusOr<Lease> lease = tier.FetchMany(numbers);
        EXPECT_TRUE(lease.ok() || absl::IsResourceExhausted(lease.status())) << lease.status();
        const absl::Status put = tier.Put(numbers[0]);
        EXPECT_TRUE(put.ok() || absl::IsResourceExhausted(put)) << put;
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
}

// The NVMe tier is large enough that a thread which lags behind still finds its blocks.
TEST(TierManagerSharedBlock, EachBlockIsPutAndServedToAll) {
  TestTier tier(kBlock, {.hbm_slots = 4, .dram_slots = 4, .nvme_bytes = 8 << 20});
  std::vector<std::thread> threads;
  for (int i = 0; i < kThreads; ++i) {
    threads.emplace_back([&] {
      for (uint64_t number = 0; number < 100; ++number) {
        EXPECT_TRUE(tier.Put(number).ok());
        EXPECT_TRUE(tier.Serves(number)) << number;
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(tier.Stats().placement.misses, 0);
}

}  // namespace
}  // namespace terrace
