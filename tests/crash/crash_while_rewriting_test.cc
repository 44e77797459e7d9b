// A tier whose segments all hold owned blocks, and whose process or power dies while one of them is
// being drained, again and again.
// TERRACE_CRASH_ROUNDS sets how many rounds there are, TERRACE_CRASH_SEED which one is the first.

#include <cstdio>
#include <memory>
#include <random>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "gtest/gtest.h"
#include "tests/support/environment.h"
#include "tests/support/power_cut_device.h"
#include "tests/support/tier_fixture.h"
#include "tiers/tier_manager.h"

namespace terrace {
namespace {

constexpr uint64_t kDefaultRounds = 40;
constexpr size_t kBlock = size_t{8} << 10;
constexpr uint64_t kPutsAfter = 300;  // more than half of the tier

class Round {
 public:
  explicit Round(uint64_t seed) : random_(seed) {
    options_ = TestTierOptions(kBlock, {.dram_slots = 8, .nvme_bytes = uint64_t{4} << 20});
    options_.reuse = true;
    options_.max_write_amplification = 1 + static_cast<double>(Draw(2));
    const NvmeGeometry geometry = *PlanNvmeGeometry(options_.nvme_bytes, kBlock);
    blocks_per_segment_ = geometry.blocks_per_segment();
    // As many as may be rewritten, where each has a group of its own, or half of them.
    const uint64_t most = geometry.data_pages() / geometry.group_pages(1) - 1;
    owned_in_segment_ = most / 2 + Draw(most - most / 2 + 1);
    most_owned_ = geometry.segment_count * owned_in_segment_;
    disk_ = std::make_shared<PowerCutDisk>(
        PowerCutDiskOptions{.size_bytes = geometry.total_bytes(), .seed = random_()});
  }

  void Run() {
    ASSERT_GT(blocks_per_segment_, 4u);
    for (uint64_t crashes = 1 + Draw(3); crashes > 0 && !testing::Test::HasFailure(); --crashes) {
      Open();
      if (Draw(2) == 0) DropSome();
      CrashWhileRewriting();
      Open();
      CheckFlushed();
      if (Draw(2) == 0) DropSome();
      GoOn();
      manager_.reset();
    }
    Open();
    CheckFlushed();
  }
  uint64_t rewritten() const { return rewritten_; }

 private:
  uint64_t Draw(uint64_t below) { return random_() % below; }

  void Open() {
    TierManager::Parts parts;
    parts.device = std::make_unique<PowerCutDevice>(disk_);
    absl::StatusOr<std::unique_ptr<TierManager>> opened =
        TierManager::Open(options_, std::move(parts));
    ASSERT_TRUE(opened.ok()) << opened.status();
    manager_ = *std::move(opened);
  }

  absl::Status Put(Retention retention) {
    const uint64_t number = next_++;
    const std::vector<std::byte> bytes = BlockBytes(TestId(number), kBlock);
    const BlockWrite write = {.id = TestId(number), .bytes = bytes, .retention = retention};
    const absl::Status status = manager_->Put({&write, 1});
    if (retention != Retention::kOwned) return status;
    put_owned_.insert(number);
    if (status.ok()) owned_.insert(number);
    return status;
  }

  absl::Status Flush() {
    const absl::Status status = manager_->Flush();
    if (!status.ok()) return status;
    flushed_ = owned_;
    gone_.insert(dropped_.begin(), dropped_.end());
    dropped_.clear();
    return status;
  }

  // Some owned blocks in every segment, until segments are rewritten; then the crash comes.
  void CrashWhileRewriting() {
    const uint64_t start = manager_->Stats().placement.rewritten_blocks;
    bool counting = false;
    for (uint64_t i = 0; !disk_->off() && i < 4000; ++i) {
      const bool owned =
          next_ % blocks_per_segment_ < owned_in_segment_ && owned_.size() < most_owned_;
      static_cast<void>(Put(owned ? Retention::kOwned : Retention::kCached));
      if (Draw(40) == 0) static_cast<void>(Flush());
      if (counting || manager_->Stats().placement.rewritten_blocks == start) continue;
      counting = true;
      disk_->CutAfter(1 + Draw(200), random_(), Loss());
    }
    rewritten_ += manager_->Stats().placement.rewritten_blocks;
    disk_->Cut(random_(), Loss());
    manager_.reset();
    disk_->Restore();
  }
  PowerCutDisk::Loss Loss() {
    return Draw(2) == 0 ? PowerCutDisk::Loss::kNothing : PowerCutDisk::Loss::kWhatIsNotDurable;
  }

  // Of those that may be there from before the crash the test knows no more than what was flushed.
  void CheckFlushed() {
    for (const uint64_t number : flushed_) {
      const BlockRead read = {.id = TestId(number)};
      const absl::StatusOr<Lease> lease = manager_->Fetch({&read, 1});
      ASSERT_TRUE(lease.ok()) << lease.status();
      ASSERT_EQ((*lease)[0].outcome, BlockOutcome::kServed) << "block " << number;
      std::vector<std::byte> bytes(kBlock);
      ASSERT_TRUE(manager_->CopyToHost((*lease)[0], absl::MakeSpan(bytes)).ok());
      EXPECT_EQ(bytes, BlockBytes(TestId(number), kBlock)) << "block " << number;
    }
    for (const uint64_t number : gone_) {
      EXPECT_FALSE(manager_->Find(TestId(number)).has_value())
          << "block " << number << " was dropped for good";
    }
    // Drops that no flush followed are forgotten, and so are puts.
    dropped_.clear();
    owned_ = flushed_;
    for (const uint64_t number : put_owned_) {
      if (!gone_.contains(number) && manager_->Find(TestId(number))) owned_.insert(number);
    }
  }

  // Every id of some stretch, or every other one.
  void DropSome() {
    if (next_ == 0) return;
    const uint64_t count = 1 + Draw(next_);
    const uint64_t first = Draw(next_ - count + 1);
    const bool others = Draw(2) == 0;  // all but these
    for (uint64_t number = 0; number < next_; ++number) {
      if ((number - first < count) == others) continue;
      const BlockId id = TestId(number);
      manager_->Drop({&id, 1});
      owned_.erase(number);
      flushed_.erase(number);
      dropped_.insert(number);
    }
    if (Draw(4) != 0) {
      const absl::Status status = Flush();
      EXPECT_TRUE(status.ok()) << status;
    }
  }

  void GoOn() {
    for (uint64_t i = 0; i < kPutsAfter; ++i) {
      const absl::Status put = Put(Retention::kCached);
      ASSERT_TRUE(put.ok()) << put << ", " << i << " puts after the crash";
    }
    const absl::Status flushed = Flush();
    EXPECT_TRUE(flushed.ok()) << flushed;
  }

  std::mt19937_64 random_;
  TierManagerOptions options_;
  uint64_t blocks_per_segment_ = 0;
  uint64_t most_owned_ = 0;
  uint64_t owned_in_segment_ = 0;
  std::shared_ptr<PowerCutDisk> disk_;
  std::unique_ptr<TierManager> manager_;
  uint64_t next_ = 0;
  uint64_t rewritten_ = 0;
  std::set<uint64_t> put_owned_;
  std::set<uint64_t> owned_;    // of these, those that are there
  std::set<uint64_t> flushed_;  // of these, those that a flush promised
  std::set<uint64_t> dropped_;  // since the last flush
  std::set<uint64_t> gone_;     // for good
};

TEST(CrashWhileRewriting, TheTierGoesOnAndKeepsItsPromises) {
  const uint64_t rounds = EnvironmentNumber("TERRACE_CRASH_ROUNDS", kDefaultRounds);
  const uint64_t first = EnvironmentNumber("TERRACE_CRASH_SEED", 1);
  uint64_t rewritten = 0;
  for (uint64_t seed = first; seed < first + rounds && !HasFailure(); ++seed) {
    SCOPED_TRACE(absl::StrCat("TERRACE_CRASH_SEED=", seed));
    Round round(seed);
    round.Run();
    rewritten += round.rewritten();
  }
  std::printf("%s\n", absl::StrCat(rewritten, " blocks rewritten").c_str());
  EXPECT_GT(rewritten, 0);
}

}  // namespace
}  // namespace terrace
