// Every combination of tiers, down to one slot each, against a model that knows what was put.

#include <algorithm>
#include <cerrno>
#include <map>
#include <optional>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "gtest/gtest.h"
#include "tests/support/tier_fixture.h"
#include "tiers/tier_manager.h"

namespace terrace {
namespace {

constexpr size_t kBlock = 8 << 10;
constexpr uint64_t kIds = 24;
constexpr int kSteps = 600;

struct Combination {
  const char* name;
  TierSizes sizes;
};

// What is known of a block that was put and not dropped since.
struct Known {
  uint64_t version = 0;
  bool owned = false;
};

class Model {
 public:
  // On a faulty disk some reads have a flipped bit, and writes fail from the middle of the run on.
  // Blocks may be lost then; wrong bytes are as impossible as ever.
  Model(const TierSizes& sizes, uint64_t seed, bool faulty)
      : sizes_(sizes), faulty_(faulty), tier_(kBlock, sizes), random_(seed) {
    if (!faulty_) return;
    tier_.device().FlipBitWhen([reads = 0](const IoRequest&) mutable { return ++reads % 7 == 0; });
  }

  void Run() {
    for (int step = 0; step < kSteps && !testing::Test::HasFatalFailure(); ++step) {
      if (faulty_ && step == kSteps / 2) {
        tier_.device().FailWhen([](const IoRequest& request) {
          return request.op == IoOp::kWrite ? std::optional<int>(EIO) : std::nullopt;
        });
      }
      Step();
      if (step % 16 == 0) CheckCounts();
    }
    leases_.clear();
    if (!faulty_) CheckOwned();
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
        return Drop();
      case 5:
        return SetRetention();
      case 6:
        return Flush();
      case 7:
        tier_->Prefetch(TestIds(Draw(kIds), 1 + Draw(3)), Target());
        return;
      case 8:
        return FetchPart();
      case 9:
        return FetchAsync();
      case 10:
        return Hold();
      default:
        return Fetch();
    }
  }

  std::optional<Tier> Target() {
    const uint64_t choice = Draw(4);
    if (choice == 0 && sizes_.hbm_slots > 0) return Tier::kHbm;
    if (choice == 1 && sizes_.dram_slots > 0) return Tier::kDram;
    return std::nullopt;
  }

  void Put() {
    const uint64_t number = Draw(kIds);
    const uint64_t version = faulty_ ? 0 : Draw(1000);  // so that what is lost may be put again
    // Few enough owned blocks for an NVMe tier to hold, too many for the smallest.
    const bool owned = Draw(6) == 0;
    const bool there = tier_.Find(number).has_value();
    const absl::Status status =
        tier_.Put(number, owned ? Retention::kOwned : Retention::kCached, version);
    if (!status.ok()) {
      ASSERT_EQ(status.code(), absl::StatusCode::kResourceExhausted) << status;
      ASSERT_TRUE(faulty_ || !there);
      known_.erase(number);
      return;
    }
    if (!there) known_[number] = {.version = version};
    known_[number].owned |= owned;
  }

  void Drop() {
    const uint64_t number = Draw(kIds);
    tier_.Drop(number);
    known_.erase(number);
    ASSERT_EQ(tier_.Find(number), std::nullopt);
  }

  void SetRetention() {
    const uint64_t number = Draw(kIds);
    const bool owned = Draw(3) == 0;
    const BlockId id = TestId(number);
    const bool there = tier_.Find(number).has_value();
    tier_->SetRetention({&id, 1}, owned ? Retention::kOwned : Retention::kCached);
    if (there) known_[number].owned = owned;
  }

  void Flush() {
    const absl::Status status = tier_->Flush();
    if (sizes_.nvme_bytes == 0) {
      ASSERT_EQ(status.code(), absl::StatusCode::kFailedPrecondition);
    } else if (status.ok()) {
      for (const auto& [number, block] : known_) {
        ASSERT_TRUE(faulty_ || !block.owned || tier_.OnNvme(number)) << number;
      }
    } else {
      ASSERT_TRUE(faulty_ || absl::IsResourceExhausted(status)) << status;
    }
  }

  void CheckBlock(const LeasedBlock& block, uint64_t number, size_t offset = 0) {
    const auto found = known_.find(number);
    if (block.outcome == BlockOutcome::kServed) {
      ASSERT_NE(found, known_.end()) << number << " was never put, or dropped";
      ASSERT_TRUE(tier_.Right(block, number, found->second.version, offset)) << number;
      return;
    }
    if (faulty_) return;
    ASSERT_EQ(block.outcome, BlockOutcome::kMiss);
    ASSERT_TRUE(found == known_.end() || !found->second.owned) << number << " was owned";
  }

  // A lease of random blocks, checked; nullopt when there was no room.
  std::optional<Lease> FetchSome() {
    const uint64_t most = std::max<uint64_t>(1, tier_->max_fetch_blocks());
    std::vector<uint64_t> numbers(1 + Draw(std::min<uint64_t>(most, 4)));
    for (uint64_t& number : numbers) number = Draw(kIds);
    absl::StatusOr<Lease> lease = tier_.FetchMany(numbers, Target());
    if (!lease.ok()) {
      EXPECT_EQ(lease.status().code(), absl::StatusCode::kResourceExhausted) << lease.status();
      return std::nullopt;
    }
    for (size_t i = 0; i < numbers.size(); ++i) CheckBlock((*lease)[i], numbers[i]);
    return *std::move(lease);
  }

  void Fetch() { FetchSome(); }

  // Keeps a lease for a while, so that the other steps work around it.
  void Hold() {
    if (leases_.size() < 2 && Draw(2) == 0) {
      std::optional<Lease> lease = FetchSome();
      if (lease) leases_.push_back(*std::move(lease));
    } else {
      leases_.clear();
    }
  }

  void FetchPart() {
    const uint64_t number = Draw(kIds);
    const uint32_t offset = kPageBytes * static_cast<uint32_t>(Draw(kBlock / kPageBytes));
    const BlockRead part = {.id = TestId(number), .offset = offset, .bytes = kPageBytes};
    const absl::StatusOr<Lease> lease = tier_->Fetch({&part, 1}, {.target = Target()});
    if (lease.ok()) return CheckBlock((*lease)[0], number, offset);
    ASSERT_EQ(lease.status().code(), absl::StatusCode::kResourceExhausted) << lease.status();
  }

  void FetchAsync() {
    const uint64_t number = Draw(kIds);
    absl::StatusOr<Ticket> ticket = tier_.FetchAsync(number, Target());
    if (!ticket.ok()) {
      ASSERT_TRUE(absl::IsUnavailable(ticket.status()) ||
                  absl::IsResourceExhausted(ticket.status()))
          << ticket.status();
      return;
    }
    if (Draw(3) == 0) return;  // cancelled
    const Lease lease = ticket->Wait();
    CheckBlock(lease[0], number);
  }

  void CheckCounts() {
    const TierStats stats = tier_.Stats();
    uint64_t found = 0;
    for (uint64_t number = 0; number < kIds; ++number) found += tier_.Find(number) ? 1 : 0;
    uint64_t counted = 0;
    for (const TierStats::PerTier& per_tier : stats.tiers) counted += per_tier.blocks;
    ASSERT_LE(stats.tiers[0].blocks, sizes_.hbm_slots);
    ASSERT_LE(stats.tiers[1].blocks, sizes_.dram_slots);
    ASSERT_LE(stats.nvme_peak_bytes, sizes_.nvme_bytes);
    if (faulty_) return;  // prefetches lose blocks in between
    ASSERT_EQ(stats.placement.lost_blocks, 0);
    // Prefetches and cancelled fetches only move blocks, they do not make or take them.
    ASSERT_EQ(counted, found);
  }

  // Whatever is owned is somewhere, and served wherever there is room to put it.
  void CheckOwned() {
    for (const auto& [number, block] : known_) {
      if (!block.owned) continue;
      ASSERT_NE(tier_.Find(number), std::nullopt) << number;
      const BlockRead whole = {.id = TestId(number)};
      const absl::StatusOr<Lease> lease = tier_->Fetch({&whole, 1});
      if (lease.ok()) {
        ASSERT_TRUE(tier_.Right((*lease)[0], number, block.version)) << number;
      } else {
        ASSERT_EQ(lease.status().code(), absl::StatusCode::kResourceExhausted);
      }
    }
  }

  const TierSizes sizes_;
  const bool faulty_;
  TestTier tier_;
  std::mt19937_64 random_;
  std::map<uint64_t, Known> known_;
  std::vector<Lease> leases_;
};

class TierManagerCombination : public testing::TestWithParam<Combination> {};

TEST_P(TierManagerCombination, ServesWhatWasPutAndKeepsWhatIsOwned) {
  for (uint64_t seed = 1; seed <= 12; ++seed) {
    SCOPED_TRACE(absl::StrCat(GetParam().name, ", seed ", seed));
    Model(GetParam().sizes, seed, /*faulty=*/false).Run();
    if (HasFatalFailure()) return;
  }
}

class TierManagerFaultyCombination : public TierManagerCombination {};

TEST_P(TierManagerFaultyCombination, ServesNoWrongByte) {
  for (uint64_t seed = 1; seed <= 4; ++seed) {
    SCOPED_TRACE(absl::StrCat(GetParam().name, ", seed ", seed));
    Model(GetParam().sizes, seed, /*faulty=*/true).Run();
    if (HasFatalFailure()) return;
  }
}

constexpr uint64_t kMedium = 1 << 20;

std::vector<Combination> Combinations() {
  const uint64_t smallest = TinyNvmeBytes(kBlock, 2);
  const uint64_t small = TinyNvmeBytes(kBlock, 9);
  return {
      {"Hbm1", {.hbm_slots = 1}},
      {"Hbm5", {.hbm_slots = 5}},
      {"Dram1", {.dram_slots = 1}},
      {"Dram5", {.dram_slots = 5}},
      {"NvmeSmallest", {.nvme_bytes = smallest}},
      {"NvmeSmall", {.nvme_bytes = small}},
      {"NvmeMedium", {.nvme_bytes = kMedium}},
      {"Hbm1Dram1", {.hbm_slots = 1, .dram_slots = 1}},
      {"Hbm2Dram5", {.hbm_slots = 2, .dram_slots = 5}},
      {"Hbm5Dram2", {.hbm_slots = 5, .dram_slots = 2}},
      {"Hbm1NvmeSmallest", {.hbm_slots = 1, .nvme_bytes = smallest}},
      {"Hbm3NvmeSmall", {.hbm_slots = 3, .nvme_bytes = small}},
      {"Hbm3NvmeMedium", {.hbm_slots = 3, .nvme_bytes = kMedium}},
      {"Dram1NvmeSmallest", {.dram_slots = 1, .nvme_bytes = smallest}},
      {"Dram3NvmeSmall", {.dram_slots = 3, .nvme_bytes = small}},
      {"Dram3NvmeMedium", {.dram_slots = 3, .nvme_bytes = kMedium}},
      {"Hbm1Dram1NvmeSmallest", {.hbm_slots = 1, .dram_slots = 1, .nvme_bytes = smallest}},
      {"Hbm2Dram3NvmeSmall", {.hbm_slots = 2, .dram_slots = 3, .nvme_bytes = small}},
      {"Hbm4Dram2NvmeMedium", {.hbm_slots = 4, .dram_slots = 2, .nvme_bytes = kMedium}},
  };
}

std::string NameOf(const testing::TestParamInfo<Combination>& info) { return info.param.name; }

std::vector<Combination> CombinationsWithNvme() {
  std::vector<Combination> combinations = Combinations();
  std::erase_if(combinations,
                [](const Combination& combination) { return combination.sizes.nvme_bytes == 0; });
  return combinations;
}

INSTANTIATE_TEST_SUITE_P(Tiers, TierManagerCombination, testing::ValuesIn(Combinations()), NameOf);
INSTANTIATE_TEST_SUITE_P(Tiers, TierManagerFaultyCombination,
                         testing::ValuesIn(CombinationsWithNvme()), NameOf);

}  // namespace
}  // namespace terrace
