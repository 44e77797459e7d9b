#include "tests/support/faulty_device.h"

#include <algorithm>
#include <bit>
#include <cerrno>
#include <thread>
#include <utility>
#include <vector>

#include "gtest/gtest.h"
#include "io/aligned_buffer.h"
#include "io/io_scheduler.h"
#include "io/memory_device.h"

namespace terrace {
namespace {

constexpr size_t kPages = 8;

class FaultyDeviceTest : public testing::Test {
 protected:
  FaultyDeviceTest() {
    for (size_t i = 0; i < kPages; ++i) {
      pages_[i] = {memory_.data() + i * kPageBytes, kPageBytes};
      requests_[i].offset = i * kPageBytes;
      requests_[i].buffers = absl::MakeConstSpan(&pages_[i], 1);
      batch_.push_back(&requests_[i]);
    }
  }

  AlignedBuffer memory_ = *AlignedBuffer::Create(kPages * kPageBytes);
  std::vector<iovec> pages_ = std::vector<iovec>(kPages);
  std::vector<IoRequest> requests_ = std::vector<IoRequest>(kPages);
  std::vector<IoRequest*> batch_;
  std::vector<IoRequest*> done_ = std::vector<IoRequest*>(2 * kPages);
  FaultyDevice device_{*MemoryDevice::Create({kPages * kPageBytes, 4, nullptr}), /*seed=*/1};
};

TEST_F(FaultyDeviceTest, WorksWithoutFaults) {
  EXPECT_TRUE(RunBatch(device_, batch_).ok());
  device_.Wake();
  EXPECT_EQ(device_.Wait(absl::MakeSpan(done_)), 0u);
}

TEST_F(FaultyDeviceTest, FailsExactlyTheRequestsThatItIsToldTo) {
  device_.FailWhen([](const IoRequest& request) -> std::optional<int> {
    return request.offset == 3 * kPageBytes ? std::optional<int>(EIO) : std::nullopt;
  });
  EXPECT_EQ(RunBatch(device_, batch_).code(), absl::StatusCode::kDataLoss);
  for (size_t i = 0; i < kPages; ++i) EXPECT_EQ(requests_[i].error, i == 3 ? EIO : 0);
  EXPECT_EQ(device_.failed_count(), 1u);
  device_.FailWhen(nullptr);
  EXPECT_TRUE(RunBatch(device_, batch_).ok());
}

TEST_F(FaultyDeviceTest, FlipsOneBitOfEachReadThatItIsToldTo) {
  device_.FlipBitWhen([](const IoRequest& request) { return request.offset >= 6 * kPageBytes; });
  ASSERT_TRUE(RunBatch(device_, batch_).ok());
  EXPECT_EQ(device_.flipped_count(), 2u);
  for (size_t i = 0; i < kPages; ++i) {
    int bits = 0;
    for (size_t byte = 0; byte < kPageBytes; ++byte) {
      bits += std::popcount(std::to_integer<unsigned>(memory_.data()[i * kPageBytes + byte]));
    }
    EXPECT_EQ(bits, i >= 6 ? 1 : 0);
  }
}

TEST_F(FaultyDeviceTest, HoldsRequestsUntilTheyAreReleased) {
  device_.HoldWhen([](const IoRequest& request) { return request.offset < 5 * kPageBytes; });
  device_.Submit(batch_);
  EXPECT_EQ(device_.held(), 5u);
  EXPECT_EQ(device_.Wait(absl::MakeSpan(done_)), kPages - 5);
  EXPECT_EQ(device_.Poll(absl::MakeSpan(done_)), 0u);
  std::thread releaser([this] {
    device_.AwaitHeld(5);
    device_.Release(2);
  });
  size_t released = 0;
  while (released < 2) released += device_.Wait(absl::MakeSpan(done_));
  releaser.join();
  EXPECT_EQ(released, 2u);
  EXPECT_EQ(device_.held(), 3u);
  device_.ReleaseAll();
  EXPECT_EQ(device_.Poll(absl::MakeSpan(done_)), 3u);
  EXPECT_TRUE(RunBatch(device_, batch_).ok());
}

TEST(FaultyDevice, HoldsBackASchedulerFromAnotherThread) {
  auto owned = std::make_unique<FaultyDevice>(*MemoryDevice::Create({kPageBytes, 4, nullptr}), 1);
  FaultyDevice* const device = owned.get();
  device->HoldAll();
  AlignedBuffer memory = *AlignedBuffer::Create(kPageBytes);
  const iovec page = {memory.data(), kPageBytes};
  std::vector<IoRequest> requests(3);
  std::vector<IoRequest*> batch;
  for (IoRequest& request : requests) {
    request.buffers = absl::MakeConstSpan(&page, 1);
    batch.push_back(&request);
  }
  size_t count = 0;
  {
    IoScheduler scheduler(std::move(owned), IoSchedulerOptions(),
                          [&count](absl::Span<IoRequest* const> done) { count += done.size(); });
    for (int round = 0; round < 100; ++round) {
      ASSERT_TRUE(scheduler.Submit(IoClass::kDemand, absl::MakeSpan(batch).first(2)).ok());
      device->AwaitHeld(2);
      ASSERT_TRUE(scheduler.Submit(IoClass::kDemand, absl::MakeSpan(batch).last(1)).ok());
      device->AwaitHeld(3);
      device->Release(3);
      while (scheduler.Stats().read_bytes < (static_cast<size_t>(round) + 1) * 3 * kPageBytes) {
        std::this_thread::yield();
      }
    }
    EXPECT_EQ(device->held(), 0u);
    device->ReleaseAll();
  }
  EXPECT_EQ(count, 300u);
}

}  // namespace
}  // namespace terrace
