// What fsck says of a tier whose process was killed, or whose power was cut.

#include <algorithm>
#include <functional>
#include <memory>
#include <random>
#include <set>
#include <utility>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/support/power_cut_device.h"
#include "tests/tiers/check_tier.h"

namespace terrace {
namespace {

using testing::HasSubstr;

// Puts, drops and flushes until `done` or an error. Returns the owned blocks that a Flush promised.
std::set<uint64_t> RunWorkload(TierManager& manager, std::mt19937_64& random,
                               const std::function<bool()>& done) {
  constexpr uint64_t kOwnedEvery = 50;
  std::set<uint64_t> flushed;
  for (uint64_t number = 0; !done(); ++number) {
    const std::vector<std::byte> bytes = BlockBytes(TestId(number), kBlock);
    const bool owned = number % kOwnedEvery == 0;
    const BlockWrite write = {.id = TestId(number),
                              .bytes = bytes,
                              .retention = owned ? Retention::kOwned : Retention::kCached};
    if (!manager.Put({&write, 1}).ok()) break;
    if (number > 20 && random() % 4 == 0) {
      const uint64_t dropped = number - random() % 20;
      if (dropped % kOwnedEvery != 0) manager.Drop(TestIds(dropped, 1));
    }
    if (random() % 16 == 0) {
      if (!manager.Flush().ok()) break;
      for (uint64_t i = 0; i <= number; i += kOwnedEvery) flushed.insert(i);
    }
  }
  return flushed;
}

class NvmeCheckCrash : public NvmeCheckTest {
 protected:
  std::shared_ptr<PowerCutDisk> MakeDisk(uint64_t seed) const {
    return std::make_shared<PowerCutDisk>(
        PowerCutDiskOptions{.size_bytes = disk_->bytes().size(), .seed = seed});
  }
  static std::unique_ptr<TierManager> OpenOn(const std::shared_ptr<PowerCutDisk>& disk,
                                             bool reuse) {
    TierManager::Parts parts;
    parts.device = std::make_unique<PowerCutDevice>(disk);
    auto manager = TierManager::Open(Options(reuse), std::move(parts));
    return manager.ok() ? *std::move(manager) : nullptr;
  }
  // Makes `bytes` what is on disk_.
  void Load(const std::vector<std::byte>& bytes) {
    std::copy(bytes.begin(), bytes.end(), disk_->bytes().begin());
  }
};

TEST_F(NvmeCheckCrash, AKilledProcessLeavesNoDamage) {
  uint64_t checked = 0;
  for (uint64_t seed = 1; seed <= 12; ++seed) {
    SCOPED_TRACE(testing::Message() << "seed " << seed);
    std::mt19937_64 random(seed);
    auto disk = MakeDisk(seed);
    auto manager = OpenOn(disk, false);
    ASSERT_NE(manager, nullptr);
    uint64_t steps = 0;
    RunWorkload(*manager, random, [&] {
      // What a process that is killed now leaves, whatever it has in flight.
      if (random() % 8 == 0) {
        Load(disk->current());
        const CheckReport report = MustCheck();
        EXPECT_TRUE(report.clean()) << DamageText(report);
        ++checked;
      }
      return ++steps > 400 || HasFailure();
    });
  }
  EXPECT_GT(checked, 300);
}

TEST_F(NvmeCheckCrash, AProcessKilledAtTheStartLeavesNoDamage) {
  for (uint64_t count = 1; count < 40; ++count) {
    auto disk = MakeDisk(count);
    disk->CutAfter(count, count);
    OpenOn(disk, false).reset();
    // The power is off, but what had completed by then is what a kill leaves.
    Load(disk->current());
    const auto report = Check(*disk_);
    if (!report.ok()) {
      EXPECT_THAT(report.status().message(), HasSubstr("blank"));
      continue;
    }
    EXPECT_TRUE(report->clean()) << DamageText(*report);
  }
}

// A record that is written while the power fails may be torn, which looks like damage to it. It
// costs no block, and nothing else may look damaged.
TEST_F(NvmeCheckCrash, APowerCutLeavesTornRecordsAtMostWhichAreMended) {
  uint64_t unfinished = 0;
  for (uint64_t seed = 1; seed <= 40; ++seed) {
    SCOPED_TRACE(testing::Message() << "seed " << seed);
    std::mt19937_64 random(seed);
    auto disk = MakeDisk(seed);
    std::set<uint64_t> flushed;
    for (int cuts = 0; cuts < 3; ++cuts) {
      auto manager = OpenOn(disk, cuts > 0);
      ASSERT_NE(manager, nullptr);
      disk->CutAfter(1 + random() % 400, seed + 1000 * cuts);
      flushed.merge(RunWorkload(*manager, random, [&] { return disk->off(); }));
      manager.reset();
      disk->Cut(seed);  // where the owned blocks filled the tier before the time came
      disk->Restore();
      Load(disk->current());
      const CheckReport found = MustCheck();
      unfinished += found.unfinished_groups;
      for (const Damage& damage : found.damage) {
        EXPECT_TRUE(damage.kind == DamageKind::kManifest || damage.kind == DamageKind::kFooter)
            << DamageText(found);
      }
      ASSERT_TRUE(RepairNvmeTier(*disk_, found).ok());
      const CheckReport after = MustCheck();
      EXPECT_TRUE(after.clean()) << DamageText(after);
      auto reopened = Open(true);
      ASSERT_NE(reopened, nullptr);
      for (const uint64_t number : flushed) EXPECT_TRUE(Serves(*reopened, number, 0)) << number;
      if (HasFailure()) return;
    }
  }
  EXPECT_GT(unfinished, 0) << "no cut fell into the writing of a group";
}

}  // namespace
}  // namespace terrace
