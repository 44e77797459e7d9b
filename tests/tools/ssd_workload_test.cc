#include "tools/ssd_workload.h"

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "io/aligned_buffer.h"
#include "io/memory_device.h"
#include "tests/support/faulty_device.h"

namespace terrace {
namespace {

using ::testing::HasSubstr;

constexpr uint64_t kDeviceBytes = uint64_t{1} << 20;
constexpr size_t kBlockBytes = 8192;
constexpr size_t kDepth = 8;

// A device in memory, and what a row asked of it.
class SsdWorkloadTest : public ::testing::Test {
 protected:
  SsdWorkloadTest() {
    MemoryDeviceOptions options;
    options.size_bytes = kDeviceBytes;
    options.transfer_hook = [this](const IoRequest& request, uint64_t bytes) {
      ++(request.op == IoOp::kRead ? reads_ : writes_);
      furthest_ = std::max(furthest_, request.offset + bytes);
      if (offsets_.size() < 1000) offsets_.push_back(request.offset);
      return static_cast<int64_t>(bytes);
    };
    device_ = *MemoryDevice::Create(std::move(options));
    buffer_ = *AlignedBuffer::Create(kBlockBytes * kDepth);
    FillRandom(buffer_.span(), 1);
    row_.block_bytes = kBlockBytes;
    row_.depth = kDepth;
    row_.size_bytes = kDeviceBytes;
    row_.duration = absl::Milliseconds(20);
  }

  SsdRow Run(const char* op, BlockDevice& device) {
    row_.op = *ParseSsdOp(op);
    return RunSsdRow(device, buffer_.span(), row_, stop_);
  }

  uint64_t reads_ = 0;
  uint64_t writes_ = 0;
  uint64_t furthest_ = 0;
  std::vector<uint64_t> offsets_;
  std::unique_ptr<MemoryDevice> device_;
  AlignedBuffer buffer_;
  SsdRowOptions row_;
  std::atomic<bool> stop_ = false;
};

TEST(SsdOpTest, NamesAreRead) {
  EXPECT_FALSE(ParseSsdOp("randread")->writes());
  EXPECT_FALSE(ParseSsdOp("randread")->sequential);
  EXPECT_TRUE(ParseSsdOp("seqread")->sequential);
  EXPECT_TRUE(ParseSsdOp("randwrite")->writes());
  EXPECT_TRUE(ParseSsdOp("seqwrite")->sequential);
  EXPECT_EQ(ParseSsdOp("mixed:70")->read_percent, 70);
  for (const char* bad : {"", "read", "mixed", "mixed:", "mixed:101", "mixed:-1", "randread "}) {
    EXPECT_EQ(ParseSsdOp(bad).status().code(), absl::StatusCode::kInvalidArgument) << bad;
  }
}

TEST_F(SsdWorkloadTest, EveryRequestIsOfTheOp) {
  Run("randread", *device_);
  EXPECT_GT(reads_, 0);
  EXPECT_EQ(writes_, 0);
  reads_ = 0;
  Run("seqwrite", *device_);
  EXPECT_EQ(reads_, 0);
  EXPECT_GT(writes_, 0);
}

TEST_F(SsdWorkloadTest, MixedKeepsItsShare) {
  const SsdRow row = Run("mixed:70", *device_);
  EXPECT_NEAR(static_cast<double>(row.reads) / static_cast<double>(row.reads + row.writes), 0.7,
              0.05);
  EXPECT_NEAR(static_cast<double>(reads_) / static_cast<double>(reads_ + writes_), 0.7, 0.05);
}

TEST_F(SsdWorkloadTest, NothingIsTouchedBeyondTheSize) {
  row_.size_bytes = 10 * kBlockBytes + 4096;
  for (const char* op : {"randwrite", "seqwrite", "mixed:50", "randread", "seqread"}) {
    Run(op, *device_);
  }
  EXPECT_EQ(furthest_, 10 * kBlockBytes) << "all whole blocks, and nothing else";
}

TEST_F(SsdWorkloadTest, SequentialGoesUpAndWraps) {
  row_.size_bytes = 20 * kBlockBytes;
  Run("seqread", *device_);
  ASSERT_GT(offsets_.size(), 40);
  for (size_t i = 0; i < offsets_.size(); ++i) EXPECT_EQ(offsets_[i], i % 20 * kBlockBytes);
}

TEST_F(SsdWorkloadTest, RandomReachesEveryBlock) {
  row_.size_bytes = 20 * kBlockBytes;
  Run("randread", *device_);
  EXPECT_EQ(std::set<uint64_t>(offsets_.begin(), offsets_.end()).size(), 20);
}

TEST_F(SsdWorkloadTest, CountsWhatItMeasured) {
  row_.warmup = absl::Milliseconds(5);
  const SsdRow row = Run("randread", *device_);
  EXPECT_GE(row.seconds, 0.018);
  EXPECT_EQ(row.latency.count(), row.reads);
  EXPECT_LT(row.reads, reads_) << "the warm-up does not count";
  EXPECT_EQ(row.bytes(), row.reads * kBlockBytes);
  EXPECT_GT(row.cpu_seconds, 0);
  EXPECT_EQ(row.errors, 0);
}

TEST_F(SsdWorkloadTest, WrittenPagesAreAllDifferent) {
  Run("seqwrite", *device_);
  std::set<std::string> pages;
  for (size_t at = 0; at < kDeviceBytes; at += kPageBytes) {
    const auto page = device_->bytes().subspan(at, kPageBytes);
    pages.emplace(reinterpret_cast<const char*>(page.data()), page.size());
  }
  EXPECT_EQ(pages.size(), kDeviceBytes / kPageBytes);
}

TEST_F(SsdWorkloadTest, BadRangesAreCountedAndTheRestGoesOn) {
  FaultyDevice faulty(std::move(device_), 1);
  faulty.FailWhen([](const IoRequest& request) {
    return request.offset < kDeviceBytes / 4 ? std::optional<int>(EIO) : std::nullopt;
  });
  const SsdRow row = Run("randread", faulty);
  EXPECT_GT(row.reads, 0);
  EXPECT_GT(row.errors, 0);
  const double share =
      static_cast<double>(row.errors) / static_cast<double>(row.errors + row.reads);
  EXPECT_NEAR(share, 0.25, 0.05);
  EXPECT_EQ(row.first_error.code(), absl::StatusCode::kDataLoss);
  EXPECT_THAT(row.first_error.message(), HasSubstr("offset"));
}

TEST_F(SsdWorkloadTest, SeveralBadRangesLeaveEveryOtherBlock) {
  FaultyDevice faulty(std::move(device_), 1);
  faulty.FailWhen([](const IoRequest& request) -> std::optional<int> {
    const uint64_t block = request.offset / kBlockBytes;
    if (block >= 96 && block < 112) return ENOSPC;
    return block >= 16 && block < 32 ? std::optional<int>(EIO) : std::nullopt;
  });
  const SsdRow row = Run("seqwrite", faulty);
  EXPECT_GT(row.errors, 32);
  EXPECT_EQ(row.errors, faulty.failed_count());
  EXPECT_EQ(std::set<uint64_t>(offsets_.begin(), offsets_.end()).size(), 128 - 32);
  EXPECT_EQ(row.first_error.code(), absl::StatusCode::kDataLoss) << "in the order of the offsets";
  EXPECT_THAT(row.first_error.message(), HasSubstr("Input/output error"));
}

TEST_F(SsdWorkloadTest, DeviceThatOnlyFailsEndsInTime) {
  FaultyDevice faulty(std::move(device_), 1);
  faulty.FailWhen([](const IoRequest&) { return std::optional<int>(EIO); });
  const SsdRow row = Run("seqwrite", faulty);
  EXPECT_EQ(row.writes, 0);
  EXPECT_GT(row.errors, 0);
  EXPECT_FALSE(row.steady);
  EXPECT_EQ(row.bytes_per_second(), 0);
  EXPECT_EQ(row.cpu_seconds_per_gb(), 0);
}

TEST_F(SsdWorkloadTest, StopEndsItAtOnce) {
  stop_ = true;
  row_.duration = absl::Hours(1);
  Run("randread", *device_);
  EXPECT_LE(reads_, kDepth);
}

TEST(SteadyTest, FiveLevelRatesAreSteady) {
  EXPECT_TRUE(IsSteady({100, 101, 99, 100, 102}));
  EXPECT_TRUE(IsSteady({900, 100, 101, 99, 100, 102})) << "only the last five count";
  EXPECT_FALSE(IsSteady({100, 101, 99, 100})) << "too few";
}

TEST(SteadyTest, JumpsAndDriftAreNot) {
  EXPECT_FALSE(IsSteady({100, 100, 130, 100, 100}));
  EXPECT_FALSE(IsSteady({100, 104, 108, 112, 116})) << "15 % up";
  EXPECT_FALSE(IsSteady({116, 112, 108, 104, 100})) << "15 % down";
  EXPECT_FALSE(IsSteady({0, 0, 0, 0, 0}));
}

}  // namespace
}  // namespace terrace
