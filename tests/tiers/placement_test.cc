#include "tiers/placement.h"

#include <algorithm>
#include <optional>
#include <random>
#include <set>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "gtest/gtest.h"
#include "tests/support/placement_driver.h"
#include "tests/support/placement_invariants.h"
#include "tests/support/textbook_lru.h"

namespace terrace {
namespace {

using Pace = PlacementDriver::Pace;
using PutOutcome = Placement::PutOutcome;

constexpr uint32_t kPagesPerBlock = 2;

struct Sizes {
  size_t hbm = 0;
  size_t dram = 0;
  uint32_t segments = 0;  // 0: no NVMe tier
  uint32_t segment_blocks = 4;
  uint32_t group_blocks = 2;
  size_t transit = 4;
  double hot_share = 0;
};

PlacementOptions MakeOptions(const Sizes& sizes) {
  PlacementOptions options;
  options.block_bytes = kPagesPerBlock * kPageBytes;
  options.hot_share = sizes.hot_share;
  options.slots = {sizes.hbm, sizes.dram, sizes.segments > 0 ? sizes.transit : 0};
  if (sizes.segments == 0) return options;
  const uint32_t groups = (sizes.segment_blocks + sizes.group_blocks - 1) / sizes.group_blocks;
  options.nvme = NvmeGeometry{.pages_per_block = kPagesPerBlock,
                              .segment_pages = groups + sizes.segment_blocks * kPagesPerBlock,
                              .segment_count = sizes.segments,
                              .group_blocks = sizes.group_blocks,
                              .header_pages = 1};
  return options;
}

// Tiny sizes, every tier present or absent by a bit of `tiers`.
Sizes RandomSizes(std::mt19937_64& random, int tiers) {
  Sizes sizes;
  if ((tiers & 1) != 0) sizes.hbm = 1 + random() % 5;
  if ((tiers & 2) != 0) sizes.dram = 1 + random() % 8;
  if ((tiers & 4) != 0) sizes.segments = 2 + random() % 4;
  sizes.segment_blocks = 1 + random() % 6;
  sizes.group_blocks = 1 + random() % 3;
  sizes.transit = 4 + random() % 12;
  sizes.hot_share = (random() % 3) / 4.0;
  return sizes;
}

std::vector<BlockId> Universe(size_t blocks) {
  std::vector<BlockId> ids;
  for (size_t i = 0; i < blocks; ++i) ids.push_back(PlacementDriver::Id(i));
  return ids;
}

BlockId Id(uint64_t number) { return PlacementDriver::Id(number); }

// Fetches one block to the fast tier and says where it was found.
std::optional<Tier> FetchOne(PlacementDriver& driver, const BlockId& id,
                             std::optional<Pool> target = std::nullopt) {
  std::vector<FetchItem> items = {driver.WholeBlock(id)};
  const Room room = driver.Fetch(items, target.value_or(driver.fast_pool()));
  EXPECT_EQ(room, Room::kOk);
  if (room != Room::kOk || items[0].place.slot == kNoSlot) return std::nullopt;
  return items[0].hit_tier;
}

// --- One memory tier is textbook LRU ---

TEST(Placement, OneMemoryTierHitsAsTextbookLruDoes) {
  for (uint64_t seed = 1; seed <= 20; ++seed) {
    SCOPED_TRACE(testing::Message() << "seed " << seed);
    std::mt19937_64 random(seed);
    Sizes sizes;
    (seed % 2 == 0 ? sizes.hbm : sizes.dram) = 1 + random() % 12;
    PlacementDriver driver(MakeOptions(sizes), seed % 3 == 0 ? Pace::kLate : Pace::kAtOnce, seed);
    TextbookLru reference(std::max(sizes.hbm, sizes.dram));
    uint64_t hits = 0;
    for (int step = 0; step < 1000; ++step) {
      const uint64_t block = random() % 24;
      const bool hit = FetchOne(driver, Id(block)).has_value();
      ASSERT_EQ(hit, reference.Touch(block)) << "step " << step;
      hits += hit;
      if (!hit) {
        ASSERT_EQ(driver.Put(Id(block)), PutOutcome::kReserved) << "step " << step;
      }
    }
    const PlacementStats& stats = driver.placement().stats();
    EXPECT_EQ(stats.hits[0] + stats.hits[1], hits);
    EXPECT_EQ(stats.misses, 1000 - hits);
    EXPECT_EQ(driver.problem(), "");
  }
}

// --- Decisions follow from the order of calls alone ---

// Where every block is, a letter each.
std::string Whereabouts(const Placement& placement, absl::Span<const BlockId> ids) {
  std::string letters;
  for (const BlockId& id : ids) {
    const std::optional<Tier> tier = placement.Find(id);
    letters += tier ? *TierName(*tier) : '-';
  }
  return letters;
}

// What a caller sees of a run, call by call, and where every block is after each.
std::vector<std::string> RunCalls(const Sizes& sizes, Pace pace, uint64_t seed, int calls) {
  constexpr size_t kBlocks = 30;
  std::mt19937_64 random(seed);
  PlacementDriver driver(MakeOptions(sizes), pace, seed * 3 + 1);
  Placement& placement = driver.placement();
  const std::vector<BlockId> ids = Universe(kBlocks);
  std::vector<std::string> seen;
  for (int call = 0; call < calls; ++call) {
    const BlockId id = Id(random() % kBlocks);
    const uint64_t kind = random() % 20;
    if (kind < 8) {
      const Retention retention = random() % 8 == 0 ? Retention::kOwned : Retention::kCached;
      const int outcome = static_cast<int>(driver.Put(id, retention));
      seen.push_back(absl::StrCat("put ", id.low, ": ", outcome));
    } else if (kind < 17) {
      std::vector<FetchItem> items;
      for (size_t i = 0, count = 1 + random() % 3; i < count; ++i) {
        items.push_back(driver.WholeBlock(Id(random() % kBlocks)));
        if (sizes.segments > 0 && random() % 4 == 0) items.back().page_count = 1;
      }
      const bool to_dram = sizes.dram > 0 && random() % 4 == 0;
      const Room room = driver.Fetch(items, to_dram ? Pool::kDram : driver.fast_pool());
      std::string line = absl::StrCat("fetch: ", static_cast<int>(room));
      for (const FetchItem& item : items) {
        absl::StrAppend(
            &line, " ", item.id.low, ":",
            room == Room::kOk && item.place.slot != kNoSlot ? TierName(item.hit_tier) : "-");
      }
      seen.push_back(line);
    } else if (kind == 17) {
      placement.Drop(id);
    } else if (kind == 18) {
      placement.SetRetention(id, random() % 3 == 0 ? Retention::kOwned : Retention::kCached);
    } else if (sizes.segments > 0 && random() % 4 == 0) {
      seen.push_back(absl::StrCat("flush: ", driver.Flush()));
    }
    seen.push_back(Whereabouts(placement, ids));
    EXPECT_EQ(FindInconsistency(placement, ids), "") << "call " << call;
    EXPECT_EQ(driver.problem(), "") << "call " << call;
    if (testing::Test::HasFailure()) break;
  }
  return seen;
}

class PlacementOfTiersTest : public testing::TestWithParam<int> {};

INSTANTIATE_TEST_SUITE_P(AllCombinations, PlacementOfTiersTest, testing::Range(1, 8),
                         [](const auto& info) {
                           return absl::StrCat((info.param & 1) != 0 ? "Hbm" : "",
                                               (info.param & 2) != 0 ? "Dram" : "",
                                               (info.param & 4) != 0 ? "Nvme" : "");
                         });

TEST_P(PlacementOfTiersTest, DecisionsDoNotDependOnWhenTransfersEnd) {
  for (uint64_t seed = 1; seed <= 20; ++seed) {
    SCOPED_TRACE(testing::Message() << "seed " << seed);
    std::mt19937_64 random(seed);
    const Sizes sizes = RandomSizes(random, GetParam());
    constexpr int kCalls = 300;
    const std::vector<std::string> at_once = RunCalls(sizes, Pace::kAtOnce, seed, kCalls);
    const std::vector<std::string> late = RunCalls(sizes, Pace::kLate, seed, kCalls);
    for (size_t i = 0; i < std::min(at_once.size(), late.size()); ++i) {
      ASSERT_EQ(at_once[i], late[i]) << "line " << i << " after " << (i > 0 ? at_once[i - 1] : "");
    }
    ASSERT_EQ(at_once.size(), late.size());
  }
}

// --- Anything goes ---

// Random calls of callers that wait for nothing, with transfers ending in any order.
class RandomWalk {
 public:
  RandomWalk(const Sizes& sizes, uint64_t seed, bool failures)
      : sizes_(sizes),
        failures_(failures),
        random_(seed),
        driver_(MakeOptions(sizes), Pace::kLate, seed),
        placement_(driver_.placement()),
        ids_(Universe(kBlocks)) {}

  void Run(int steps) {
    for (int step = 0; step < steps && !testing::Test::HasFailure(); ++step) {
      SCOPED_TRACE(testing::Message() << "step " << step);
      Step();
      Check();
    }
    while (!leases_.empty()) Release(leases_.size() - 1);
    driver_.Settle();
    Check();
    EXPECT_FALSE(placement_.transfers_in_flight());
    for (Pool pool : {Pool::kHbm, Pool::kDram, Pool::kTransit}) {
      EXPECT_EQ(placement_.table(pool).pinned_count(), OpenGroupSources(pool));
    }
    EXPECT_EQ(placement_.table(Pool::kTransit).lent_count(), 0u);
  }

 private:
  static constexpr size_t kBlocks = 24;

  void Step() {
    const BlockId id = Id(random_() % kBlocks);
    switch (random_() % 16) {
      case 0:
      case 1:
      case 2:
        return Put(id);
      case 3:
      case 4:
      case 5:
        return Fetch();
      case 6:
        return Prefetch();
      case 7:
      case 8:
        if (!leases_.empty()) Release(random_() % leases_.size());
        return;
      case 9:
        placement_.Drop(id);
        owned_.erase(id.low);
        return;
      case 10:
        return SetRetention(id);
      case 11:
        return Flush();
      case 12:
        if (random_() % 4 == 0) placement_.CloseOpenGroup();
        return;
      default:
        return Transfer();
    }
  }

  void Put(const BlockId& id) {
    const Retention retention = random_() % 6 == 0 ? Retention::kOwned : Retention::kCached;
    const bool known = placement_.Find(id).has_value();
    const Placement::PutReservation put = placement_.ReservePut(id, retention);
    if (put.outcome == PutOutcome::kReserved) driver_.BeginPut(id, put.place);
    EXPECT_EQ(known, put.outcome == PutOutcome::kAlreadyHere);
    const bool accepted = put.outcome == PutOutcome::kReserved || known;
    if (accepted && retention == Retention::kOwned) owned_.insert(id.low);
    CountIdle(put.outcome == PutOutcome::kWait);
  }

  void Fetch() {
    std::vector<FetchItem> items;
    for (size_t i = 0, count = 1 + random_() % 4; i < count; ++i) {
      items.push_back(driver_.WholeBlock(Id(random_() % kBlocks)));
      if (random_() % 3 == 0) items.back().page_count = 1;
      if (random_() % 6 == 0) {
        items.back().first_page = 1;
        items.back().page_count = 1;
      }
    }
    const bool to_dram = sizes_.dram > 0 && random_() % 3 == 0;
    const Room room =
        placement_.ReserveFetch(absl::MakeSpan(items), to_dram ? Pool::kDram : driver_.fast_pool());
    CountIdle(room == Room::kWait);
    if (room == Room::kOk) leases_.push_back(std::move(items));
  }

  void Prefetch() {
    std::vector<BlockId> ids;
    for (size_t i = 0; i < 3; ++i) ids.push_back(Id(random_() % kBlocks));
    const bool to_dram = sizes_.dram > 0 && random_() % 2 == 0;
    placement_.ReservePrefetch(ids, to_dram ? Pool::kDram : driver_.fast_pool(), 2);
  }

  void SetRetention(const BlockId& id) {
    const bool owned = random_() % 3 == 0;
    placement_.SetRetention(id, owned ? Retention::kOwned : Retention::kCached);
    if (!owned) owned_.erase(id.low);
    if (owned && placement_.Find(id)) owned_.insert(id.low);
  }

  void Flush() {
    if (sizes_.segments == 0) return;
    Placement::FlushCursor cursor = placement_.BeginFlush();
    CountIdle(placement_.SelectDirty(cursor) == Room::kWait);
  }

  void Transfer() {
    driver_.Start();
    if (driver_.in_flight() == 0) return;
    const size_t index = random_() % driver_.in_flight();
    const bool write = driver_.transfer(index).kind == PlacementDriver::Transfer::Kind::kGroup;
    // A tier stops writing with the first failure, so that one comes late.
    if (failures_ && random_() % (write ? 400 : 12) == 0) {
      driver_.Fail(index);
    } else {
      driver_.Finish(index);
    }
  }

  void Release(size_t index) {
    for (const FetchItem& item : leases_[index]) {
      if (item.place.slot == kNoSlot) continue;
      const SlotTable& slots = placement_.table(item.place.pool);
      if (slots.state(item.place.slot) == CopyState::kResident) driver_.CheckWords(item);
      placement_.Unpin(item.place);
    }
    leases_.erase(leases_.begin() + index);
  }

  // A caller that is told to wait while nothing is in flight may be told so a few times at most.
  void CountIdle(bool told_to_wait) {
    driver_.Start();
    idle_waits_ = told_to_wait && driver_.in_flight() == 0 ? idle_waits_ + 1 : 0;
    EXPECT_LE(idle_waits_, 3) << "waits for nothing";
  }

  // Sources of the one group that is still open stay pinned until it is closed.
  size_t OpenGroupSources(Pool pool) {
    if (placement_.nvme() == nullptr) return 0;
    std::set<SlotIndex> sources;
    for (size_t i = 0; i < Placement::kWriteGroups; ++i) {
      const WriteGroup& group = placement_.group(i);
      if (!group.in_use) continue;
      for (const WriteGroup::Block& block : group.blocks) {
        if (block.source.pool == pool) sources.insert(block.source.slot);
      }
    }
    return sources.size();
  }

  void Check() {
    EXPECT_EQ(FindInconsistency(placement_, ids_), "");
    EXPECT_EQ(driver_.problem(), "");
    if (failures_) return;
    for (uint64_t number : owned_) {
      EXPECT_TRUE(placement_.Find(Id(number)).has_value()) << "owned block " << number << " gone";
    }
    EXPECT_EQ(placement_.stats().lost_blocks, 0u);
  }

  const Sizes sizes_;
  const bool failures_;
  std::mt19937_64 random_;
  PlacementDriver driver_;
  Placement& placement_;
  const std::vector<BlockId> ids_;
  std::set<uint64_t> owned_;
  std::vector<std::vector<FetchItem>> leases_;
  int idle_waits_ = 0;
};

TEST_P(PlacementOfTiersTest, StaysConsistentUnderRandomCalls) {
  for (uint64_t seed = 1; seed <= 25; ++seed) {
    SCOPED_TRACE(testing::Message() << "seed " << seed);
    std::mt19937_64 random(seed);
    RandomWalk(RandomSizes(random, GetParam()), seed, /*failures=*/false).Run(600);
    if (HasFailure()) return;
  }
}

TEST_P(PlacementOfTiersTest, StaysConsistentWhenTransfersFail) {
  for (uint64_t seed = 1; seed <= 25; ++seed) {
    SCOPED_TRACE(testing::Message() << "seed " << seed);
    std::mt19937_64 random(seed);
    RandomWalk(RandomSizes(random, GetParam()), seed, /*failures=*/true).Run(600);
    if (HasFailure()) return;
  }
}

}  // namespace
}  // namespace terrace
