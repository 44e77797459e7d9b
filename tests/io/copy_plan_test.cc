#include "io/copy_plan.h"

#include <algorithm>
#include <random>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "io/copy_ranges.h"

namespace terrace {
namespace {

using ::testing::ElementsAre;
using Way = CopyPiece::Way;

constexpr size_t kMiB = size_t{1} << 20;

// Addresses that nobody follows.
std::byte* At(uintptr_t address) { return reinterpret_cast<std::byte*>(address); }
constexpr uintptr_t kHost = uintptr_t{1} << 40;
constexpr uintptr_t kDevice = uintptr_t{2} << 40;
constexpr size_t kArena = size_t{1} << 30;

Copy Up(uintptr_t host, uintptr_t device, size_t bytes) {
  return {.source = At(host),
          .destination = At(device),
          .bytes = bytes,
          .direction = CopyDirection::kHostToDevice};
}
Copy Down(uintptr_t device, uintptr_t host, size_t bytes) {
  return {.source = At(device),
          .destination = At(host),
          .bytes = bytes,
          .direction = CopyDirection::kDeviceToHost};
}

class CopyPlanTest : public ::testing::Test {
 protected:
  CopyPlanTest() {
    pinned_.Add({.begin = At(kHost), .bytes = kArena, .in_kernels = true});
    device_.Add({.begin = At(kDevice), .bytes = kArena, .in_kernels = true});
  }
  std::vector<CopyPiece> Plan(const std::vector<Copy>& batch,
                              CudaCopyMethod method = CudaCopyMethod::kAuto) const {
    return PlanCopies(batch, pinned_, device_, method);
  }
  // `count` copies up that do not adjoin.
  static std::vector<Copy> Scattered(size_t count, size_t bytes, size_t offset = 0) {
    std::vector<Copy> copies;
    for (size_t i = 0; i < count; ++i) {
      copies.push_back(Up(kHost + 2 * i * bytes + offset, kDevice + 3 * i * bytes, bytes));
    }
    return copies;
  }

  MemoryRegions pinned_;
  MemoryRegions device_;
};

TEST(MemoryRegions, FindWhatLiesInOneOfThemAltogether) {
  MemoryRegions regions;
  EXPECT_EQ(regions.Find(At(1000), 1), nullptr);
  regions.Add({.begin = At(1000), .bytes = 100});
  regions.Add({.begin = At(1100), .bytes = 50});
  EXPECT_EQ(regions.Find(At(999), 1), nullptr);
  ASSERT_NE(regions.Find(At(1000), 100), nullptr);
  EXPECT_EQ(regions.Find(At(1000), 101), nullptr) << "spans two";
  EXPECT_EQ(regions.Find(At(1099), 1), regions.Find(At(1000), 1));
  EXPECT_EQ(regions.Find(At(1100), 50)->bytes, 50u);
  EXPECT_EQ(regions.Find(At(1149), 2), nullptr);
  EXPECT_EQ(regions.Find(At(1150), 1), nullptr);
  regions.Remove(At(1000));
  EXPECT_EQ(regions.Find(At(1000), 1), nullptr);
  EXPECT_NE(regions.Find(At(1100), 1), nullptr);
}

TEST_F(CopyPlanTest, EmptyCopiesGo) {
  EXPECT_TRUE(Plan({}).empty());
  EXPECT_TRUE(Plan({Copy(), Up(kHost, kDevice, 0)}).empty());
}

TEST_F(CopyPlanTest, CopiesThatAdjoinOnBothSidesBecomeOne) {
  const std::vector<CopyPiece> plan = Plan(
      {Up(kHost, kDevice, kMiB), Up(kHost + kMiB, kDevice + kMiB, 5), Up(0, 0, 0),
       Up(kHost + kMiB + 5, kDevice + kMiB + 5, 7), Up(kHost + 2 * kMiB, kDevice + kMiB + 12, 1)});
  ASSERT_EQ(plan.size(), 1u);
  ASSERT_EQ(plan[0].copies.size(), 2u) << "the last adjoins in device memory alone";
  EXPECT_EQ(plan[0].copies[0].source, At(kHost));
  EXPECT_EQ(plan[0].copies[0].destination, At(kDevice));
  EXPECT_EQ(plan[0].copies[0].bytes, kMiB + 12);
}

TEST_F(CopyPlanTest, CopiesOfTwoRegionsStayTwo) {
  pinned_.Add({.begin = At(kHost + kArena), .bytes = kArena, .in_kernels = true});
  const std::vector<Copy> across_pinned = {Up(kHost + kArena - 8, kDevice, 8),
                                           Up(kHost + kArena, kDevice + 8, 8)};
  EXPECT_EQ(Plan(across_pinned)[0].copies.size(), 2u);
  device_.Add({.begin = At(kDevice + kArena), .bytes = kArena, .in_kernels = true});
  const std::vector<Copy> across_device = {Down(kDevice + kArena - 8, kHost, 8),
                                           Down(kDevice + kArena, kHost + 8, 8)};
  EXPECT_EQ(Plan(across_device)[0].copies.size(), 2u);
}

TEST_F(CopyPlanTest, ManySmallCopiesGoByAKernel) {
  const auto way = [&](size_t count, size_t bytes, size_t offset = 0) {
    const std::vector<CopyPiece> plan = Plan(Scattered(count, bytes, offset));
    for (const CopyPiece& piece : plan) EXPECT_EQ(piece.way, plan[0].way);
    return plan[0].way;
  };
  EXPECT_EQ(way(kKernelMinCopies, kKernelMaxBytes), Way::kKernel);
  EXPECT_EQ(way(kKernelMinCopies - 1, kKernelMaxBytes), Way::kBatch) << "few";
  EXPECT_EQ(way(kKernelMinCopies, kKernelMaxBytes + 16), Way::kBatch) << "large";
  EXPECT_EQ(way(kKernelMinCopies, kKernelMaxBytes, 8), Way::kBatch) << "unaligned";
}

TEST_F(CopyPlanTest, SmallAndLargeCopiesOfABatchPart) {
  std::vector<Copy> batch = Scattered(kKernelMinCopies, 4096);
  const uintptr_t far = kArena / 2;
  batch.insert(batch.begin() + 3, Up(kHost + far, kDevice + far, kMiB));
  const std::vector<CopyPiece> plan = Plan(batch);
  ASSERT_EQ(plan.size(), 2u);
  EXPECT_EQ(plan[0].way, Way::kKernel);
  EXPECT_EQ(plan[0].copies.size(), kKernelMinCopies);
  EXPECT_EQ(plan[1].way, Way::kBatch);
  ASSERT_EQ(plan[1].copies.size(), 1u);
  EXPECT_EQ(plan[1].copies[0].source, At(kHost + far));
}

TEST_F(CopyPlanTest, FirstPiecesForCopyEnginesAreShort) {
  std::vector<size_t> counts;
  for (const CopyPiece& piece : Plan(Scattered(1100, 64 << 10))) {
    EXPECT_EQ(piece.way, Way::kBatch);
    counts.push_back(piece.copies.size());
  }
  EXPECT_THAT(counts, ElementsAre(8, 16, 32, 64, 128, 256, 256, 256, 84));
}

TEST_F(CopyPlanTest, DownKernelAndCopyEnginesShareBlocks) {
  const auto down = [](size_t count, size_t bytes) {
    std::vector<Copy> copies;
    for (size_t i = 0; i < count; ++i) {
      copies.push_back(Down(kDevice + 3 * i * bytes, kHost + 2 * i * bytes, bytes));
    }
    return copies;
  };
  const auto count = [](const std::vector<CopyPiece>& plan, Way way) {
    size_t copies = 0;
    for (const CopyPiece& piece : plan) {
      EXPECT_EQ(piece.shares_bus, piece.way == Way::kKernel);
      if (piece.way == way) copies += piece.copies.size();
    }
    return copies;
  };
  const std::vector<CopyPiece> plan = Plan(down(100, kSharedMaxBytes));
  EXPECT_EQ(count(plan, Way::kKernel), 60u);
  EXPECT_EQ(count(plan, Way::kBatch), 40u);
  EXPECT_FALSE(Plan(down(100, kSharedMaxBytes), CudaCopyMethod::kKernel)[0].shares_bus);
  EXPECT_EQ(count(Plan(down(100, kSharedMaxBytes + 4096)), Way::kKernel), 0u) << "large";
  EXPECT_EQ(count(Plan(down(kSharedMinCopies - 1, kSharedMaxBytes)), Way::kKernel), 0u) << "few";
  EXPECT_EQ(count(Plan(Scattered(100, kSharedMaxBytes)), Way::kKernel), 0u) << "up";
}

TEST_F(CopyPlanTest, EachDirectionCountsItsOwnSmallCopies) {
  std::vector<Copy> batch = Scattered(kKernelMinCopies, 4096);
  batch.push_back(Down(kDevice + kArena / 2, kHost + kArena / 2, 4096));
  const std::vector<CopyPiece> plan = Plan(batch);
  ASSERT_EQ(plan.size(), 2u);
  EXPECT_EQ(plan[0].way, Way::kKernel);
  EXPECT_EQ(plan[1].way, Way::kBatch);
  EXPECT_EQ(plan[1].direction, CopyDirection::kDeviceToHost);
}

TEST_F(CopyPlanTest, AMethodThatIsAskedForIsTakenWhereItCanBe) {
  const std::vector<Copy> small = Scattered(64, 4096);
  const std::vector<Copy> large = {Up(kHost + 3, kDevice, 16 * kMiB)};
  EXPECT_EQ(Plan(small, CudaCopyMethod::kCopyEngine)[0].way, Way::kBatch);
  EXPECT_EQ(Plan(large, CudaCopyMethod::kKernel)[0].way, Way::kKernel);
  const std::vector<Copy> unpinned = {Up(kHost - kMiB, kDevice, 4096)};
  EXPECT_EQ(Plan(unpinned, CudaCopyMethod::kKernel)[0].way, Way::kSingle);
  EXPECT_EQ(Plan(unpinned, CudaCopyMethod::kCopyEngine)[0].way, Way::kSingle);
  pinned_.Remove(At(kHost));
  pinned_.Add({.begin = At(kHost), .bytes = kArena, .in_kernels = false});
  EXPECT_EQ(Plan(small, CudaCopyMethod::kKernel)[0].way, Way::kBatch);
  EXPECT_EQ(Plan(small)[0].way, Way::kBatch);
}

TEST_F(CopyPlanTest, DirectionsAlternateAndWhatMayWaitComesLast) {
  std::vector<Copy> batch = {Up(1, kDevice + kArena / 4, 4096)};
  for (size_t i = 0; i < kFirstPieceCopies + 1; ++i) {
    batch.push_back(Up(kHost + 2 * i * kMiB, kDevice + 2 * i * kMiB, kMiB));
  }
  batch.push_back(Down(kDevice + kMiB, kHost + kMiB, kMiB));
  std::vector<std::pair<Way, CopyDirection>> order;
  for (const CopyPiece& piece : Plan(batch)) order.emplace_back(piece.way, piece.direction);
  EXPECT_THAT(order, ElementsAre(std::pair(Way::kBatch, CopyDirection::kHostToDevice),
                                 std::pair(Way::kBatch, CopyDirection::kDeviceToHost),
                                 std::pair(Way::kBatch, CopyDirection::kHostToDevice),
                                 std::pair(Way::kSingle, CopyDirection::kHostToDevice)));
}

// Whatever the plan, it moves the bytes that were asked for, and its pieces keep their bounds.
TEST_F(CopyPlanTest, MovesEveryByteOnce) {
  constexpr uint32_t kSeed = 20261;
  std::mt19937 random(kSeed);
  for (int round = 0; round < 20; ++round) {
    std::vector<Copy> batch;
    uintptr_t host = kHost;
    uintptr_t device = kDevice;
    for (int i = 0; i < 3000; ++i) {
      const size_t bytes = random() % 4 * 4096;
      batch.push_back(random() % 2 == 0 ? Up(host, device, bytes) : Down(device, host, bytes));
      host += bytes + random() % 2 * 64;
      device += bytes + random() % 2 * 64;
    }
    const auto words = [](const Copy& copy, std::vector<std::array<uintptr_t, 3>>& moved) {
      for (size_t at = 0; at < copy.bytes; at += 4096) {
        moved.push_back({reinterpret_cast<uintptr_t>(copy.source) + at,
                         reinterpret_cast<uintptr_t>(copy.destination) + at,
                         static_cast<uintptr_t>(copy.direction)});
      }
    };
    std::vector<std::array<uintptr_t, 3>> wanted;
    for (const Copy& copy : batch) words(copy, wanted);
    for (const CudaCopyMethod method :
         {CudaCopyMethod::kAuto, CudaCopyMethod::kCopyEngine, CudaCopyMethod::kKernel}) {
      std::vector<std::array<uintptr_t, 3>> moved;
      for (const CopyPiece& piece : Plan(batch, method)) {
        EXPECT_LE(piece.copies.size(),
                  piece.way == Way::kKernel ? kKernelPieceCopies : kBatchPieceCopies);
        for (const Copy& copy : piece.copies) {
          EXPECT_EQ(copy.direction, piece.direction);
          words(copy, moved);
        }
      }
      std::sort(moved.begin(), moved.end());
      std::sort(wanted.begin(), wanted.end());
      ASSERT_EQ(moved, wanted) << "seed " << kSeed << " round " << round;
    }
  }
}

CopyRanges RangesOf(const std::vector<Copy>& batch) {
  CopyRanges ranges;
  for (const Copy& copy : batch) ranges.Add(copy);
  ranges.Seal();
  return ranges;
}

TEST(CopyRanges, ConflictWhereOneWritesWhatTheOtherTouches) {
  // Three that adjoin and are given out of order: one range of 30 bytes on each side.
  const CopyRanges up =
      RangesOf({Up(1020, 5020, 10), Up(1000, 5000, 10), Up(1010, 5010, 10), Up(1060, 5060, 10)});
  const auto conflicts = [&](const Copy& copy) {
    const CopyRanges other = RangesOf({copy});
    EXPECT_EQ(up.Conflicts(other), other.Conflicts(up));
    return up.Conflicts(other);
  };
  EXPECT_TRUE(conflicts(Down(5029, 2000, 1))) << "reads what was written";
  EXPECT_TRUE(conflicts(Down(6000, 1069, 1))) << "writes what was read";
  EXPECT_TRUE(conflicts(Up(3000, 5015, 1))) << "writes what was written";
  EXPECT_FALSE(conflicts(Up(1000, 6000, 70))) << "reads what was read";
  EXPECT_FALSE(conflicts(Down(5030, 1030, 30))) << "lies in between";
  EXPECT_FALSE(conflicts(Down(5070, 1070, 1000))) << "lies behind";
  EXPECT_FALSE(conflicts(Down(5000, 1000, 0))) << "is empty";
  EXPECT_FALSE(RangesOf({}).Conflicts(up));
}

// Against a map of every byte.
TEST(CopyRanges, AgreeWithEveryByte) {
  constexpr uint32_t kSeed = 20262;
  std::mt19937 random(kSeed);
  int found = 0;
  for (int round = 0; round < 500; ++round) {
    constexpr size_t kBytes = 400;
    std::vector<bool> read[2];
    std::vector<bool> written[2];
    CopyRanges ranges[2];
    for (int side = 0; side < 2; ++side) {
      read[side].resize(kBytes);
      written[side].resize(kBytes);
      for (int i = 0; i < 3; ++i) {
        const size_t bytes = random() % 20;
        const size_t source = random() % (kBytes - bytes);
        const size_t destination = random() % (kBytes - bytes);
        ranges[side].Add(Up(source, destination, bytes));
        std::fill_n(read[side].begin() + static_cast<ptrdiff_t>(source), bytes, true);
        std::fill_n(written[side].begin() + static_cast<ptrdiff_t>(destination), bytes, true);
      }
      ranges[side].Seal();
    }
    bool conflict = false;
    for (size_t i = 0; i < kBytes; ++i) {
      conflict = conflict || (written[0][i] && (written[1][i] || read[1][i])) ||
                 (read[0][i] && written[1][i]);
    }
    found += conflict ? 1 : 0;
    ASSERT_EQ(ranges[0].Conflicts(ranges[1]), conflict) << "seed " << kSeed << " round " << round;
  }
  EXPECT_GT(found, 50);
  EXPECT_LT(found, 450);
}

}  // namespace
}  // namespace terrace
