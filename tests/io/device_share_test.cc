#include "io/device_share.h"

#include <array>
#include <atomic>
#include <memory>
#include <thread>
#include <vector>

#include "gtest/gtest.h"
#include "io/aligned_buffer.h"
#include "io/io_scheduler.h"
#include "io/memory_device.h"
#include "tests/support/manual_device.h"

namespace terrace {
namespace {

TEST(DeviceShareTest, MembersHaveOneDepthTogether) {
  DeviceShare share(4);
  int woken_a = 0, woken_b = 0;
  DeviceShare::Member* const a = share.Join(0, [&] { ++woken_a; });
  DeviceShare::Member* const b = share.Join(1, [&] { ++woken_b; });
  EXPECT_TRUE(share.Take(b, 0));
  EXPECT_TRUE(share.Take(b, 0));
  EXPECT_TRUE(share.Take(a, 0));
  EXPECT_TRUE(share.Take(a, 0));
  EXPECT_FALSE(share.Take(b, 0));
  EXPECT_FALSE(share.Take(a, 2));
  share.Return(a, 1);
  EXPECT_EQ(share.in_device(), 3u);
  EXPECT_EQ(woken_a, 1);
  EXPECT_EQ(woken_b, 1);
  // What b waits for is more urgent than what a asks for.
  EXPECT_FALSE(share.Take(a, 1));
  EXPECT_TRUE(share.Take(b, 0));
  share.Return(a, 1);
  share.Return(b, 3);
  share.Leave(a);
  share.Leave(b);
}

TEST(DeviceShareTest, WithinAClassTheSmallestRankIsFirst) {
  DeviceShare share(2);
  DeviceShare::Member* const kv = share.Join(0, [] {});
  DeviceShare::Member* const weights = share.Join(1, [] {});
  EXPECT_TRUE(share.Take(kv, 0));
  EXPECT_TRUE(share.Take(weights, 0));
  EXPECT_FALSE(share.Take(kv, 0));
  EXPECT_FALSE(share.Take(weights, 0));
  share.Return(weights, 1);
  EXPECT_TRUE(share.Take(weights, 0)) << "with nothing in the disk a member always gets on";
  share.Return(kv, 1);
  EXPECT_FALSE(share.Take(weights, 0)) << "kv waits";
  EXPECT_TRUE(share.Take(kv, 0));
  share.Return(kv, 1);
  EXPECT_TRUE(share.Take(weights, 0)) << "kv waits no more";
  share.Return(weights, 2);
  share.Leave(kv);
  share.Leave(weights);
}

TEST(DeviceShareTest, WhoWasRefusedForAnothersSakeIsWokenWhenThatOneHasEnough) {
  DeviceShare share(4);
  int woken = 0;
  DeviceShare::Member* const kv = share.Join(0, [] {});
  DeviceShare::Member* const weights = share.Join(1, [&] { ++woken; });
  EXPECT_TRUE(share.Take(kv, 0));
  for (int i = 0; i < 3; ++i) EXPECT_TRUE(share.Take(weights, 0));
  EXPECT_FALSE(share.Take(kv, 0));
  share.Return(weights, 2);
  EXPECT_FALSE(share.Take(weights, 0)) << "kv waits";
  EXPECT_TRUE(share.Take(kv, 0));
  EXPECT_EQ(woken, 0);
  share.StopWaiting(kv);
  EXPECT_EQ(woken, 1) << "a place is left";
  EXPECT_TRUE(share.Take(weights, 0));
  share.Return(kv, 2);
  share.Return(weights, 2);
  share.Leave(kv);
  share.Leave(weights);
}

// Two schedulers whose devices the test steps by hand.
class SharedSchedulersTest : public testing::Test {
 protected:
  struct Party {
    ManualDevice* device = nullptr;
    std::unique_ptr<IoScheduler> scheduler;
  };

  Party Start(const std::shared_ptr<DeviceShare>& share, uint8_t rank, size_t patience = 64) {
    auto device = std::make_unique<ManualDevice>(64);
    IoSchedulerOptions options;
    options.share = share;
    options.share_rank = rank;
    options.patience = patience;
    Party party;
    party.device = device.get();
    party.scheduler = std::make_unique<IoScheduler>(std::move(device), options,
                                                    [](absl::Span<IoRequest* const>) {});
    party.device->AwaitAsleep();
    return party;
  }

  // That read into a page of their own.
  std::vector<IoRequest*> Make(size_t count, size_t page = 0) {
    std::vector<IoRequest*> batch;
    for (size_t i = 0; i < count; ++i) {
      requests_.push_back(std::make_unique<IoRequest>());
      requests_.back()->buffers = absl::MakeConstSpan(&pages_[page], 1);
      batch.push_back(requests_.back().get());
    }
    return batch;
  }

  AlignedBuffer memory_ = *AlignedBuffer::Create(3 * kPageBytes);
  const std::array<iovec, 3> pages_ = {{{memory_.data(), kPageBytes},
                                        {memory_.data() + kPageBytes, kPageBytes},
                                        {memory_.data() + 2 * kPageBytes, kPageBytes}}};
  std::vector<std::unique_ptr<IoRequest>> requests_;
};

TEST_F(SharedSchedulersTest, DemandOfTheTierComesBeforeMoreWeights) {
  const auto share = std::make_shared<DeviceShare>(8);
  Party kv = Start(share, 0);
  Party weights = Start(share, 1);
  ASSERT_TRUE(weights.scheduler->Submit(IoClass::kDemand, Make(20)).ok());
  EXPECT_EQ(weights.device->AwaitAsleep().size(), 8u);
  ASSERT_TRUE(kv.scheduler->Submit(IoClass::kDemand, Make(5)).ok());
  EXPECT_EQ(kv.device->AwaitAsleep().size(), 1u);  // the one beyond the depth
  // As weights come back, their places are the tier's.
  for (const size_t tier_reads : {1, 1, 2, 3, 4}) {
    const std::vector<IoRequest*> reads = weights.device->AwaitAsleep();
    EXPECT_EQ(kv.device->AwaitAsleep().size(), tier_reads);
    EXPECT_LE(share->in_device(), 9u);
    weights.device->Complete(reads.front());
    weights.device->AwaitAsleep();
    kv.device->AwaitAsleep();
  }
  EXPECT_EQ(kv.device->AwaitAsleep().size(), 5u);
  weights.device->RunFreely();
  kv.device->RunFreely();
}

// A write whose turn it is for its age does not hold the tier's demand up behind weights.
TEST_F(SharedSchedulersTest, AnAgedRequestDoesNotGiveItsMembersPlaceAway) {
  const auto share = std::make_shared<DeviceShare>(8);
  Party kv = Start(share, 0, /*patience=*/1);
  Party weights = Start(share, 1);
  ASSERT_TRUE(weights.scheduler->Submit(IoClass::kDemand, Make(30)).ok());
  EXPECT_EQ(weights.device->AwaitAsleep().size(), 8u);
  ASSERT_TRUE(kv.scheduler->Submit(IoClass::kDemand, Make(1)).ok());
  EXPECT_EQ(kv.device->AwaitAsleep().size(), 1u);  // the one beyond the depth
  ASSERT_TRUE(kv.scheduler->Submit(IoClass::kOffload, Make(1)).ok());
  ASSERT_TRUE(kv.scheduler->Submit(IoClass::kDemand, Make(2)).ok());
  kv.device->AwaitAsleep();
  // One in place of the excess, then all three that wait.
  for (const size_t tier_requests : {1, 2, 3, 4}) {
    const std::vector<IoRequest*> reads = weights.device->AwaitAsleep();
    weights.device->Complete(reads.front());
    weights.device->AwaitAsleep();
    EXPECT_EQ(kv.device->AwaitAsleep().size(), tier_requests);
  }
  weights.device->RunFreely();
  kv.device->RunFreely();
}

TEST_F(SharedSchedulersTest, BothGetOnToTheEnd) {
  const auto share = std::make_shared<DeviceShare>(3);
  constexpr size_t kRequests = 3000;
  std::atomic<size_t> done = 0;
  {
    std::vector<std::unique_ptr<IoScheduler>> schedulers;
    for (const uint8_t rank : {0, 1, 2}) {
      auto device =
          MemoryDevice::Create({.size_bytes = kPageBytes, .depth = 16, .transfer_hook = {}});
      ASSERT_TRUE(device.ok());
      IoSchedulerOptions options;
      options.share = share;
      options.share_rank = rank;
      options.queue_capacity = kRequests;
      schedulers.push_back(std::make_unique<IoScheduler>(
          *std::move(device), options,
          [&done](absl::Span<IoRequest* const> batch) { done += batch.size(); }));
    }
    std::vector<std::vector<IoRequest*>> batches;
    for (size_t i = 0; i < 3; ++i) batches.push_back(Make(kRequests, i));
    std::vector<std::thread> threads;
    for (size_t i = 0; i < 3; ++i) {
      threads.emplace_back([&, i] {
        for (size_t at = 0; at < kRequests; at += 10) {
          const auto io_class = static_cast<IoClass>((at / 10 + i) % kIoClassCount);
          const auto batch = absl::MakeConstSpan(batches[i]).subspan(at, 10);
          ASSERT_TRUE(schedulers[i]->Submit(io_class, batch).ok());
        }
      });
    }
    for (std::thread& thread : threads) thread.join();
  }
  EXPECT_EQ(done, 3 * kRequests);
  EXPECT_EQ(share->in_device(), 0u);
}

}  // namespace
}  // namespace terrace
