#include "tiers/block_directory.h"

#include <map>
#include <random>
#include <set>
#include <utility>
#include <vector>

#include "gtest/gtest.h"

namespace terrace {
namespace {

BlockId Id(uint64_t number) { return {.high = number / 7, .low = number}; }

TEST(BlockDirectory, FindsWhatWasInsertedUntilItIsErased) {
  BlockDirectory directory(4);
  EXPECT_EQ(directory.Find(Id(1)), kNoEntry);
  const EntryIndex entry = directory.Insert(Id(1));
  EXPECT_EQ(directory.Find(Id(1)), entry);
  EXPECT_EQ(directory[entry].id, Id(1));
  EXPECT_EQ(directory.size(), 1u);
  directory.Erase(entry);
  EXPECT_EQ(directory.Find(Id(1)), kNoEntry);
  EXPECT_EQ(directory.size(), 0u);
}

TEST(BlockDirectory, TellsIdsApartByBothHalves) {
  BlockDirectory directory(4);
  const EntryIndex a = directory.Insert({.high = 1, .low = 2});
  const EntryIndex b = directory.Insert({.high = 2, .low = 1});
  const EntryIndex c = directory.Insert({.high = 1, .low = 1});
  EXPECT_EQ(directory.Find({.high = 1, .low = 2}), a);
  EXPECT_EQ(directory.Find({.high = 2, .low = 1}), b);
  EXPECT_EQ(directory.Find({.high = 1, .low = 1}), c);
  EXPECT_EQ(directory.Find({.high = 2, .low = 2}), kNoEntry);
}

TEST(BlockDirectory, AReusedEntryStartsClean) {
  BlockDirectory directory(1);
  const EntryIndex first = directory.Insert(Id(1));
  directory[first].slot(Pool::kDram) = SlotIndex{3};
  directory[first].retention = Retention::kOwned;
  directory[first].slot(Pool::kDram) = kNoSlot;
  directory.Erase(first);
  const BlockEntry& entry = directory[directory.Insert(Id(2))];
  EXPECT_FALSE(entry.in_memory());
  EXPECT_EQ(entry.nvme, CopyState::kEmpty);
  EXPECT_EQ(entry.page, kNoPage);
  EXPECT_EQ(entry.retention, Retention::kCached);
}

TEST(BlockDirectory, AgreesWithAMapUnderRandomUseWithoutGrowing) {
  const uint64_t seed = 21;
  SCOPED_TRACE(testing::Message() << "seed " << seed);
  constexpr size_t kMaxBlocks = 50;
  std::mt19937_64 random(seed);
  BlockDirectory directory(kMaxBlocks);
  const size_t bytes = directory.memory_bytes();
  std::map<uint64_t, EntryIndex> reference;
  for (int step = 0; step < 20000; ++step) {
    const uint64_t number = random() % 120;
    const auto known = reference.find(number);
    const EntryIndex found = directory.Find(Id(number));
    if (known != reference.end()) {
      ASSERT_EQ(found, known->second) << "step " << step;
      if (random() % 2 == 0) {
        directory.Erase(found);
        reference.erase(known);
      }
    } else {
      ASSERT_EQ(found, kNoEntry) << "step " << step;
      if (reference.size() < kMaxBlocks) reference[number] = directory.Insert(Id(number));
    }
    ASSERT_EQ(directory.size(), reference.size());
  }
  std::set<EntryIndex> distinct;
  for (const auto& [number, entry] : reference) distinct.insert(entry);
  EXPECT_EQ(distinct.size(), reference.size());
  EXPECT_EQ(directory.memory_bytes(), bytes);
}

// The budget of design.md section 2 at its densest: 64 KiB blocks, 16 page checksums each, and the
// 4 bytes of a block's place in its segment.
TEST(BlockDirectory, StaysInsideItsBudgetOfBytesABlock) {
  constexpr size_t kBlocks = size_t{1} << 20;
  const BlockDirectory directory(kBlocks);
  const size_t per_block = directory.memory_bytes() / kBlocks;
  EXPECT_LE(per_block + 16 * 4 + 4, 160u) << per_block;
}

TEST(BlockDirectoryDeathTest, AbortsOnMisuse) {
  BlockDirectory directory(1);
  const EntryIndex entry = directory.Insert(Id(1));
  EXPECT_DEATH(directory.Insert(Id(2)), "check failed");
  directory[entry].slot(Pool::kHbm) = SlotIndex{0};
  EXPECT_DEATH(directory.Erase(entry), "in_memory");
  directory[entry].slot(Pool::kHbm) = kNoSlot;
  directory[entry].nvme = CopyState::kFilling;
  EXPECT_DEATH(directory.Erase(entry), "nvme");
}

}  // namespace
}  // namespace terrace
