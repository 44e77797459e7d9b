#include "tests/support/power_cut_device.h"

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "gtest/gtest.h"
#include "io/aligned_buffer.h"
#include "tests/support/transfer.h"

// What a disk without power does; the conformance suite has what it does with power.

namespace terrace {
namespace {

constexpr size_t kPages = 16;
constexpr uint64_t kDiskBytes = kPages * kPageBytes;
constexpr uint64_t kSeeds = 200;

// A run of pages that holds one value.
struct Pages {
  size_t first = 0;
  size_t count = 1;
  int value = 1;
};

std::unique_ptr<Transfer> WriteOf(const Pages& pages) {
  auto write =
      std::make_unique<Transfer>(IoOp::kWrite, pages.first * kPageBytes, pages.count * kPageBytes);
  std::memset(write->memory().data(), pages.value, write->memory().size());
  return write;
}

absl::Status RunOne(BlockDevice& device, IoRequest* request) {
  IoRequest* const batch[] = {request};
  return RunBatch(device, batch);
}

absl::Status Put(BlockDevice& device, const Pages& pages) {
  return RunOne(device, WriteOf(pages)->request());
}

absl::Status Sync(BlockDevice& device) {
  IoRequest sync;
  sync.op = IoOp::kSync;
  return RunOne(device, &sync);
}

// A disk of zeros and a device on it.
struct Rig {
  explicit Rig(uint64_t seed)
      : disk(std::make_shared<PowerCutDisk>(
            PowerCutDiskOptions{.size_bytes = kDiskBytes, .seed = seed})),
        device(std::make_unique<PowerCutDevice>(disk)) {}

  // What each sector of the pages holds after a power cut; fails when one holds a mixture.
  std::vector<int> SectorsAfterCut(uint64_t seed, const Pages& pages) {
    disk->Cut(seed);
    disk->Restore();
    const std::vector<std::byte> image = disk->current();
    EXPECT_EQ(image, disk->durable());
    std::vector<int> sectors;
    for (size_t at = pages.first * kPageBytes; at < (pages.first + pages.count) * kPageBytes;
         at += PowerCutDisk::kSectorBytes) {
      const auto begin = image.begin() + static_cast<ptrdiff_t>(at);
      sectors.push_back(std::to_integer<int>(*begin));
      EXPECT_EQ(std::count(begin, begin + PowerCutDisk::kSectorBytes, *begin),
                static_cast<ptrdiff_t>(PowerCutDisk::kSectorBytes));
    }
    return sectors;
  }

  std::shared_ptr<PowerCutDisk> disk;
  std::unique_ptr<PowerCutDevice> device;
};

bool AllAre(const std::vector<int>& sectors, int value) {
  return std::all_of(sectors.begin(), sectors.end(), [value](int each) { return each == value; });
}

TEST(PowerCutDevice, SyncedWritesAlwaysSurvive) {
  for (uint64_t seed = 0; seed < kSeeds; ++seed) {
    SCOPED_TRACE(testing::Message() << "seed " << seed);
    Rig rig(seed);
    ASSERT_TRUE(Put(*rig.device, {.first = 0, .count = kPages, .value = 1}).ok());
    ASSERT_TRUE(Sync(*rig.device).ok());
    ASSERT_TRUE(Put(*rig.device, {.first = 4, .count = 4, .value = 2}).ok());
    const std::vector<int> sectors = rig.SectorsAfterCut(seed, {.first = 0, .count = kPages});
    const size_t page_sectors = kPageBytes / PowerCutDisk::kSectorBytes;
    for (size_t i = 0; i < sectors.size(); ++i) {
      const bool overwritten = i / page_sectors >= 4 && i / page_sectors < 8;
      EXPECT_TRUE(sectors[i] == 1 || (overwritten && sectors[i] == 2)) << "sector " << i;
    }
  }
}

TEST(PowerCutDevice, UnsyncedWritesSurviveOrAreLostOrTorn) {
  size_t survived = 0;
  size_t lost = 0;
  size_t torn = 0;
  size_t torn_in_a_page = 0;
  size_t one_of_two = 0;
  for (uint64_t seed = 0; seed < kSeeds; ++seed) {
    Rig rig(seed);
    ASSERT_TRUE(Put(*rig.device, {.first = 2, .count = 3}).ok());
    ASSERT_TRUE(Put(*rig.device, {.first = 8, .count = 1}).ok());
    const std::vector<int> sectors = rig.SectorsAfterCut(seed, {.first = 2, .count = 7});
    const std::vector<int> first(sectors.begin(), sectors.begin() + 24);
    const std::vector<int> second(sectors.end() - 8, sectors.end());
    survived += AllAre(first, 1) ? 1 : 0;
    lost += AllAre(first, 0) ? 1 : 0;
    torn += !AllAre(first, 0) && !AllAre(first, 1) ? 1 : 0;
    torn_in_a_page += !AllAre(second, 0) && !AllAre(second, 1) ? 1 : 0;
    one_of_two += (AllAre(first, 0) && AllAre(second, 1)) ? 1 : 0;
  }
  EXPECT_EQ(survived + lost + torn, kSeeds);
  EXPECT_GT(survived, kSeeds / 10);
  EXPECT_GT(lost, kSeeds / 10);
  EXPECT_GT(torn, kSeeds / 10);
  EXPECT_GT(torn_in_a_page, kSeeds / 10);
  EXPECT_GT(one_of_two, 0u);
}

TEST(PowerCutDevice, OfTwoWritesEitherMayBeTheOneThatIsLeft) {
  std::set<int> seen;
  size_t mixed = 0;
  for (uint64_t seed = 0; seed < kSeeds; ++seed) {
    Rig rig(seed);
    ASSERT_TRUE(Put(*rig.device, {.first = 3, .value = 1}).ok());
    ASSERT_TRUE(Put(*rig.device, {.first = 3, .value = 2}).ok());
    const std::vector<int> sectors = rig.SectorsAfterCut(seed, {.first = 3});
    if (AllAre(sectors, sectors.front())) seen.insert(sectors.front());
    const std::set<int> values(sectors.begin(), sectors.end());
    mixed += values.contains(1) && values.contains(2) ? 1 : 0;
  }
  EXPECT_EQ(seen, (std::set<int>{0, 1, 2}));
  EXPECT_GT(mixed, 0u);
}

TEST(PowerCutDevice, ASyncCoversNoWriteThatWasStillInFlight) {
  size_t lost = 0;
  for (uint64_t seed = 0; seed < kSeeds; ++seed) {
    Rig rig(seed);
    ASSERT_TRUE(Put(*rig.device, {.first = 0, .value = 1}).ok());
    const std::unique_ptr<Transfer> write = WriteOf({.first = 1, .value = 1});
    IoRequest sync;
    sync.op = IoOp::kSync;
    IoRequest* const batch[] = {write->request(), &sync};
    ASSERT_TRUE(RunBatch(*rig.device, batch).ok());
    const std::vector<int> sectors = rig.SectorsAfterCut(seed, {.first = 0, .count = 2});
    EXPECT_TRUE(AllAre({sectors.begin(), sectors.begin() + 8}, 1)) << "seed " << seed;
    lost += AllAre({sectors.begin() + 8, sectors.end()}, 0) ? 1 : 0;
  }
  EXPECT_GT(lost, kSeeds / 10);
}

TEST(PowerCutDevice, WritesInFlightFailAndMayBeOnTheDiskAllTheSame) {
  std::map<bool, size_t> arrived;
  for (uint64_t seed = 0; seed < kSeeds; ++seed) {
    Rig rig(seed);
    const std::unique_ptr<Transfer> write = WriteOf({.first = 5, .count = 2});
    IoRequest* const batch[] = {write->request()};
    rig.device->Submit(batch);
    ++arrived[AllAre(rig.SectorsAfterCut(seed, {.first = 5, .count = 2}), 1)];
    // They were cut, so the power that is back does not help them.
    IoRequest* done[1];
    ASSERT_EQ(rig.device->Wait(done), 1u);
    EXPECT_EQ(done[0]->error, EIO);
    EXPECT_EQ(rig.device->StatusOf(*done[0]).code(), absl::StatusCode::kDataLoss);
  }
  EXPECT_GT(arrived[true], kSeeds / 10);
  EXPECT_GT(arrived[false], kSeeds / 10);
}

TEST(PowerCutDevice, NothingWorksWithoutPower) {
  Rig rig(1);
  const std::unique_ptr<BlockDevice> clone = *rig.device->Clone();
  ASSERT_TRUE(Put(*rig.device, {.first = 0, .value = 1}).ok());
  ASSERT_TRUE(Sync(*clone).ok());
  EXPECT_FALSE(rig.disk->off());
  rig.disk->Cut(1);
  rig.disk->Cut(2);
  EXPECT_TRUE(rig.disk->off());
  const std::vector<std::byte> image = rig.disk->durable();
  PowerCutDevice later(rig.disk);
  for (BlockDevice* device : std::vector<BlockDevice*>{rig.device.get(), clone.get(), &later}) {
    EXPECT_EQ(Put(*device, {.first = 0, .value = 2}).code(), absl::StatusCode::kDataLoss);
    Transfer read(IoOp::kRead, 0, kPageBytes);
    EXPECT_FALSE(RunOne(*device, read.request()).ok());
    EXPECT_EQ(read.request()->error, EIO);
    EXPECT_EQ(Sync(*device).code(), absl::StatusCode::kDataLoss);
    EXPECT_EQ(device->Discard(0, kPageBytes).code(), absl::StatusCode::kDataLoss);
  }
  EXPECT_EQ(rig.disk->durable(), image);
  rig.disk->Restore();
  EXPECT_FALSE(rig.disk->off());
  for (BlockDevice* device : std::vector<BlockDevice*>{rig.device.get(), clone.get(), &later}) {
    Transfer read(IoOp::kRead, 0, kPageBytes);
    ASSERT_TRUE(RunOne(*device, read.request()).ok());
    EXPECT_EQ(read.memory().data()[100], std::byte{1});
    EXPECT_TRUE(Sync(*device).ok());
  }
}

TEST(PowerCutDevice, TheSameSeedsLeaveTheSameImage) {
  const auto image = [](uint64_t order_seed, uint64_t cut_seed) {
    Rig rig(order_seed);
    std::vector<std::unique_ptr<Transfer>> writes;
    std::vector<IoRequest*> batch;
    for (size_t i = 0; i < 3 * kPages; ++i) {
      writes.push_back(WriteOf({.first = i % kPages, .value = static_cast<int>(i + 1)}));
      batch.push_back(writes.back()->request());
    }
    rig.device->Submit(batch);
    rig.disk->CutAfter(20, cut_seed);
    std::vector<IoRequest*> done(batch.size());
    for (size_t left = batch.size(); left > 0;) left -= rig.device->Wait(absl::MakeSpan(done));
    EXPECT_TRUE(rig.disk->off());
    const std::vector<std::byte> durable = rig.disk->durable();
    return std::string(reinterpret_cast<const char*>(durable.data()), durable.size());
  };
  std::set<std::string> seen;
  for (uint64_t seed = 0; seed < 20; ++seed) {
    EXPECT_TRUE(image(seed, 3) == image(seed, 3)) << "seed " << seed;
    seen.insert(image(7, seed));
  }
  EXPECT_GT(seen.size(), 10u);
}

TEST(PowerCutDevice, TheCutComesAfterAsManyRequestsAsItWasTold) {
  for (uint64_t count = 1; count <= kPages; ++count) {
    Rig rig(count);
    rig.disk->CutAfter(count, /*seed=*/count);
    std::vector<std::unique_ptr<Transfer>> writes;
    std::vector<IoRequest*> batch;
    for (size_t i = 0; i < kPages; ++i) {
      writes.push_back(WriteOf({.first = i}));
      batch.push_back(writes.back()->request());
    }
    const absl::Status status = RunBatch(*rig.device, batch);
    EXPECT_EQ(status.ok(), count == kPages);
    EXPECT_TRUE(rig.disk->off());
    EXPECT_EQ(rig.disk->completed_count(), count);
    const auto done = std::count_if(batch.begin(), batch.end(),
                                    [](const IoRequest* request) { return request->error == 0; });
    EXPECT_EQ(static_cast<uint64_t>(done), count);
  }
}

TEST(PowerCutDevice, RestoreCallsOffACutThatWasToCome) {
  Rig rig(1);
  rig.disk->Cut(1);
  rig.disk->CutAfter(1, 1);
  rig.disk->Restore();
  EXPECT_TRUE(Put(*rig.device, {.first = 0}).ok());
  EXPECT_TRUE(Sync(*rig.device).ok());
  EXPECT_FALSE(rig.disk->off());
}

TEST(PowerCutDevice, CompletesSomeAtATimeInAnyOrder) {
  Rig rig(5);
  std::vector<std::unique_ptr<Transfer>> writes;
  std::vector<IoRequest*> batch;
  for (size_t i = 0; i < kPages; ++i) {
    writes.push_back(WriteOf({.first = i}));
    batch.push_back(writes.back()->request());
  }
  rig.device->Submit(batch);
  std::vector<IoRequest*> order;
  std::vector<IoRequest*> done(kPages);
  size_t polls = 0;
  for (; order.size() < kPages; ++polls) {
    const size_t count = rig.device->Poll(absl::MakeSpan(done));
    ASSERT_GT(count, 0u);
    order.insert(order.end(), done.begin(), done.begin() + static_cast<ptrdiff_t>(count));
  }
  EXPECT_GT(polls, 1u);
  EXPECT_NE(order, batch);
  EXPECT_TRUE(std::is_permutation(order.begin(), order.end(), batch.begin(), batch.end()));
}

TEST(PowerCutDevice, ADiscardIsCachedLikeAWriteOfZeros) {
  std::map<bool, size_t> kept;
  for (uint64_t seed = 0; seed < kSeeds; ++seed) {
    Rig rig(seed);
    ASSERT_TRUE(Put(*rig.device, {.first = 0, .count = 4}).ok());
    ASSERT_TRUE(Sync(*rig.device).ok());
    ASSERT_TRUE(rig.device->Discard(0, kPageBytes).ok());
    ASSERT_TRUE(Sync(*rig.device).ok());
    ASSERT_TRUE(rig.device->Discard(2 * kPageBytes, kPageBytes).ok());
    EXPECT_EQ(rig.disk->current()[2 * kPageBytes], std::byte{0});
    const std::vector<int> sectors = rig.SectorsAfterCut(seed, {.first = 0, .count = 4});
    EXPECT_TRUE(AllAre({sectors.begin(), sectors.begin() + 8}, 0));
    EXPECT_TRUE(AllAre({sectors.begin() + 8, sectors.begin() + 16}, 1));
    ++kept[sectors[16] == 0];
  }
  EXPECT_GT(kept[true], 0u);
  EXPECT_GT(kept[false], 0u);
  EXPECT_EQ(Rig(1).device->Discard(0, 100).code(), absl::StatusCode::kInvalidArgument);
}

TEST(PowerCutDevice, TheCacheHoldsNoMoreThanTheDisk) {
  for (uint64_t seed = 0; seed < kSeeds; ++seed) {
    Rig rig(seed);
    for (const int value : {1, 2, 3}) {
      for (size_t page = 0; page < kPages; page += 4) {
        ASSERT_TRUE(Put(*rig.device, {.first = page, .count = 4, .value = value}).ok());
      }
    }
    for (const int sector : rig.SectorsAfterCut(seed, {.first = 0, .count = kPages})) {
      EXPECT_GE(sector, 2) << "seed " << seed;
    }
  }
}

// Each thread writes pages of its own, ever newer values, and syncs after each.
TEST(PowerCutDevice, ClonesOnManyThreadsKeepWhatTheySynced) {
  constexpr size_t kThreads = 4;
  for (uint64_t seed = 0; seed < 20; ++seed) {
    SCOPED_TRACE(testing::Message() << "seed " << seed);
    Rig rig(seed);
    rig.disk->CutAfter(100 + seed, seed);
    std::vector<int> synced(kThreads, 0);
    std::vector<std::thread> threads;
    for (size_t i = 0; i < kThreads; ++i) {
      threads.emplace_back([&rig, &synced, i] {
        const std::unique_ptr<BlockDevice> clone = *rig.device->Clone();
        for (int value = 1; value < 100; ++value) {
          if (!Put(*clone, {.first = i, .value = value}).ok() || !Sync(*clone).ok()) return;
          synced[i] = value;
        }
      });
    }
    for (std::thread& thread : threads) thread.join();
    EXPECT_TRUE(rig.disk->off());
    for (size_t i = 0; i < kThreads; ++i) {
      for (const int sector : rig.SectorsAfterCut(seed, {.first = i})) {
        EXPECT_TRUE(sector == synced[i] || sector == synced[i] + 1) << "thread " << i;
      }
    }
  }
}

}  // namespace
}  // namespace terrace
