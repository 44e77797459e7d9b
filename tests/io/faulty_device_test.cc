#include "tests/support/faulty_device.h"

#include <algorithm>
#include <bit>
#include <cerrno>
#include <cstring>
#include <memory>
#include <set>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "gtest/gtest.h"
#include "io/aligned_buffer.h"
#include "io/io_scheduler.h"
#include "io/memory_device.h"
#include "tests/support/manual_device.h"

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

// Writes of several buffers; page i of the device holds bytes of i + 1 when it arrived.
class TornWriteTest : public testing::TestWithParam<TornWrite> {
 protected:
  static constexpr size_t kWritePages = 6;

  TornWriteTest() {
    for (size_t i = 0; i < kWritePages; ++i) {
      std::memset(memory_.data() + i * kPageBytes, static_cast<int>(i + 1), kPageBytes);
    }
    std::byte* const data = memory_.data();
    buffers_ = {{data, 0}, {data, 2 * kPageBytes}, {data + 2 * kPageBytes, 4 * kPageBytes}};
    request_.op = IoOp::kWrite;
    request_.buffers = buffers_;
    auto memory = *MemoryDevice::Create({kWritePages * kPageBytes, 4, nullptr});
    disk_ = memory->bytes();
    device_ = std::make_unique<FaultyDevice>(std::move(memory), /*seed=*/7);
  }

  // Writes to a disk of zeros; returns which pages arrived, after checking that each did so either
  // as a whole or not at all.
  std::vector<bool> Write() {
    std::memset(disk_.data(), 0, disk_.size());
    status_ = RunBatch(*device_, batch_);
    std::vector<bool> arrived;
    for (size_t i = 0; i < kWritePages; ++i) {
      const std::byte* const page = disk_.data() + i * kPageBytes;
      EXPECT_TRUE(
          std::all_of(page, page + kPageBytes, [page](std::byte byte) { return byte == *page; }));
      EXPECT_TRUE(*page == std::byte{0} || *page == static_cast<std::byte>(i + 1));
      arrived.push_back(*page != std::byte{0});
    }
    return arrived;
  }
  void TearAll() {
    device_->TearWriteWhen([](const IoRequest&) { return true; }, GetParam());
  }
  void ExpectOutcome() const {
    const bool lies = GetParam() == TornWrite::kReportsSuccess;
    EXPECT_EQ(request_.error, lies ? 0 : EIO);
    EXPECT_EQ(request_.transferred, lies ? request_.length() : 0);
    EXPECT_EQ(status_.code(), lies ? absl::StatusCode::kOk : absl::StatusCode::kDataLoss);
  }

  AlignedBuffer memory_ = *AlignedBuffer::Create(kWritePages * kPageBytes);
  std::vector<iovec> buffers_;
  IoRequest request_;
  const std::vector<IoRequest*> batch_ = {&request_};
  absl::Span<std::byte> disk_;
  std::unique_ptr<FaultyDevice> device_;
  absl::Status status_;
};

TEST_P(TornWriteTest, SomePagesArriveButNeverAllOrNone) {
  TearAll();
  std::set<std::vector<bool>> seen;
  for (uint64_t round = 1; round <= 100; ++round) {
    const std::vector<bool> arrived = Write();
    const auto count = static_cast<size_t>(std::count(arrived.begin(), arrived.end(), true));
    EXPECT_GE(count, 1u);
    EXPECT_LT(count, kWritePages);
    EXPECT_EQ(device_->torn_count(), round);
    ExpectOutcome();
    seen.insert(arrived);
  }
  EXPECT_GT(seen.size(), 30u);
  device_->TearWriteWhen(nullptr, GetParam());
  EXPECT_EQ(Write(), std::vector<bool>(kWritePages, true));
  EXPECT_TRUE(status_.ok());
}

TEST_P(TornWriteTest, AWriteOfOnePageIsLost) {
  TearAll();
  request_.buffers = absl::MakeConstSpan(buffers_).first(2);
  buffers_[1].iov_len = kPageBytes;
  EXPECT_EQ(Write(), std::vector<bool>(kWritePages, false));
  ExpectOutcome();
}

TEST_P(TornWriteTest, OnlyMatchingWritesOfAGoodShapeAreTorn) {
  device_->TearWriteWhen([](const IoRequest& request) { return request.offset > 0; }, GetParam());
  EXPECT_EQ(Write(), std::vector<bool>(kWritePages, true));
  TearAll();
  request_.op = IoOp::kRead;
  EXPECT_TRUE(RunBatch(*device_, batch_).ok());
  request_.op = IoOp::kWrite;
  request_.offset = kPageBytes;
  Write();
  EXPECT_EQ(request_.error, EINVAL) << "beyond the end";
  request_.buffers = absl::MakeConstSpan(buffers_).first(1);
  EXPECT_TRUE(RunBatch(*device_, batch_).ok()) << "empty";
  EXPECT_EQ(device_->torn_count(), 0u);
}

TEST_P(TornWriteTest, AHeldWriteIsTornOnceItIsReleased) {
  TearAll();
  device_->HoldAll();
  device_->Submit(batch_);
  std::vector<IoRequest*> done(1);
  EXPECT_EQ(device_->Poll(absl::MakeSpan(done)), 0u);
  EXPECT_EQ(device_->torn_count(), 0u);
  device_->ReleaseAll();
  ASSERT_EQ(device_->Wait(absl::MakeSpan(done)), 1u);
  EXPECT_EQ(done[0], &request_);
  EXPECT_EQ(device_->torn_count(), 1u);
}

TEST_P(TornWriteTest, AFailureOfTheDiskShowsInsteadOfTheLie) {
  MemoryDeviceOptions options;
  options.size_bytes = kWritePages * kPageBytes;
  options.transfer_hook = [](const IoRequest&, uint64_t) { return int64_t{-ENOSPC}; };
  device_ = std::make_unique<FaultyDevice>(*MemoryDevice::Create(options), 7);
  TearAll();
  EXPECT_EQ(RunBatch(*device_, batch_).code(), absl::StatusCode::kResourceExhausted);
}

INSTANTIATE_TEST_SUITE_P(Outcomes, TornWriteTest,
                         testing::Values(TornWrite::kReportsSuccess, TornWrite::kReportsError),
                         [](const testing::TestParamInfo<TornWrite>& info) {
                           return std::string(info.param == TornWrite::kReportsError ? "Error"
                                                                                     : "Success");
                         });

TEST_F(FaultyDeviceTest, AClonesFaultsAndCountsAreThoseOfAll) {
  std::unique_ptr<BlockDevice> clone = *device_.Clone();
  const std::unique_ptr<BlockDevice> second = *clone->Clone();
  device_.FailWhen([](const IoRequest& request) -> std::optional<int> {
    return request.offset == 0 ? std::optional<int>(EIO) : std::nullopt;
  });
  device_.FlipBitWhen([](const IoRequest& request) { return request.offset == kPageBytes; });
  EXPECT_EQ(RunBatch(*clone, batch_).code(), absl::StatusCode::kDataLoss);
  EXPECT_EQ(RunBatch(*second, batch_).code(), absl::StatusCode::kDataLoss);
  EXPECT_EQ(device_.failed_count(), 2u);
  EXPECT_EQ(device_.flipped_count(), 2u);
  clone.reset();
  EXPECT_EQ(RunBatch(device_, batch_).code(), absl::StatusCode::kDataLoss);
  EXPECT_EQ(device_.failed_count(), 3u);
}

TEST_F(FaultyDeviceTest, ReleasesGoToWhicheverCloneHoldsInTheOrderHeld) {
  const std::unique_ptr<BlockDevice> clone = *device_.Clone();
  const absl::Span<IoRequest* const> batch = batch_;
  device_.HoldAll();
  clone->Submit(batch.first(2));
  device_.Submit(batch.subspan(2, 1));
  EXPECT_EQ(device_.held(), 3u);
  // The clone sleeps in its Wait when another thread releases.
  std::thread waiter([&clone] {
    std::vector<IoRequest*> done(4);
    size_t count = 0;
    while (count < 2) count += clone->Wait(absl::MakeSpan(done));
  });
  device_.Release(2);
  waiter.join();
  EXPECT_EQ(device_.held(), 1u);
  EXPECT_EQ(device_.Poll(absl::MakeSpan(done_)), 0u);
  device_.ReleaseAll();
  EXPECT_EQ(device_.Wait(absl::MakeSpan(done_)), 1u);
}

TEST_F(FaultyDeviceTest, ACloneThatIsGoneHoldsNothing) {
  std::unique_ptr<BlockDevice> clone = *device_.Clone();
  device_.HoldAll();
  clone->Submit(batch_);
  EXPECT_EQ(device_.held(), kPages);
  device_.Release(1);
  clone.reset();
  EXPECT_EQ(device_.held(), 0u);
  device_.ReleaseAll();
  EXPECT_TRUE(RunBatch(device_, batch_).ok());
}

TEST(FaultyDevice, HasNoCloneWhereTheDeviceBelowHasNone) {
  FaultyDevice device(std::make_unique<ManualDevice>(4), 1);
  EXPECT_EQ(device.Clone().status().code(), absl::StatusCode::kUnimplemented);
  EXPECT_EQ(device.Discard(0, kPageBytes).code(), absl::StatusCode::kUnimplemented);
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
